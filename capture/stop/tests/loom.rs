//! The two atomics modules under every interleaving and every legal reordering.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p epitaph-stop --release --test loom`
#![cfg(loom)]

use epitaph_stop::{AckBoard, Claim, CpuMask, Outcome, SlotState};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

/// Several CPUs panic at once: one stops the others, and each loser can read the cause
/// of the one it lost to.
/// Proves R4.
#[test]
fn one_stopper_and_its_cause_is_seen() {
    loom::model(|| {
        let claim = Arc::new(Claim::new());
        let causes: Arc<[AtomicU32; 3]> = Arc::new(std::array::from_fn(|_| AtomicU32::new(0)));
        let panic = |cpu: u32| {
            let (claim, causes) = (claim.clone(), causes.clone());
            move || {
                causes[cpu as usize].store(100 + cpu, Ordering::Relaxed);
                let outcome = claim.claim(cpu);
                if let Outcome::Lost(owner) = outcome {
                    assert_eq!(causes[owner as usize].load(Ordering::Relaxed), 100 + owner);
                }
                outcome
            }
        };
        let others = [thread::spawn(panic(1)), thread::spawn(panic(2))];
        let mut outcomes = vec![panic(0)()];
        outcomes.extend(others.map(|other| other.join().unwrap()));
        let winners = outcomes.iter().filter(|&&outcome| outcome == Outcome::Won).count();
        assert_eq!(winners, 1);
        let owner = claim.owner().unwrap();
        for (cpu, outcome) in outcomes.into_iter().enumerate() {
            let expected = if cpu as u32 == owner { Outcome::Won } else { Outcome::Lost(owner) };
            assert_eq!(outcome, expected);
        }
        assert_eq!(claim.claim(owner), Outcome::Nested);
    });
}

/// A holder that comes late and two losers that are tired of waiting: one of them handles the
/// crash, the others learn it, and each loser sees what that CPU wrote before.
#[test]
fn one_cpu_begins_when_losers_take_over() {
    loom::model(|| {
        let claim = Arc::new(Claim::new());
        let causes: Arc<[AtomicU32; 3]> = Arc::new(std::array::from_fn(|_| AtomicU32::new(0)));
        assert_eq!(claim.claim(0), Outcome::Won);
        let tired = |cpu: u32| {
            let (claim, causes) = (claim.clone(), causes.clone());
            move || {
                assert!(matches!(claim.claim(cpu), Outcome::Lost(_)));
                causes[cpu as usize].store(100 + cpu, Ordering::Relaxed);
                let took = claim.take_over(cpu, 0);
                if !took {
                    assert!(claim.has_begun());
                    let owner = claim.owner().unwrap();
                    assert_eq!(causes[owner as usize].load(Ordering::Relaxed), 100 + owner);
                }
                took
            }
        };
        let others = [thread::spawn(tired(1)), thread::spawn(tired(2))];
        causes[0].store(100, Ordering::Relaxed);
        let mut began = vec![claim.begin(0)];
        began.extend(others.map(|other| other.join().unwrap()));
        assert_eq!(began.iter().filter(|&&began| began).count(), 1, "{began:?}");
        let owner = claim.owner().unwrap() as usize;
        assert!(began[owner]);
    });
}

/// A CPU that did not panic and only asks who did can read the cause as well.
#[test]
fn a_bystander_sees_the_cause_of_the_owner() {
    loom::model(|| {
        let claim = Arc::new(Claim::new());
        let cause = Arc::new(AtomicU32::new(0));
        let panic = {
            let (claim, cause) = (claim.clone(), cause.clone());
            move || {
                cause.store(107, Ordering::Relaxed);
                claim.claim(7)
            }
        };
        let other = thread::spawn(panic);
        if let Some(owner) = claim.owner() {
            assert_eq!((owner, cause.load(Ordering::Relaxed)), (7, 107));
        }
        assert_eq!(other.join().unwrap(), Outcome::Won);
    });
}

/// Two entries compete for one CPU's slot while the stopper looks on: one saves, the
/// first acknowledgement stays, and whoever sees it sees the registers.
/// Proves R15.
#[test]
fn the_first_registers_win_and_are_seen_with_the_acknowledgement() {
    loom::model(|| {
        let board = Arc::new(AckBoard::<2>::new());
        let registers = Arc::new(AtomicU32::new(0));
        let enter = |how: u32| {
            let (board, registers) = (board.clone(), registers.clone());
            move || {
                let slot = board.slot(1).unwrap();
                if slot.begin_save() {
                    registers.store(how, Ordering::Relaxed);
                    assert!(slot.acknowledge(how));
                    true
                } else {
                    false
                }
            }
        };
        let entries = [thread::spawn(enter(2)), thread::spawn(enter(3))];
        let acked = board.acked();
        assert!(!acked.contains(0));
        if acked.contains(1) {
            let SlotState::Acked(how) = board.state(1) else { panic!("it went back") };
            assert_eq!(registers.load(Ordering::Relaxed), how);
        }
        let saved = entries.map(|entry| entry.join().unwrap());
        assert_eq!(saved.iter().filter(|&&saved| saved).count(), 1);
        let how = if saved[0] { 2 } else { 3 };
        assert_eq!(board.state(1), SlotState::Acked(how));
        assert_eq!(board.acked(), CpuMask::new().with(1));
        assert!(!board.slot(1).unwrap().acknowledge(9));
        assert_eq!(board.state(1), SlotState::Acked(how));
    });
}

/// Two acknowledgements for one slot: exactly one of them is told that it was first.
#[test]
fn one_acknowledgement_counts() {
    loom::model(|| {
        let board = Arc::new(AckBoard::<1>::new());
        let acknowledge = |how: u32| {
            let board = board.clone();
            move || board.slot(0).unwrap().acknowledge(how)
        };
        let other = thread::spawn(acknowledge(2));
        let mine = acknowledge(3)();
        let theirs = other.join().unwrap();
        assert!(mine != theirs);
        assert_eq!(board.state(0), SlotState::Acked(if mine { 3 } else { 2 }));
    });
}
