//! How each CPU says that its registers are saved and that it has stopped.
//!
//! A CPU writes its own slot and nobody else's; the stopper only reads. The state moves
//! forward and never back, so whatever enters the stop code a second time — the next
//! rung while the first is being served, a late NMI at a parked CPU — finds the first
//! registers and the first acknowledgement in place.

use crate::CpuMask;
use crate::atomic::{AtomicU32, Ordering};

const RUNNING: u32 = 0;
const SAVING: u32 = 1;
/// Set once the CPU has acknowledged; the bits below say how it was entered.
const ACKED: u32 = 1 << 31;

/// Where a CPU is on its way to the halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It has not entered the stop code.
    Running,
    /// It is writing its registers: they are not to be believed yet.
    Saving,
    /// It has stopped, its registers are complete. Holds what it passed to
    /// [`Slot::acknowledge`].
    Acked(u32),
}

/// One CPU's stop state.
#[derive(Debug)]
pub struct Slot {
    state: AtomicU32,
}

impl Slot {
    /// A CPU that runs.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(RUNNING) }
    }

    /// A CPU that runs; loom's atomics cannot be built in a `const fn`.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { state: AtomicU32::new(RUNNING) }
    }

    /// Whether the caller is the first to save this CPU's registers. Only then may it
    /// write them.
    ///
    /// An entry that is refused while the state is [`SlotState::Saving`] has interrupted
    /// the save itself: it returns, so that the save and the acknowledgement are
    /// finished by the entry that began them.
    ///
    /// *Relaxed*: the entries that compete here run on one CPU, one inside the other,
    /// and see each other's stores in program order anyway. Nothing is published yet.
    pub fn begin_save(&self) -> bool {
        self.state.compare_exchange(RUNNING, SAVING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Says that this CPU has stopped: the last thing it does before it halts. `how` is
    /// the caller's code for the way it was entered, below 2³¹ (the top bit is dropped).
    /// Returns whether this was the first acknowledgement; a later one changes nothing.
    ///
    /// *Release*: whoever sees the acknowledgement, with the *Acquire* of
    /// [`state`](Self::state), sees the registers that were written before it.
    pub fn acknowledge(&self, how: u32) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        // Tried again only when an entry nested in between has moved the state on, and
        // it moves forward twice at most.
        while state & ACKED == 0 {
            match self.state.compare_exchange(
                state,
                ACKED | how,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// The acknowledgement as a word and the value to store there, for code that has to
    /// make it from outside Rust: the park loop, whose last act it is. The store is made
    /// by this slot's own CPU, after [`begin_save`](Self::begin_save), with a fence before
    /// it where the processor does not order stores.
    #[must_use]
    pub fn acknowledgement(&self, how: u32) -> (&AtomicU32, u32) {
        (&self.state, ACKED | how)
    }

    /// Where the CPU is. *Acquire*: see [`acknowledge`](Self::acknowledge).
    #[must_use]
    pub fn state(&self) -> SlotState {
        match self.state.load(Ordering::Acquire) {
            state if state & ACKED != 0 => SlotState::Acked(state & !ACKED),
            SAVING => SlotState::Saving,
            _ => SlotState::Running,
        }
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

/// The slots of CPUs `0..N`; `N` is at most [`crate::MAX_CPUS`].
#[derive(Debug)]
pub struct AckBoard<const N: usize> {
    slots: [Slot; N],
}

impl<const N: usize> AckBoard<N> {
    const FITS: () = assert!(N <= crate::MAX_CPUS as usize, "more slots than a CpuMask holds");

    /// A board of CPUs that all run.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        let () = Self::FITS;
        Self { slots: [const { Slot::new() }; N] }
    }

    /// A board of CPUs that all run; loom's atomics cannot be built in a `const fn`.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        let () = Self::FITS;
        Self { slots: core::array::from_fn(|_| Slot::new()) }
    }

    /// The slot of `cpu`; none when there is no such CPU.
    #[must_use]
    pub fn slot(&self, cpu: u32) -> Option<&Slot> {
        self.slots.get(cpu as usize)
    }

    /// Where `cpu` is; a CPU without a slot counts as running.
    #[must_use]
    pub fn state(&self, cpu: u32) -> SlotState {
        self.slot(cpu).map_or(SlotState::Running, Slot::state)
    }

    /// The CPUs that have acknowledged. What they wrote before is then visible.
    #[must_use]
    pub fn acked(&self) -> CpuMask {
        let mut acked = CpuMask::new();
        for (cpu, slot) in self.slots.iter().enumerate() {
            if let SlotState::Acked(_) = slot.state() {
                acked.set(cpu as u32);
            }
        }
        acked
    }
}

impl<const N: usize> Default for AckBoard<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_registers_and_the_first_acknowledgement_stay() {
        let slot = Slot::new();
        assert_eq!(slot.state(), SlotState::Running);
        assert!(slot.begin_save());
        assert_eq!(slot.state(), SlotState::Saving);
        assert!(!slot.begin_save());
        assert!(slot.acknowledge(2));
        assert!(!slot.acknowledge(3));
        assert!(!slot.begin_save());
        assert_eq!(slot.state(), SlotState::Acked(2));
    }

    #[test]
    fn an_acknowledgement_may_be_stored_by_hand() {
        let slot = Slot::new();
        assert!(slot.begin_save());
        let (word, value) = slot.acknowledgement(5);
        word.store(value, Ordering::Release);
        assert_eq!(slot.state(), SlotState::Acked(5));
        assert!(!slot.acknowledge(2));
    }

    #[test]
    fn a_cpu_may_acknowledge_without_registers() {
        let slot = Slot::new();
        assert!(slot.acknowledge(0));
        assert_eq!(slot.state(), SlotState::Acked(0));
        assert!(!slot.begin_save());
    }

    #[test]
    fn the_board_shows_who_has_acknowledged() {
        let board = AckBoard::<70>::new();
        assert!(board.slot(70).is_none());
        assert_eq!(board.state(70), SlotState::Running);
        for cpu in [0, 69] {
            board.slot(cpu).unwrap().acknowledge(cpu);
        }
        assert!(board.slot(5).unwrap().begin_save());
        assert_eq!(board.acked(), CpuMask::new().with(0).with(69));
        assert_eq!(board.state(69), SlotState::Acked(69));
        assert_eq!(board.state(5), SlotState::Saving);
    }
}
