//! How fast the time-stamp counter runs.

use super::{cpu, port, rtc};
use crate::rates::{Estimate, Interval, RateError, Span, settle};

/// Where the figure came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// CPUID leaf 15h, the ratio of the counter to its crystal, with the crystal's rate from
    /// there or from leaf 16h.
    Cpuid,
    /// CPUID leaf 4000_0010h of a hypervisor.
    Hypervisor,
    /// Counted against channel 2 of the 8254.
    Pit,
    /// Counted against the ACPI power-management timer.
    PmTimer,
    /// Counted against channel 0 of the 8254, which has no gate.
    PitTick,
    /// Counted against the seconds of the calendar clock.
    Rtc,
    /// Nothing gave a plausible figure: assumed.
    Assumed,
}

impl Source {
    /// A word for the console.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpuid => "cpuid",
            Self::Hypervisor => "hypervisor",
            Self::Pit => "pit",
            Self::PmTimer => "pm-timer",
            Self::PitTick => "pit-tick",
            Self::Rtc => "rtc",
            Self::Assumed => "assumed",
        }
    }
}

/// The counter's rate and where it is from.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Counts a second.
    pub hz: u64,
    /// Where it is from.
    pub source: Source,
    /// How far off it may be, in Hz, when no two measurements agreed; `None` when two did, or
    /// nothing was measured.
    pub unsure: Option<u64>,
}

/// What a time-stamp counter can plausibly run at.
const PLAUSIBLE: core::ops::RangeInclusive<u64> = 200_000_000..=10_000_000_000;
/// Taken when nothing else works: windows are then at least in the right magnitude.
const ASSUMED_HZ: u64 = 2_000_000_000;

/// Intel 8254: input clock in Hz.
const PIT_HZ: u64 = 1_193_182;
/// ACPI 6.5 §4.8.3.3: the power-management timer's rate in Hz, and its guaranteed 24 bits.
const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// Length of one measurement by anything but the calendar clock. A busy host may run a CPU
/// for no longer at a time.
const MILLISECONDS: u64 = 2;
/// How long to wait for that, in counter ticks: no rate in [`PLAUSIBLE`] takes as long.
const PATIENCE_TICKS: u64 = 400_000_000;
/// The same for a second.
const PATIENCE_SECOND: u64 = 11_000_000_000;
/// What was read so often, and for so long, without moving does not move.
const MANY_READS: u32 = 1000;

/// Finds the rate. `pm_timer` is the I/O port of the ACPI timer, where there is one.
///
/// What the processor or a hypervisor says comes first, then what measurements agree on
/// ([`settle`]). When no reference gives two that agree, the narrowest of all measurements is
/// taken, and said to be unsure.
#[must_use]
pub fn calibrate(pm_timer: Option<u16>) -> Rate {
    let told = [(Source::Cpuid, from_cpuid()), (Source::Hypervisor, from_hypervisor())];
    for (source, hz) in told {
        if let Some(hz) = hz.filter(|hz| PLAUSIBLE.contains(hz)) {
            return Rate { hz, source, unsure: None };
        }
    }
    let measured: [(Source, &dyn Fn() -> Option<Estimate>); 4] = [
        (Source::Pit, &|| settle(PLAUSIBLE, pit_once)),
        (Source::PmTimer, &|| {
            settle(PLAUSIBLE, || pm_timer_once(pm_timer.ok_or(RateError::Absent)?))
        }),
        (Source::PitTick, &|| settle(PLAUSIBLE, pit_tick_once)),
        (Source::Rtc, &|| settle(PLAUSIBLE, rtc_once)),
    ];
    let mut best = Rate { hz: ASSUMED_HZ, source: Source::Assumed, unsure: Some(u64::MAX) };
    for (source, measure) in measured {
        let Some(estimate) = measure() else { continue };
        if estimate.agreed {
            return Rate { hz: estimate.hz, source, unsure: None };
        }
        if best.unsure.is_some_and(|unsure| estimate.error < unsure) {
            best = Rate { hz: estimate.hz, source, unsure: Some(estimate.error) };
        }
    }
    best
}

fn from_cpuid() -> Option<u64> {
    if !cpu::has_cpuid(0x15) {
        return None;
    }
    let ratio = cpu::cpuid(0x15, 0);
    if ratio.eax == 0 || ratio.ebx == 0 {
        return None;
    }
    if ratio.ecx != 0 {
        return Some(u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax));
    }
    // Intel SDM vol. 3, 20.7.3: without the crystal's rate the counter has that of the
    // processor's base frequency, which leaf 16h has in MHz.
    (cpu::has_cpuid(0x16)).then(|| u64::from(cpu::cpuid(0x16, 0).eax & 0xffff) * 1_000_000)
}

fn from_hypervisor() -> Option<u64> {
    // CPUID 1 ECX bit 31: running under a hypervisor, so its leaves may be asked.
    if cpu::cpuid(1, 0).ecx >> 31 == 0 || !cpu::has_cpuid(0x4000_0010) {
        return None;
    }
    Some(u64::from(cpu::cpuid(0x4000_0010, 0).eax) * 1000)
}

/// Reads of one reference, with the counter around each.
struct Reader {
    started: u64,
    patience: u64,
    reads: u32,
    /// The counter before and behind the last read.
    last: (u64, u64),
    /// The longest from one read's begin to the end of the next.
    longest: u64,
}

