//! A pair of a submission and a completion queue (§4.1, §4.2, §4.6).

use core::sync::atomic::{Ordering, fence};

use crate::memory::{Dma, PAGE, Registers};

/// Words of a command (64 bytes) and of a completion (16 bytes).
const COMMAND_WORDS: usize = 16;
const COMPLETION_BYTES: usize = 16;
/// Entries of a queue at most, each of which lies in a page: a page holds 64 commands.
pub const MAX_ENTRIES: u16 = (PAGE / (COMMAND_WORDS * 4)) as u16;
/// First doorbell (§3.1.21).
const DOORBELLS: usize = 0x1000;

/// A command, word by word (§4.2).
pub type Command = [u32; COMMAND_WORDS];

/// Registers and pages of one controller.
pub struct Link<R> {
    /// The controller's registers.
    pub registers: R,
    /// Every page shared with it.
    pub memory: Dma,
    /// Bytes from one doorbell to the next.
    pub stride: usize,
}

/// What a completion says.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The command's identifier.
    pub id: u16,
    /// Status code in bits 7:0, its type in bits 10:8; 0 is success.
    pub status: u16,
}

/// Both queues of a pair, and how far each has got.
pub struct Queue {
    number: usize,
    /// Entries of each of the two, 2 to [`MAX_ENTRIES`]: one more than are ever in flight, so
    /// that neither can run full.
    entries: u16,
    /// Offsets in the pages.
    submissions: usize,
    completions: usize,
    tail: u16,
    head: u16,
    /// The phase tag that marks a new completion; the pages start as zeros.
    phase: bool,
    /// There are commands in the queue that the controller was not told of.
    unheard: bool,
}

impl Queue {
    /// Returns queue `number` of so many entries, which lie in these two zeroed pages.
    pub const fn new(number: usize, entries: u16, submissions: usize, completions: usize) -> Self {
        let unheard = false;
        Self { number, entries, submissions, completions, tail: 0, head: 0, phase: true, unheard }
    }

    /// Puts a command into the queue. The controller hears of it when [`Self::ring`] is called.
    pub fn submit<R: Registers>(&mut self, link: &Link<R>, command: &Command) {
        let entry = self.submissions + usize::from(self.tail) * COMMAND_WORDS * 4;
        for (index, word) in command.iter().enumerate() {
            link.memory.write(entry + index * 4, *word);
        }
        self.tail = self.next(self.tail);
        self.unheard = true;
    }

    /// Tells the controller of the commands that it has not heard of.
    pub fn ring<R: Registers>(&mut self, link: &Link<R>) {
        if !core::mem::take(&mut self.unheard) {
            return;
        }
        // The commands, and the data they name, must be in memory before the doorbell rings.
        fence(Ordering::SeqCst);
        let doorbell = DOORBELLS + 2 * self.number * link.stride;
        link.registers.write(doorbell, u32::from(self.tail));
    }

    /// Returns the index behind `index`.
    const fn next(&self, index: u16) -> u16 {
        if index + 1 < self.entries { index + 1 } else { 0 }
    }

    /// Takes the next completion, if there is one.
    pub fn take<R: Registers>(&mut self, link: &Link<R>) -> Option<Completion> {
        let entry = self.completions + usize::from(self.head) * COMPLETION_BYTES;
        let word = link.memory.read(entry + 12);
        if (word >> 16 & 1 != 0) != self.phase {
            return None;
        }
        // What the completion speaks of must not be read before the completion itself.
        fence(Ordering::SeqCst);
        self.head = self.next(self.head);
        if self.head == 0 {
            self.phase = !self.phase;
        }
        let doorbell = DOORBELLS + (2 * self.number + 1) * link.stride;
        link.registers.write(doorbell, u32::from(self.head));
        // Bit 31 says "do not retry", 30 "more to read"; nobody retries or reads here.
        Some(Completion { id: word as u16, status: (word >> 17) as u16 & 0x7ff })
    }
}
