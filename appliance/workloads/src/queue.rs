//! A bounded queue of numbers for many producers and many consumers.
//!
//! Dmitry Vyukov's bounded queue: a place is claimed by moving a counter on, and each slot
//! says whose turn it is, so that a claimed slot is not read before it is written, nor
//! written again before it is read. Without unsafe code, since a slot holds a plain number.

use core::sync::atomic::{AtomicU64, Ordering};

/// A slot. In lap L of the queue its turn goes from 2L, to be written, to 2L + 1, to be
/// read, to 2L + 2.
#[derive(Debug)]
struct Slot {
    turn: AtomicU64,
    number: AtomicU64,
}

/// A queue of up to `ROOM` numbers.
#[derive(Debug)]
pub struct Queue<const ROOM: usize> {
    slots: [Slot; ROOM],
    /// Numbers that were ever put in.
    put: AtomicU64,
    /// Numbers that were ever taken out.
    taken: AtomicU64,
}

impl<const ROOM: usize> Queue<ROOM> {
    /// An empty queue.
    pub const fn new() -> Self {
        const { assert!(ROOM > 0) };
        Self {
            slots: [const { Slot { turn: AtomicU64::new(0), number: AtomicU64::new(0) } }; ROOM],
            put: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// Numbers that were ever put in, and taken out.
    pub fn counts(&self) -> (u64, u64) {
        (self.put.load(Ordering::Relaxed), self.taken.load(Ordering::Relaxed))
    }

    /// Claims the next place that `counter` counts, once the turn of its slot is twice the
    /// lap and `step`; returns the slot and that turn. None while it is not the slot's turn
    /// yet.
    fn claim(&self, counter: &AtomicU64, step: u64) -> Option<(&Slot, u64)> {
        loop {
            let place = counter.load(Ordering::Relaxed);
            let slot = &self.slots[(place % ROOM as u64) as usize];
            let due = place / ROOM as u64 * 2 + step;
            let turn = slot.turn.load(Ordering::Acquire);
            if turn < due {
                return None;
            }
            let next = place + 1;
            // A turn beyond the one due says that others were faster: look again.
            if turn == due
                && counter
                    .compare_exchange_weak(place, next, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                return Some((slot, turn));
            }
        }
    }

    /// Puts `number` in; false when the queue is full.
    pub fn put(&self, number: u64) -> bool {
        let Some((slot, turn)) = self.claim(&self.put, 0) else { return false };
        slot.number.store(number, Ordering::Relaxed);
        slot.turn.store(turn + 1, Ordering::Release);
        true
    }

    /// Takes the oldest number out; none when the queue is empty.
    pub fn take(&self) -> Option<u64> {
        let (slot, turn) = self.claim(&self.taken, 1)?;
        let number = slot.number.load(Ordering::Relaxed);
        slot.turn.store(turn + 1, Ordering::Release);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;

    #[test]
    fn numbers_come_out_in_order_lap_after_lap() {
        let queue = Queue::<3>::new();
        for lap in 0..5 {
            assert_eq!(queue.take(), None);
            for number in 0..3 {
                assert!(queue.put(lap * 10 + number));
            }
            assert!(!queue.put(99), "full");
            for number in 0..3 {
                assert_eq!(queue.take(), Some(lap * 10 + number));
            }
        }
        assert_eq!(queue.counts(), (15, 15));
    }
}
