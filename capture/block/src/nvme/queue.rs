//! A pair of a submission and a completion queue (§4.1, §4.2, §4.6).

use core::sync::atomic::{Ordering, fence};

use crate::memory::{Dma, Registers};

/// Entries of each queue: more than are ever in flight, so that it cannot run full.
pub const ENTRIES: u16 = 8;
/// Words of a command (64 bytes) and of a completion (16 bytes).
const COMMAND_WORDS: usize = 16;
const COMPLETION_BYTES: usize = 16;
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
    /// Offsets in the pages.
    submissions: usize,
    completions: usize,
    tail: u16,
    head: u16,
    /// The phase tag that marks a new completion; the pages start as zeros.
    phase: bool,
}

impl Queue {
    /// Queue `number`, with its entries in these two zeroed pages.
    pub const fn new(number: usize, submissions: usize, completions: usize) -> Self {
        Self { number, submissions, completions, tail: 0, head: 0, phase: true }
    }

    /// Hands a command to the controller.
    pub fn submit<R: Registers>(&mut self, link: &Link<R>, command: &Command) {
        let entry = self.submissions + usize::from(self.tail) * COMMAND_WORDS * 4;
        for (index, word) in command.iter().enumerate() {
            link.memory.write(entry + index * 4, *word);
        }
        self.tail = (self.tail + 1) % ENTRIES;
        // The command, and the data it names, must be in memory before the doorbell rings.
        fence(Ordering::SeqCst);
        let doorbell = DOORBELLS + 2 * self.number * link.stride;
        link.registers.write(doorbell, u32::from(self.tail));
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
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        let doorbell = DOORBELLS + (2 * self.number + 1) * link.stride;
        link.registers.write(doorbell, u32::from(self.head));
        // Bit 31 says "do not retry", 30 "more to read"; nobody retries or reads here.
        Some(Completion { id: word as u16, status: (word >> 17) as u16 & 0x7ff })
    }
}
