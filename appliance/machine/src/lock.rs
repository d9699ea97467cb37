//! A spin lock for everything that is not crash code, and what is known of every one.
//!
//! It masks interrupts while it is held, so that a CPU that the stop interrupt reaches
//! holds none: that is what makes the interrupt a point of synchronisation. Crash code
//! never takes it.
//!
//! Each lock notes who acquired it, where and when; each CPU how many it holds and which
//! one it waits for. A lock enters itself into a list the first time it is taken. [`survey`]
//! makes a table of all that for a dump, when nobody runs any more.

#![expect(unsafe_code, reason = "exclusive access to a value, proved by an atomic holder")]

use core::cell::UnsafeCell;
use core::fmt::Write;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use handoff::tables::NO_OWNER;
use handoff::trace::EventKind;
use handoff::{LockRecord, MAX_CPUS};

use crate::cell::SetOnce;
use crate::cpu;
use crate::identity::{self, Moment};
use crate::trace;

/// Locks that are listed at most; there is no more to a further one than that a dump does
/// not name it.
const LISTED: usize = 512;
/// "Nobody", and a CPU that was not told its index, in [`State::holder`].
const NOBODY: u32 = NO_OWNER;
const SOMEBODY: u32 = NO_OWNER - 1;
/// "No number" in [`State::number`].
const ALONE: u32 = u32::MAX;

/// What is known of a lock.
#[derive(Debug)]
struct State {
    name: &'static str,
    number: u32,
    /// Index of the CPU that holds it.
    holder: AtomicU32,
    listed: AtomicBool,
    acquired_at: AtomicU64,
    acquired_tsc: AtomicU64,
    contended: AtomicU64,
}

/// What is known of a CPU's locks. A cache line each: only its CPU writes it.
#[derive(Debug)]
#[repr(align(64))]
struct OfCpu {
    /// How many it holds.
    held: AtomicU32,
    /// Address of the [`State`] of the one it waits for; 0 for none.
    awaited: AtomicU64,
}

static LIST: [SetOnce<&'static State>; LISTED] = [const { SetOnce::new() }; LISTED];
static LIST_LENGTH: AtomicU32 = AtomicU32::new(0);
static CPUS: [OfCpu; MAX_CPUS] =
    [const { OfCpu { held: AtomicU32::new(0), awaited: AtomicU64::new(0) } }; MAX_CPUS];

/// Set while a crash runs code that may take locks: see [`stay_interruptible`].
static INTERRUPTIBLE: AtomicBool = AtomicBool::new(false);

/// Leaves interrupts as they are wherever a lock is taken, for as long as `stay` says. The
/// crash path does so while it asks a workload for its last words: all other CPUs have
/// stopped, and its deadline is an interrupt that has to reach code that waits for a lock of
/// theirs, or that loops while it holds one.
pub fn stay_interruptible(stay: bool) {
    INTERRUPTIBLE.store(stay, Ordering::Relaxed);
}

fn mask_interrupts() {
    if !INTERRUPTIBLE.load(Ordering::Relaxed) {
        cpu::interrupts_off();
    }
}

fn of_cpu(moment: &Moment) -> Option<&'static OfCpu> {
    CPUS.get(moment.cpu?)
}

/// Locks that CPU `index` holds.
#[must_use]
pub fn held_by(index: usize) -> u32 {
    CPUS.get(index).map_or(0, |cpu| cpu.held.load(Ordering::Relaxed))
}

impl State {
    const fn new(name: &'static str, number: u32) -> Self {
        Self {
            name,
            number,
            holder: AtomicU32::new(NOBODY),
            listed: AtomicBool::new(false),
            acquired_at: AtomicU64::new(0),
            acquired_tsc: AtomicU64::new(0),
            contended: AtomicU64::new(0),
        }
    }

    fn address(&self) -> u64 {
        &raw const *self as u64
    }

