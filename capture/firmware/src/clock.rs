//! Rate of the time-stamp counter.
//!
//! The processor or a hypervisor may state it ([`stated`]); otherwise it is measured against
//! timers whose rate is known ([`find`]).

use core::ops::RangeInclusive;

use crate::acpi::PmTimer;
use crate::hardware::{Ports, Processor};
use crate::rates::{Interval, RateError, Span, settle};

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
    /// Returns a word for the console.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Counts a second.
    pub hz: u64,
    /// Where it is from.
    pub source: Source,
    /// How far off it may be, in Hz, when no two measurements agreed; `None` when two did, or
    /// nothing was measured.
    pub unsure: Option<u64>,
}

/// Rates in Hz that a time-stamp counter can plausibly run at.
pub const PLAUSIBLE: RangeInclusive<u64> = 200_000_000..=10_000_000_000;
/// Taken when nothing else works: windows are then at least in the right magnitude.
const ASSUMED_HZ: u64 = 2_000_000_000;

/// CPUID leaves (Intel SDM vol. 2, CPUID; the last one is a convention of hypervisors).
const LEAF_FEATURES: u32 = 1;
const LEAF_RATIO: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;
const LEAF_HYPERVISOR: u32 = 0x4000_0010;

/// Intel 8254: input clock in Hz, and its ports.
const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_0: u16 = 0x40;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_CONTROL: u16 = 0x43;
/// System control port B: gate of channel 2 in bit 0, speaker in bit 1, output of the channel
/// in bit 5.
const PIT_GATE: u16 = 0x61;
/// ACPI 6.5 §4.8.3.3: the power-management timer's rate in Hz.
const PM_TIMER_HZ: u64 = 3_579_545;
/// Index and data of the calendar clock (MC146818); register 0 counts seconds.
const RTC_INDEX: u16 = 0x70;
const RTC_DATA: u16 = 0x71;
const RTC_SECONDS: u8 = 0;
/// Length of one measurement by anything but the calendar clock. A busy host may run a CPU
/// for no longer at a time.
const MILLISECONDS: u64 = 2;
/// Time-out of such a measurement, in counter ticks: no rate in [`PLAUSIBLE`] takes as long.
const PATIENCE_TICKS: u64 = 400_000_000;
/// Time-out of a second of the calendar clock, in counter ticks.
const PATIENCE_SECOND: u64 = 11_000_000_000;
/// Reads without a change, over all of the time-out, after which a timer counts as absent.
const MANY_READS: u32 = 1000;
/// Reads of one measurement, at most: ends it where the counter itself stands still.
const MAX_READS: u32 = 100_000_000;

/// Timers that the rate may be measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timers {
    /// All. Where none of the quick ones works, this takes some seconds.
    All,
    /// Those that answer within milliseconds: for code that has no seconds to spare.
    Quick,
}

/// Returns ticks of a counter of `hz` in nanoseconds; 0 for an unknown rate, `u64::MAX` for
/// more than 584 years.
#[must_use]
#[inline(never)]
pub fn nanoseconds(ticks: u64, hz: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).checked_div(u128::from(hz)).unwrap_or(0);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Finds the rate. What the processor or a hypervisor states comes first, then what
/// measurements agree on ([`settle`]). When no timer gives two that agree, the narrowest of all
/// measurements is taken, and said to be unsure.
///
/// Every wait is bounded, by the counter and by the number of reads.
#[must_use]
pub fn find(
    hardware: &(impl Ports + Processor),
    pm_timer: Option<PmTimer>,
    timers: Timers,
) -> Rate {
    if let Some(rate) = stated(hardware) {
        return rate;
    }
    let mut best = Rate { hz: ASSUMED_HZ, source: Source::Assumed, unsure: Some(u64::MAX) };
    for source in [Source::Pit, Source::PmTimer, Source::PitTick, Source::Rtc] {
        if source == Source::Rtc && timers == Timers::Quick {
            continue;
        }
        // No table of functions: the proof about crash code follows no call through a pointer.
        let estimate = match source {
            Source::Pit => settle(PLAUSIBLE, || pit_once(hardware)),
            Source::PmTimer => {
                settle(PLAUSIBLE, || pm_timer_once(hardware, pm_timer.ok_or(RateError::Absent)?))
            }
            Source::PitTick => settle(PLAUSIBLE, || pit_tick_once(hardware)),
            _ => settle(PLAUSIBLE, || rtc_once(hardware)),
        };
        let Some(estimate) = estimate else { continue };
        if estimate.agreed {
            return Rate { hz: estimate.hz, source, unsure: None };
        }
        if best.unsure.is_some_and(|unsure| estimate.error < unsure) {
            best = Rate { hz: estimate.hz, source, unsure: Some(estimate.error) };
        }
    }
    best
}

/// Returns the rate that the processor or a hypervisor states, if it is plausible.
#[must_use]
pub fn stated(processor: &impl Processor) -> Option<Rate> {
    let told =
        [(Source::Cpuid, by_processor(processor)), (Source::Hypervisor, by_hypervisor(processor))];
    told.into_iter().find_map(|(source, hz)| {
        let hz = hz.filter(|hz| PLAUSIBLE.contains(hz))?;
        Some(Rate { hz, source, unsure: None })
    })
}

fn by_processor(processor: &impl Processor) -> Option<u64> {
    let [denominator, numerator, crystal_hz, _] = processor.cpuid(LEAF_RATIO)?.map(u64::from);
    if denominator == 0 || numerator == 0 {
        return None;
    }
    if crystal_hz != 0 {
        // Both factors have 32 bits.
        return (crystal_hz * numerator).checked_div(denominator);
    }
    // Intel SDM vol. 3, 20.7.3: without the crystal's rate the counter has that of the
    // processor's base frequency, which leaf 16h has in MHz.
    let [base_mhz, ..] = processor.cpuid(LEAF_FREQUENCY)?;
    Some(u64::from(base_mhz & 0xffff) * 1_000_000)
}

