//! What happens when there is nothing left to do.

use handoff::PowerFacts;
use handoff::facts::Policy;
use machine::breadcrumb::RunProgress;
use machine::cell::SetOnce;
use machine::{cpu, power};

use crate::arming::{arm, last_run};
use crate::crash::say;
use crate::firmware::cmdline::{CrashPolicy, OnFinish};
use crate::watch::hw_watchdog;
use crate::{crash, log, options};

static FACTS: SetOnce<PowerFacts> = SetOnce::new();

/// Keeps what ACPI says about reset and power-off.
pub fn set_facts(facts: PowerFacts) {
    FACTS.set(facts);
}

/// What ACPI says about reset and power-off; nothing before it was asked.
pub fn facts() -> PowerFacts {
    FACTS.get().copied().unwrap_or_default()
}

/// What to do after a crash.
pub fn crash_policy() -> Policy {
    match options().map(|options| options.crash_policy) {
        Some(CrashPolicy::Poweroff) => Policy::POWEROFF,
        Some(CrashPolicy::Halt) => Policy::HALT,
        Some(CrashPolicy::Reboot) | None => Policy::REBOOT,
    }
}

/// Stops every other CPU by the ladder: the run has ended in good order.
fn stop_for_good() {
    crash::stop_for_good();
    last_run::mark(RunProgress::Ended);
    hw_watchdog::disarm();
}

/// Ends a crash that could not be captured.
pub fn after_crash() -> ! {
    let policy = match (crash_policy(), last_run::is_loop()) {
        (Policy::REBOOT, Some((crashes, minutes))) => {
            say!("crash: crash loop: {crashes} crashes within {minutes} minutes, staying down");
            Policy::HALT
        }
        (policy, _) => policy,
    };
    match policy {
        Policy::POWEROFF => {
            hw_watchdog::disarm();
            say!("crash: switching off (crash_policy=poweroff)");
            power::power_off(&facts())
        }
        Policy::REBOOT => {
            say!("crash: resetting (crash_policy=reboot)");
            power::reset(&facts())
        }
        _ => {
            hw_watchdog::disarm();
            say!("crash: halted");
            cpu::halt_forever()
        }
    }
}

/// Ends a crash whose policy crashed as well, by the sealed facts alone: what ordinary memory
/// holds of the policy, of the watchdog or of ACPI is damaged.
pub fn after_crash_by_facts() -> ! {
    let Ok(facts) = arm::sealed() else { cpu::halt_forever() };
    match facts.policy {
        Policy::POWEROFF => power::power_off(&facts.power),
        Policy::REBOOT => power::reset(&facts.power),
        _ => cpu::halt_forever(),
    }
}

/// Ends a run whose workloads have finished; returns when it is to stay up.
pub fn after_finish() {
    match options().map(|options| options.on_finish) {
        Some(OnFinish::Poweroff) | None => {
            log!("finish: switching off (on_finish=poweroff)");
            power_off()
        }
        Some(OnFinish::Halt) => {
            stop_for_good();
            say!("finish: halted (on_finish=halt)");
            cpu::halt_forever()
        }
        Some(OnFinish::Idle) => log!("finish: idle (on_finish=idle)"),
    }
}

/// Stops every other CPU by the ladder, then switches the machine off.
pub fn power_off() -> ! {
    stop_for_good();
    say!("power: switching off");
    power::power_off(&facts())
}

/// Stops every other CPU by the ladder, then resets the machine.
pub fn reset() -> ! {
    stop_for_good();
    say!("power: resetting");
    power::reset(&facts())
}
