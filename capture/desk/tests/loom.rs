//! A desk under every interleaving and every legal reordering of its accesses.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p epitaph-desk --release --test loom`
#![cfg(loom)]

use epitaph_desk::Desk;
use loom::sync::Arc;
use loom::thread;

/// Returns the finished job; lets the other threads run as long as there is none.
fn await_job<T>(desk: &Desk<T>) -> T {
    loop {
        match desk.collect() {
            Some(job) => return job,
            None => thread::yield_now(),
        }
    }
}

/// Two workers look for the same job: one of them does it, and the owner picks up what that
/// worker wrote.
#[test]
fn one_worker_does_the_job_and_the_owner_sees_the_result() {
    loom::model(|| {
        let desk = Arc::new(Desk::new());
        let worker = || {
            let desk = desk.clone();
            move || {
                let Some(mut job) = desk.claim() else { return 0 };
                *job += 10;
                1
            }
        };
        let others = [thread::spawn(worker()), thread::spawn(worker())];
        desk.put(1).unwrap();
        let early = desk.collect();
        let done: u32 = others.map(|other| other.join().unwrap()).into_iter().sum();
        match early.or_else(|| desk.collect()) {
            Some(job) => assert_eq!((job, done), (11, 1)),
            // Both workers looked before the job lay there.
            None => assert_eq!(done, 0),
        }
    });
}

/// The owner puts a second job down as soon as the first one is back: the worker sees each
/// job as it was put down, and the owner each result as it was left. With at most three forced switches of threads: without a limit
/// there are too many ways to run two loops.
#[test]
fn a_desk_that_is_used_again_hands_over_the_new_job() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let desk = Arc::new(Desk::new());
        let worker = {
            let desk = desk.clone();
            thread::spawn(move || {
                for expected in [1, 2] {
                    let mut job = loop {
                        match desk.claim() {
                            Some(job) => break job,
                            None => thread::yield_now(),
                        }
                    };
                    assert_eq!(*job, expected);
                    *job += 10;
                }
            })
        };
        for job in [1, 2] {
            desk.put(job).unwrap();
            assert_eq!(await_job(&desk), job + 10);
        }
        worker.join().unwrap();
    });
}

/// The owner gives a job up while its worker finishes it: either the owner gets the finished
/// job, or the desk is never used again.
#[test]
fn a_job_is_given_up_or_done_and_never_both() {
    loom::model(|| {
        let desk = Arc::new(Desk::new());
        desk.put(1).unwrap();
        let worker = {
            let desk = desk.clone();
            thread::spawn(move || *desk.claim().expect("a job waits") += 10)
        };
        let found = loop {
            if desk.give_up() {
                break None;
            }
            if let Some(job) = desk.collect() {
                break Some(job);
            }
            thread::yield_now();
        };
        worker.join().unwrap();
        match found {
            Some(job) => assert_eq!((job, desk.put(2)), (11, Ok(()))),
            None => assert_eq!((desk.collect(), desk.put(2)), (None, Err(2))),
        }
    });
}
