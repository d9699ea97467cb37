//! The one state of all CPUs, behind its lock.

#![expect(unsafe_code, reason = "a static behind a lock")]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use epitaph_monitor::{BakeryLock, Client, Hardware, Monitor};

use super::{fatal, gic, processor};

/// CPUs that this monitor has room for: as many as the first region of redistributors has.
pub const CPUS: usize = 123;

struct State {
    lock: BakeryLock<CPUS>,
    contents: UnsafeCell<Contents>,
}

/// The monitor, once there is one. Not an `Option`: its `None` need not be made of zero bytes,
/// and this image has no initialised data.
struct Contents {
    ready: bool,
    monitor: MaybeUninit<Monitor<CPUS>>,
}

// SAFETY: `contents` is touched only while `lock` is held.
unsafe impl Sync for State {}

static STATE: State = State {
    lock: BakeryLock::new(),
    contents: UnsafeCell::new(Contents { ready: false, monitor: MaybeUninit::uninit() }),
};

/// What the state machines reach of this machine.
pub struct Virt;

impl Hardware for Virt {
    fn signal_event(&mut self, mpidr: u64) {
        gic::send(mpidr, gic::EVENT);
    }

    fn end_event(&mut self) {
        gic::end(gic::EVENT);
    }

    fn wake(&mut self, cpu: usize) {
        if let Some(mpidr) = gic::cpus().nth(cpu) {
            gic::send(mpidr, gic::WAKE);
        }
    }

    fn set_exception_return(&mut self, client: Client, pc: u64, pstate: u64) {
        processor::set_exception_return(client, pc, pstate);
    }
}

/// Puts the state there, before any other CPU looks at it.
pub fn put(cpu: usize, monitor: Monitor<CPUS>) {
    locked(cpu, |contents| {
        contents.monitor.write(monitor);
        contents.ready = true;
    });
}

/// Runs `work` with the state of all CPUs, under its lock. `cpu` is the caller's number.
pub fn with<T>(cpu: usize, work: impl FnOnce(&mut Monitor<CPUS>, &mut Virt) -> T) -> T {
    locked(cpu, |contents| {
        if !contents.ready {
            fatal(format_args!("CPU {cpu} came before the monitor was ready"));
        }
        // SAFETY: `ready` is set only once the monitor was written.
        work(unsafe { contents.monitor.assume_init_mut() }, &mut Virt)
    })
}

fn locked<T>(cpu: usize, work: impl FnOnce(&mut Contents) -> T) -> T {
    let Some(_held) = STATE.lock.lock(cpu) else { fatal(format_args!("there is no CPU {cpu}")) };
    // SAFETY: the lock is held until the end of this function, and the reference ends before.
    work(unsafe { &mut *STATE.contents.get() })
}