    fn try_take(&self, moment: &Moment) -> bool {
        let me = moment.cpu.map_or(SOMEBODY, |index| index as u32);
        self.holder.compare_exchange(NOBODY, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn taken(&self, moment: &Moment, at: u64) {
        trace::record_at(*moment, EventKind::LOCK, self.address(), at);
        self.acquired_at.store(at, Ordering::Relaxed);
        self.acquired_tsc.store(moment.tsc, Ordering::Relaxed);
        if let Some(cpu) = of_cpu(moment) {
            // Only this CPU writes its count, interrupts masked.
            cpu.held.store(cpu.held.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Spins until the lock is this CPU's, or until `tired` says so. Waiting is no critical
    /// section: interrupts are let in meanwhile where the caller had them.
    #[cold]
    fn wait(&self, enabled: bool, at: u64, tired: impl Fn() -> bool) -> Option<Moment> {
        let begun = identity::moment();
        trace::record_at(begun, EventKind::LOCK_WAIT, self.address(), at);
        self.contended.fetch_add(1, Ordering::Relaxed);
        let cpu = of_cpu(&begun);
        // A handler that interrupts the wait may wait for another lock; this one is named
        // again when it is done.
        let before = cpu.map(|cpu| cpu.awaited.swap(self.address(), Ordering::Relaxed));
        let taken = loop {
            if enabled {
                cpu::interrupts_on();
            }
            cpu::pause();
            if self.holder.load(Ordering::Relaxed) == NOBODY {
                mask_interrupts();
                let moment = identity::moment();
                if self.try_take(&moment) {
                    break Some(moment);
                }
            }
            if tired() {
                break None;
            }
        };
        if let (Some(cpu), Some(before)) = (cpu, before) {
            cpu.awaited.store(before, Ordering::Relaxed);
        }
        taken
    }

    #[cold]
    fn list(&'static self) {
        if !self.listed.swap(true, Ordering::Relaxed) {
            let index = LIST_LENGTH.fetch_add(1, Ordering::Relaxed) as usize;
            if let Some(slot) = LIST.get(index) {
                slot.set(self);
            }
        }
    }

    fn fill(&self, record: &mut LockRecord) {
        let mut name = heapless::String::<16>::new();
        // A name that does not fit is cut.
        let _ = match self.number {
            ALONE => name.write_str(self.name),
            number => write!(name, "{}-{number}", self.name),
        };
        handoff::crash::set_text(&mut record.name, &name);
        record.address = self.address();
        let holder = self.holder.load(Ordering::Relaxed);
        record.held = u32::from(holder != NOBODY);
        record.owner = if holder == SOMEBODY { NO_OWNER } else { holder };
        record.acquired_at = self.acquired_at.load(Ordering::Relaxed);
        record.acquired_tsc = self.acquired_tsc.load(Ordering::Relaxed);
        record.contended = self.contended.load(Ordering::Relaxed);
        for (index, cpu) in CPUS.iter().enumerate() {
            if cpu.awaited.load(Ordering::Relaxed) == record.address {
                record.waiters[index / 64] |= 1 << (index % 64);
            }
        }
    }
}

/// Enters every lock into `records`, which are zero: those that are held or waited for
/// first, then the others as far as there is room. Returns how many were entered, and how
/// many locks there are. Takes no lock and allocates nothing; who still runs may change what
/// it reads.
pub fn survey(records: &mut [LockRecord]) -> (usize, usize) {
    let known = (LIST_LENGTH.load(Ordering::Relaxed) as usize).min(LISTED);
    let states = || LIST[..known].iter().filter_map(SetOnce::get);
    let matters = |state: &State| {
        let awaited = |cpu: &OfCpu| cpu.awaited.load(Ordering::Relaxed) == state.address();
        state.holder.load(Ordering::Relaxed) != NOBODY || CPUS.iter().any(awaited)
    };
    let first = states().filter(|state| matters(state));
    let rest = states().filter(|state| !matters(state));
    let mut entered = 0;
    for (record, state) in records.iter_mut().zip(first.chain(rest)) {
        state.fill(record);
        entered += 1;
    }
    (entered, known)
}

/// A value behind a spin lock.
#[derive(Debug)]
pub struct Lock<T> {
    state: State,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reachable only through a guard, and `holder` admits one at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock; 16 bytes of its `name` reach a dump.
    pub const fn new(name: &'static str, value: T) -> Self {
        Self { state: State::new(name, ALONE), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock. Interrupts stay masked until the guard is dropped.
    #[inline(always)]
    pub fn lock(&'static self) -> LockGuard<T> {
        self.lock_at(identity::here())
    }

    /// The same on behalf of a caller: `at` is the address behind the instruction that a dump
    /// is to name as the place of the acquisition.
    #[inline]
    pub fn lock_at(&'static self, at: u64) -> LockGuard<T> {
        loop {
            if let Some(guard) = self.lock_unless(at, || false) {
                return guard;
            }
        }
    }

    /// The same, but not once `tired` says so: then the lock is still another's.
    #[inline]
    pub fn lock_unless(&'static self, at: u64, tired: impl Fn() -> bool) -> Option<LockGuard<T>> {
        if !self.state.listed.load(Ordering::Relaxed) {
            self.state.list();
        }
        let enabled = cpu::interrupts_enabled();
        mask_interrupts();
        let mut moment = identity::moment();
        if !self.state.try_take(&moment) {
            match self.state.wait(enabled, at, tired) {
                Some(later) => moment = later,
                None => {
                    if enabled {
                        cpu::interrupts_on();
                    }
                    return None;
                }
            }
        }
        self.state.taken(&moment, at);
        Some(LockGuard { lock: self, enabled })
    }
}

impl<const N: usize> Lock<[(); N]> {
    /// `N` free locks that guard nothing but what their users agree on: `name-0`, `name-1`, …
    #[must_use]
    pub const fn numbered(name: &'static str) -> [Lock<()>; N] {
        let mut locks = [const { Lock::new("", ()) }; N];
        let mut number = 0;
        while number < N {
            locks[number].state.name = name;
            locks[number].state.number = number as u32;
            number += 1;
        }
        locks
    }
}

/// The lock, held.
#[derive(Debug)]
pub struct LockGuard<T: 'static> {
    lock: &'static Lock<T>,
    enabled: bool,
}

impl<T> Deref for LockGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is proof that this CPU holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for LockGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for LockGuard<T> {
    fn drop(&mut self) {
        let moment = identity::moment();
        trace::record_at(moment, EventKind::UNLOCK, self.lock.state.address(), 0);
        if let Some(cpu) = of_cpu(&moment) {
            cpu.held.store(cpu.held.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
        self.lock.state.holder.store(NOBODY, Ordering::Release);
        if self.enabled {
            cpu::interrupts_on();
        }
    }
}