fn by_hypervisor(processor: &impl Processor) -> Option<u64> {
    // CPUID 1 ECX bit 31: running under a hypervisor, so its leaves may be asked.
    let [_, _, features, _] = processor.cpuid(LEAF_FEATURES)?;
    if features >> 31 == 0 {
        return None;
    }
    let [khz, ..] = processor.cpuid(LEAF_HYPERVISOR)?;
    Some(u64::from(khz) * 1000)
}

/// Reads of one timer, with the counter around each.
struct Reader<'h, H> {
    hardware: &'h H,
    started: u64,
    patience: u64,
    reads: u32,
    /// The counter before and behind the last read.
    last: (u64, u64),
    /// The longest from one read's begin to the end of the next.
    longest: u64,
}

impl<'h, H: Processor> Reader<'h, H> {
    /// Waits for `patience` ticks at most.
    fn new(hardware: &'h H, patience: u64) -> Self {
        let now = hardware.counter();
        Self { hardware, started: now, patience, reads: 0, last: (now, now), longest: 0 }
    }

    /// Does `read` once, between two readings of the counter.
    fn read<T>(&mut self, read: impl FnOnce() -> T) -> T {
        let before = self.hardware.counter();
        let value = read();
        let after = self.hardware.counter();
        if self.reads > 0 {
            self.longest = self.longest.max(after.wrapping_sub(self.last.0));
        }
        self.last = (before, after);
        self.reads = self.reads.saturating_add(1);
        value
    }

    /// Fails when it has taken too long; `moved` says whether the timer ever did.
    fn wait(&self, moved: bool) -> Result<(), RateError> {
        let waited = self.last.1.wrapping_sub(self.started);
        if waited <= self.patience && self.reads < MAX_READS {
            return Ok(());
        }
        let absent = !moved && self.reads >= MANY_READS;
        Err(if absent { RateError::Absent } else { RateError::Disturbed })
    }

    /// Returns the counter's rate by `count` of a clock of `hz` from `begin` to `end`.
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

fn pit_once(hardware: &(impl Ports + Processor)) -> Result<Span, RateError> {
    const COUNT: u64 = PIT_HZ * MILLISECONDS / 1000;
    // Gate of channel 2 off, speaker off; mode 0, low then high byte.
    let control = hardware.read8(PIT_GATE) & !0x02;
    hardware.write8(PIT_GATE, control & !0x01);
    hardware.write8(PIT_CONTROL, 0xb0);
    hardware.write8(PIT_CHANNEL_2, (COUNT & 0xff) as u8);
    hardware.write8(PIT_CHANNEL_2, (COUNT >> 8) as u8);
    let mut reader = Reader::new(hardware, PATIENCE_TICKS);
    reader.read(|| hardware.write8(PIT_GATE, control | 0x01));
    let begin = reader.last;
    // The output is 0 while it counts.
    let ended = || hardware.read8(PIT_GATE) & 0x20 != 0;
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

fn pm_timer_once(hardware: &(impl Ports + Processor), timer: PmTimer) -> Result<Span, RateError> {
    const TICKS: u32 = (PM_TIMER_HZ * MILLISECONDS / 1000) as u32;
    let mask = if timer.wide { u32::MAX } else { 0x00ff_ffff };
    let mut reader = Reader::new(hardware, PATIENCE_TICKS);
    let first = reader.read(|| hardware.read32(timer.port));
    let begin = reader.last;
    loop {
        let passed = reader.read(|| hardware.read32(timer.port)).wrapping_sub(first) & mask;
        if passed >= TICKS {
            return reader.rate(begin, reader.last, passed.into(), PM_TIMER_HZ);
        }
        reader.wait(passed > 0)?;
    }
}

/// Measures by channel 0 of the 8254: it counts all the time, so it serves where port 61h has
/// no gate for channel 2. Its interrupt is masked at the 8259.
fn pit_tick_once(hardware: &(impl Ports + Processor)) -> Result<Span, RateError> {
    const TICKS: u16 = (PIT_HZ * MILLISECONDS / 1000) as u16;
    // Channel 0, low then high byte, mode 2, from 65536 down.
    hardware.write8(PIT_CONTROL, 0x34);
    hardware.write8(PIT_CHANNEL_0, 0);
    hardware.write8(PIT_CHANNEL_0, 0);
    let mut reader = Reader::new(hardware, PATIENCE_TICKS);
    let count = |reader: &mut Reader<'_, _>| {
        // Latched in between, and then read in two halves: the latch has the moment.
        reader.read(|| hardware.write8(PIT_CONTROL, 0x00));
        u16::from_le_bytes([hardware.read8(PIT_CHANNEL_0), hardware.read8(PIT_CHANNEL_0)])
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
fn rtc_once(hardware: &(impl Ports + Processor)) -> Result<Span, RateError> {
    // Bit 7 of the index would mask NMIs; it stays 0.
    let seconds = || {
        hardware.write8(RTC_INDEX, RTC_SECONDS);
        hardware.read8(RTC_DATA)
    };
    let mut reader = Reader::new(hardware, PATIENCE_SECOND);
    let mut now = reader.read(seconds);
    let mut edge = |reader: &mut Reader<'_, _>| {
        let before = now;
        loop {
            let last = reader.last;
            now = reader.read(seconds);
            // All bits are set where there is no clock.
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