impl Reader {
    /// Waits for `patience` ticks at most.
    fn new(patience: u64) -> Self {
        let now = cpu::rdtsc();
        Self { started: now, patience, reads: 0, last: (now, now), longest: 0 }
    }

    /// Does `read` once, between two readings of the counter.
    fn read<T>(&mut self, read: impl FnOnce() -> T) -> T {
        let before = cpu::rdtsc();
        let value = read();
        let after = cpu::rdtsc();
        if self.reads > 0 {
            self.longest = self.longest.max(after.wrapping_sub(self.last.0));
        }
        self.last = (before, after);
        self.reads += 1;
        value
    }

    /// Fails when it has taken too long; `moved` says whether the reference ever did.
    fn wait(&self, moved: bool) -> Result<(), RateError> {
        if self.last.1.wrapping_sub(self.started) <= self.patience {
            return Ok(());
        }
        let absent = !moved && self.reads >= MANY_READS;
        Err(if absent { RateError::Absent } else { RateError::Disturbed })
    }

    /// The rate by `count` of a clock of `hz` from `begin` to `end`.
    fn rate(
        &self,
        begin: (u64, u64),
        end: (u64, u64),
        count: u64,
        hz: u64,
    ) -> Result<Span, RateError> {
        Interval::between(begin, end)
            .filter(|interval| !interval.was_mostly(self.longest))
            .and_then(|interval| interval.rate_by(count, hz))
            .ok_or(RateError::Disturbed)
    }
}

fn pit_once() -> Result<Span, RateError> {
    const COUNT: u64 = PIT_HZ * MILLISECONDS / 1000;
    // Gate of channel 2 on, speaker off (port 61h bits 0 and 1); mode 0, low then high byte.
    let control = port::read8(0x61) & !0x02;
    port::write8(0x61, control & !0x01);
    port::write8(0x43, 0xb0);
    port::write8(0x42, (COUNT & 0xff) as u8);
    port::write8(0x42, (COUNT >> 8) as u8);
    let mut reader = Reader::new(PATIENCE_TICKS);
    reader.read(|| port::write8(0x61, control | 0x01));
    let begin = reader.last;
    // Bit 5 of port 61h is the output: 0 while counting.
    let ended = || port::read8(0x61) & 0x20 != 0;
    if reader.read(ended) {
        let late = reader.last.1.wrapping_sub(begin.0) > PLAUSIBLE.start() * MILLISECONDS / 1000;
        return Err(if late { RateError::Disturbed } else { RateError::Absent });
    }
    loop {
        let low = reader.last;
        if reader.read(ended) {
            return reader.rate(begin, (low.0, reader.last.1), COUNT, PIT_HZ);
        }
        reader.wait(false)?;
    }
}

fn pm_timer_once(timer: u16) -> Result<Span, RateError> {
    const TICKS: u32 = (PM_TIMER_HZ * MILLISECONDS / 1000) as u32;
    let mut reader = Reader::new(PATIENCE_TICKS);
    let first = reader.read(|| port::read32(timer));
    let begin = reader.last;
    loop {
        let passed = reader.read(|| port::read32(timer)).wrapping_sub(first) & PM_TIMER_MASK;
        if passed >= TICKS {
            return reader.rate(begin, reader.last, passed.into(), PM_TIMER_HZ);
        }
        reader.wait(passed > 0)?;
    }
}

/// As [`pit_once`], by channel 0: it counts all the time, so it serves where port 61h has no
/// gate for channel 2. Its interrupt is masked at the 8259.
fn pit_tick_once() -> Result<Span, RateError> {
    const TICKS: u16 = (PIT_HZ * MILLISECONDS / 1000) as u16;
    // Channel 0, low then high byte, mode 2, from 65536 down.
    port::write8(0x43, 0x34);
    port::write8(0x40, 0);
    port::write8(0x40, 0);
    let mut reader = Reader::new(PATIENCE_TICKS);
    let count = |reader: &mut Reader| {
        // Latched in between, and then read in two halves: the latch has the moment.
        reader.read(|| port::write8(0x43, 0x00));
        u16::from_le_bytes([port::read8(0x40), port::read8(0x40)])
    };
    let first = count(&mut reader);
    let begin = reader.last;
    loop {
        // It counts down and wraps after 55 ms.
        let passed = first.wrapping_sub(count(&mut reader));
        if passed >= TICKS {
            return reader.rate(begin, reader.last, passed.into(), PIT_HZ);
        }
        reader.wait(passed > 0)?;
    }
}

/// Counts from one second of the calendar clock to the next. Slow, so it comes last.
fn rtc_once() -> Result<Span, RateError> {
    /// Register 0 counts seconds; all bits are set where there is no clock.
    const SECONDS: u8 = 0;
    let mut reader = Reader::new(PATIENCE_SECOND);
    let mut now = reader.read(|| rtc::read(SECONDS));
    let mut edge = |reader: &mut Reader| {
        let before = now;
        loop {
            let last = reader.last;
            now = reader.read(|| rtc::read(SECONDS));
            if now == u8::MAX {
                return Err(RateError::Absent);
            }
            if now != before {
                return Ok((last.0, reader.last.1));
            }
            reader.wait(false)?;
        }
    };
    let begin = edge(&mut reader)?;
    reader.started = reader.last.1;
    let end = edge(&mut reader)?;
    reader.rate(begin, end, 1, 1)
}
