//! The breadcrumb: how far a run came, kept where a reset does not reach.
//!
//! Thirteen bytes of the battery-backed memory behind the calendar clock, at registers 0x60
//! to 0x6c: SeaBIOS, OVMF and QEMU use those below, up to 0x5f, and a PC's own checksum covers
//! 0x10 to 0x2d. Version 2:
//!
//! ```text
//! +0   0xe7
//! +1   version, 2; version 1 is read as well, and had zeros for crashes
//! +2   the first four bytes of the run's build-id
//! +6   runs before this one, in a row, that did not end
//! +7   crashes of late: how many before this run
//! +8   when the first of them was, in minutes of Unix time, the lower three bytes
//! +11  what makes the bytes so far add up to 0xff
//! +12  how far the run has come: see `RunProgress`
//! ```
//!
//! The last byte stands apart from the checksum: it is written while things go wrong, and one
//! byte is written or not. Both images write it.

/// The first register.
const START: u8 = 0x60;
const MARK: u8 = 0xe7;
const VERSION: u8 = 2;
const OLDEST: u8 = 1;
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
pub enum RunProgress {
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

impl RunProgress {
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

    /// Whether a run that came so far had crashed.
    #[must_use]
    pub const fn is_a_crash(self) -> bool {
        matches!(
            self,
            Self::Crashing | Self::Left | Self::Capturing | Self::Sealed | Self::LastWords
        )
    }

    /// Whether a run that came so far is over: its end was what it was to be.
    #[must_use]
    pub const fn is_an_end(self) -> bool {
        matches!(self, Self::Sealed | Self::LastWords | Self::Ended)
    }
}

/// Crashes of late, for who has no disk to count them on: those since a first one, for as long
/// as that counts as lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crashes {
    /// How many; 255 and more are one.
    pub count: u8,
    /// When the first was, in minutes of Unix time, as far as [`Crashes::MINUTES`] go.
    since: u32,
}

impl Crashes {
    /// The minutes that are kept: they come round after 31 years.
    const MINUTES: u32 = 0xff_ffff;

    /// With one more at `unix_time` in seconds. One that is more than `minutes` after the
    /// first is the first of others; at an unknown time, 0, nobody can tell, and nothing is
    /// added.
    #[must_use]
    pub const fn and_one_at(self, unix_time: u64, minutes: u32) -> Self {
        if unix_time == 0 {
            return self;
        }
        let now = (unix_time / 60) as u32 & Self::MINUTES;
        if self.count == 0 || now.wrapping_sub(self.since) & Self::MINUTES > minutes {
            return Self { count: 1, since: now };
        }
        Self { count: self.count.saturating_add(1), since: self.since }
    }
}

/// What a run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breadcrumb {
    /// The first bytes of its build-id.
    pub build_id: [u8; 4],
    /// How many before it, in a row, did not end.
    pub not_ended: u8,
    /// Crashes before it.
    pub crashes: Crashes,
    /// How far it came.
    pub progress: RunProgress,
}

impl Breadcrumb {
    /// What the last run left; `None` where there was none, or what it left does not add up.
    pub fn read(cells: &impl Cells) -> Option<Self> {
        let mut bytes = [0; HEADER];
        for (register, byte) in (START..).zip(&mut bytes) {
            *byte = cells.read(register);
        }
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let [MARK, OLDEST..=VERSION, a, b, c, d, not_ended, count, x, y, z, _] = bytes else {
            return None;
        };
        (sum == 0xff).then(|| Self {
            build_id: [a, b, c, d],
            not_ended,
            crashes: Crashes { count, since: u32::from_le_bytes([x, y, z, 0]) },
            progress: RunProgress::from_number(cells.read(PROGRESS)),
        })
    }

    /// Leaves it. The progress goes first: should the run be cut off in between, what adds up
    /// is all from before.
    pub fn write(&self, cells: &impl Cells) {
        let [a, b, c, d] = self.build_id;
        let Crashes { count, since } = self.crashes;
        let [x, y, z, _] = since.to_le_bytes();
        let mut bytes = [MARK, VERSION, a, b, c, d, self.not_ended, count, x, y, z, 0];
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[HEADER - 1] = 0xff_u8.wrapping_sub(sum);
        mark(cells, self.progress);
        for (register, byte) in (START..).zip(bytes) {
            cells.write(register, byte);
        }
    }
}

/// The run has come so far.
pub fn mark(cells: &impl Cells, progress: RunProgress) {
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

    const CRUMB: Breadcrumb = Breadcrumb {
        build_id: [1, 2, 3, 250],
        not_ended: 7,
        crashes: Crashes { count: 3, since: 0x12_3456 },
        progress: RunProgress::Stage(9),
    };

    #[test]
    fn crashes_count_as_long_as_they_are_of_late() {
        let at = |crashes: Crashes, minute: u64| crashes.and_one_at(minute * 60, 10);
        // The three bytes come round between the first and the second.
        let round = u64::from(Crashes::MINUTES);
        let one = at(Crashes::default(), 5 * (round + 1) + round - 1);
        let two = at(one, 6 * (round + 1) + 7);
        assert_eq!((one.count, two.count, two.since), (1, 2, one.since));
        assert_eq!(at(two, 6 * (round + 1) + 8).count, 3);
        assert_eq!(at(two, 6 * (round + 1) + 9).count, 1, "the first was 11 minutes ago");
        assert_eq!(two.and_one_at(0, 10), two, "without a clock");
        assert_eq!(at(Crashes { count: 255, ..two }, 6 * (round + 1)).count, 255);
    }

    #[test]
    fn a_breadcrumb_of_the_first_version_is_read() {
        let memory = Memory(RefCell::new([0; 128]));
        let crumb = Breadcrumb { crashes: Crashes::default(), ..CRUMB };
        crumb.write(&memory);
        let sum = memory.read(START + 11);
        memory.write(START + 1, 1);
        memory.write(START + 11, sum + 1);
        assert_eq!(Breadcrumb::read(&memory), Some(crumb));
    }

    #[test]
    fn what_is_left_is_found_and_nothing_else_is_touched() {
        let memory = Memory(RefCell::new([0xaa; 128]));
        assert_eq!(Breadcrumb::read(&memory), None);
        CRUMB.write(&memory);
        assert_eq!(Breadcrumb::read(&memory), Some(CRUMB));
        mark(&memory, RunProgress::Capturing);
        assert_eq!(
            Breadcrumb::read(&memory).map(|crumb| crumb.progress),
            Some(RunProgress::Capturing)
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
            assert_eq!(RunProgress::from_number(number).number(), number);
        }
        assert!(!RunProgress::Crashing.is_an_end() && !RunProgress::Other(200).is_an_end());
    }
}
