//! The breadcrumb: how far a run came, kept where a reset does not reach.
//!
//! Thirteen bytes of the battery-backed memory behind the calendar clock, at registers 0x60
//! to 0x6c: SeaBIOS, OVMF and QEMU use those below, up to 0x5f, and a PC's own checksum covers
//! 0x10 to 0x2d. Version 1:
//!
//! ```text
//! +0   0xe7
//! +1   version, 1
//! +2   the first four bytes of the run's build-id
//! +6   runs before this one, in a row, that did not end
//! +7   zero, four bytes
//! +11  what makes the bytes so far add up to 0xff
//! +12  how far the run has come: see `Progress`
//! ```
//!
//! The last byte stands apart from the checksum: it is written while things go wrong, and one
//! byte is written or not. Both images write it.

/// The first register.
const START: u8 = 0x60;
const MARK: u8 = 0xe7;
const VERSION: u8 = 1;
const HEADER: usize = 12;
const PROGRESS: u8 = START + HEADER as u8;

/// The memory behind a calendar clock.
pub trait Cells {
    /// Reads a register.
    fn read(&self, register: u8) -> u8;
    /// Writes one.
    fn write(&self, register: u8, value: u8);
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To this stage of the boot or of the work, counted from 1, below 64.
    Stage(u8),
    /// Its crash is stopping the other CPUs.
    Crashing,
    /// It has left for the capture image.
    Left,
    /// Its dump is being written.
    Capturing,
    /// There is a sealed dump.
    Sealed,
    /// There are last words and no dump.
    LastWords,
    /// It ended in good order.
    Ended,
    /// A number that this build does not know.
    Other(u8),
}

impl Progress {
    const NAMED: [(u8, Self); 6] = [
        (64, Self::Crashing),
        (65, Self::Left),
        (66, Self::Capturing),
        (67, Self::Sealed),
        (68, Self::LastWords),
        (69, Self::Ended),
    ];

    fn number(self) -> u8 {
        match self {
            Self::Stage(number) => number.min(63),
            Self::Other(number) => number,
            _ => {
                Self::NAMED.iter().find(|(_, name)| *name == self).map_or(0, |(number, _)| *number)
            }
        }
    }

    fn from_number(number: u8) -> Self {
        let named = Self::NAMED.iter().find(|(known, _)| *known == number);
        match named {
            Some((_, name)) => *name,
            None if number < 64 => Self::Stage(number),
            None => Self::Other(number),
        }
    }

    /// Whether a run that came so far is over: its end was what it was to be.
    #[must_use]
    pub const fn is_an_end(self) -> bool {
        matches!(self, Self::Sealed | Self::LastWords | Self::Ended)
    }
}

/// What a run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breadcrumb {
    /// The first bytes of its build-id.
    pub build_id: [u8; 4],
    /// How many before it, in a row, did not end.
    pub not_ended: u8,
    /// How far it came.
    pub progress: Progress,
}

impl Breadcrumb {
    /// What the last run left; `None` where there was none, or what it left does not add up.
    pub fn read(cells: &impl Cells) -> Option<Self> {
        let mut bytes = [0; HEADER];
        for (register, byte) in (START..).zip(&mut bytes) {
            *byte = cells.read(register);
        }
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let [MARK, VERSION, a, b, c, d, not_ended, ..] = bytes else { return None };
        (sum == 0xff).then(|| Self {
            build_id: [a, b, c, d],
            not_ended,
            progress: Progress::from_number(cells.read(PROGRESS)),
        })
    }

    /// Leaves it. The progress goes first: should the run be cut off in between, what adds up
    /// is all from before.
    pub fn write(&self, cells: &impl Cells) {
        let [a, b, c, d] = self.build_id;
        let mut bytes = [MARK, VERSION, a, b, c, d, self.not_ended, 0, 0, 0, 0, 0];
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[HEADER - 1] = 0xff_u8.wrapping_sub(sum);
        mark(cells, self.progress);
        for (register, byte) in (START..).zip(bytes) {
            cells.write(register, byte);
        }
    }
}

/// The run has come so far.
pub fn mark(cells: &impl Cells, progress: Progress) {
    cells.write(PROGRESS, progress.number());
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Memory(RefCell<[u8; 128]>);

    impl Cells for Memory {
        fn read(&self, register: u8) -> u8 {
            self.0.borrow()[usize::from(register)]
        }

        fn write(&self, register: u8, value: u8) {
            self.0.borrow_mut()[usize::from(register)] = value;
        }
    }

    const CRUMB: Breadcrumb =
        Breadcrumb { build_id: [1, 2, 3, 250], not_ended: 7, progress: Progress::Stage(9) };

    #[test]
    fn what_is_left_is_found_and_nothing_else_is_touched() {
        let memory = Memory(RefCell::new([0xaa; 128]));
        assert_eq!(Breadcrumb::read(&memory), None);
        CRUMB.write(&memory);
        assert_eq!(Breadcrumb::read(&memory), Some(CRUMB));
        mark(&memory, Progress::Capturing);
        assert_eq!(
            Breadcrumb::read(&memory).map(|crumb| crumb.progress),
            Some(Progress::Capturing)
        );
        let memory = memory.0.into_inner();
        assert!(memory[..0x60].iter().chain(&memory[0x6d..]).all(|byte| *byte == 0xaa));
    }

    #[test]
    fn a_byte_that_changed_is_noticed() {
        let memory = Memory(RefCell::new([0; 128]));
        CRUMB.write(&memory);
        for register in START..PROGRESS {
            let before = memory.read(register);
            memory.write(register, before ^ 0x10);
            assert_eq!(Breadcrumb::read(&memory), None, "{register:#x}");
            memory.write(register, before);
        }
        assert!(Breadcrumb::read(&memory).is_some());
    }

    #[test]
    fn every_number_means_one_thing() {
        for number in 0..=255 {
            assert_eq!(Progress::from_number(number).number(), number);
        }
        assert!(!Progress::Crashing.is_an_end() && !Progress::Other(200).is_an_end());
    }
}
