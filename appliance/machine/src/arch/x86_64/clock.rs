//! How fast the time-stamp counter runs.

use super::{cpu, port, rtc};

/// Where the figure came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// CPUID leaf 15h: the crystal's rate and its ratio to the counter.
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
}

/// What a time-stamp counter can plausibly run at.
const PLAUSIBLE: core::ops::RangeInclusive<u64> = 200_000_000..=10_000_000_000;
/// Taken when nothing else works: windows are then at least in the right magnitude.
const ASSUMED_HZ: u64 = 2_000_000_000;

/// Two measurements that differ by less than this part agree; a busy host disturbs both
/// alike only by accident.
const AGREEMENT: u64 = 64;
/// Measurements at most: 10 ms each.
const MOST_TRIES: u32 = 20;

/// Intel 8254: input clock in Hz.
const PIT_HZ: u64 = 1_193_182;
/// ACPI 6.5 §4.8.3.3: the power-management timer's rate in Hz, and its guaranteed 24 bits.
const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// Time-outs in counter ticks: no rate in [`PLAUSIBLE`] takes as long for 10 ms.
const PATIENCE_TICKS: u64 = 400_000_000;

/// Measures the rate. `pm_timer` is the I/O port of the ACPI timer, where there is one.
///
/// Each reference is counted several times and the *lowest* result taken: a disturbance
/// (a busy host, an SMI) can only make the counter seem faster. A reference that answers
/// outside what is plausible, or that does not move, is passed over.
#[must_use]
pub fn calibrate(pm_timer: Option<u16>) -> Rate {
    let plausible = |source, hz: Option<u64>| {
        hz.filter(|hz| PLAUSIBLE.contains(hz)).map(|hz| Rate { hz, source })
    };
    plausible(Source::Cpuid, from_cpuid())
        .or_else(|| plausible(Source::Hypervisor, from_hypervisor()))
        .or_else(|| plausible(Source::Pit, best_of(pit_once)))
        .or_else(|| {
            let port = pm_timer?;
            plausible(Source::PmTimer, best_of(|| pm_timer_once(port)))
        })
        .or_else(|| plausible(Source::PitTick, best_of(pit_tick_once)))
        .or_else(|| plausible(Source::Rtc, rtc_once()))
        .unwrap_or(Rate { hz: ASSUMED_HZ, source: Source::Assumed })
}

fn from_cpuid() -> Option<u64> {
    if !cpu::has_cpuid(0x15) {
        return None;
    }
    let leaf = cpu::cpuid(0x15, 0);
    (leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0)
        .then(|| u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

fn from_hypervisor() -> Option<u64> {
    // CPUID 1 ECX bit 31: running under a hypervisor, so its leaves may be asked.
    if cpu::cpuid(1, 0).ecx >> 31 == 0 || !cpu::has_cpuid(0x4000_0010) {
        return None;
    }
    Some(u64::from(cpu::cpuid(0x4000_0010, 0).eax) * 1000)
}

/// Measures until two results agree, and takes the lowest of all.
fn best_of(mut measure: impl FnMut() -> Option<u64>) -> Option<u64> {
    let mut best = u64::MAX;
    for _ in 0..MOST_TRIES {
        let hz = measure().filter(|hz| PLAUSIBLE.contains(hz))?;
        let agree = hz.abs_diff(best) < hz / AGREEMENT;
        best = best.min(hz);
        if agree {
            break;
        }
    }
    Some(best)
}

fn pit_once() -> Option<u64> {
    const MILLISECONDS: u64 = 10;
    const COUNT: u64 = PIT_HZ * MILLISECONDS / 1000;
    // Gate of channel 2 on, speaker off (port 61h bits 0 and 1); mode 0, low then high byte.
    let control = port::read8(0x61) & !0x02;
    port::write8(0x61, control & !0x01);
    port::write8(0x43, 0xb0);
    port::write8(0x42, (COUNT & 0xff) as u8);
    port::write8(0x42, (COUNT >> 8) as u8);
    port::write8(0x61, control | 0x01);
    let start = cpu::rdtsc();
    // Bit 5 of port 61h is the output: 0 while counting.
    if port::read8(0x61) & 0x20 != 0 {
        return None;
    }
    loop {
        let elapsed = cpu::rdtsc().wrapping_sub(start);
        if port::read8(0x61) & 0x20 != 0 {
            let elapsed = cpu::rdtsc().wrapping_sub(start);
            return Some(elapsed * PIT_HZ / COUNT);
        }
        if elapsed > PATIENCE_TICKS {
            return None;
        }
    }
}

fn pm_timer_once(timer: u16) -> Option<u64> {
    let ticks = (PM_TIMER_HZ / 100) as u32;
    let first = port::read32(timer) & PM_TIMER_MASK;
    let start = cpu::rdtsc();
    loop {
        let passed = (port::read32(timer) & PM_TIMER_MASK).wrapping_sub(first) & PM_TIMER_MASK;
        let elapsed = cpu::rdtsc().wrapping_sub(start);
        if passed >= ticks {
            return Some(elapsed * PM_TIMER_HZ / u64::from(passed));
        }
        if elapsed > PATIENCE_TICKS {
            return None;
        }
    }
}

/// As [`pit_once`], by channel 0: it counts all the time, so it serves where port 61h has no
/// gate for channel 2. Its interrupt is masked at the 8259.
fn pit_tick_once() -> Option<u64> {
    const TICKS: u16 = (PIT_HZ / 100) as u16;
    // Channel 0, low then high byte, mode 2, from 65536 down.
    port::write8(0x43, 0x34);
    port::write8(0x40, 0);
    port::write8(0x40, 0);
    let count = || {
        // Latch channel 0, then read what was latched.
        port::write8(0x43, 0x00);
        u16::from_le_bytes([port::read8(0x40), port::read8(0x40)])
    };
    let first = count();
    let start = cpu::rdtsc();
    loop {
        // It counts down and wraps after 55 ms; this ends after 10.
        let passed = first.wrapping_sub(count());
        let elapsed = cpu::rdtsc().wrapping_sub(start);
        if passed >= TICKS {
            return Some(elapsed * PIT_HZ / u64::from(passed));
        }
        if elapsed > PATIENCE_TICKS {
            return None;
        }
    }
}

/// Counts from one second of the calendar clock to the next. Slow, so it comes last.
fn rtc_once() -> Option<u64> {
    /// No rate in [`PLAUSIBLE`] takes as long for a second.
    const PATIENCE: u64 = 11_000_000_000;
    /// Register 0 counts seconds; all bits are set where there is no clock.
    const SECONDS: u8 = 0;
    let next_second = || {
        let (first, start) = (rtc::read(SECONDS), cpu::rdtsc());
        loop {
            let now = rtc::read(SECONDS);
            let at = cpu::rdtsc();
            if now != first {
                return Some(at);
            }
            if now == u8::MAX || at.wrapping_sub(start) > PATIENCE {
                return None;
            }
        }
    };
    let from = next_second()?;
    Some(next_second()?.wrapping_sub(from))
}
