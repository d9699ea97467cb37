//! The local APIC's timer: an interrupt every so often, on each CPU for itself.

use x2apic::lapic::{TimerDivide, TimerMode};

use super::apic;

/// Counts while `wait` runs, on the running CPU, without interrupts; `None` when the timer
/// cannot be set up or does not move. It counts at a sixteenth of its input clock.
#[must_use]
pub fn count_during(wait: impl FnOnce()) -> Option<u32> {
    let mut apic = apic::local().ok()?;
    // SAFETY: this CPU's own timer, masked; its count means nothing to anyone else.
    let left = unsafe {
        apic.disable_timer();
        apic.set_timer_mode(TimerMode::OneShot);
        apic.set_timer_divide(TimerDivide::Div16);
        apic.set_timer_initial(u32::MAX);
        wait();
        let left = apic.timer_current();
        apic.set_timer_initial(0);
        left
    };
    Some(u32::MAX - left).filter(|&counted| counted != 0)
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
