//! The local APIC's timer: an interrupt every so often, on each CPU for itself.

use x2apic::lapic::{TimerDivide, TimerMode};

use super::{apic, cpu};
use epitaph_firmware::rates::{Interval, RateError};

/// Counts while `wait` runs, on the running CPU, without interrupts, and how long that was by
/// the time-stamp counter. It counts at a sixteenth of its input clock.
///
/// # Errors
/// The timer cannot be set up or does not move, or it was not counting while `wait` ran.
pub fn count_during(wait: impl FnOnce()) -> Result<(u32, Interval), RateError> {
    let mut apic = apic::local().map_err(|_| RateError::Absent)?;
    // SAFETY: this CPU's own timer, masked; its count means nothing to anyone else.
    let (begin, end, left) = unsafe {
        apic.disable_timer();
        apic.set_timer_mode(TimerMode::OneShot);
        apic.set_timer_divide(TimerDivide::Div16);
        let before = cpu::rdtsc();
        apic.set_timer_initial(u32::MAX);
        let begin = (before, cpu::rdtsc());
        wait();
        let before = cpu::rdtsc();
        let left = apic.timer_current();
        let end = (before, cpu::rdtsc());
        apic.set_timer_initial(0);
        (begin, end, left)
    };
    let counted = u32::MAX - left;
    if counted == 0 {
        return Err(RateError::Absent);
    }
    let interval = Interval::between(begin, end).ok_or(RateError::Disturbed)?;
    Ok((counted, interval))
}

/// Starts the running CPU's timer: an interrupt on [`apic::VECTOR_TIMER`] each `count`
/// counts, as [`count_during`] counts them.
///
/// # Errors
/// When the timer cannot be set up.
pub fn start(count: u32) -> Result<(), &'static str> {
    let mut apic = apic::local()?;
    // SAFETY: this CPU's own timer; its vector has a gate.
    unsafe {
        apic.set_timer_mode(TimerMode::Periodic);
        apic.set_timer_divide(TimerDivide::Div16);
        apic.enable_timer();
        apic.set_timer_initial(count);
    }
    Ok(())
}
