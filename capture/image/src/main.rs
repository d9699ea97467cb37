//! The capture image: the second program of a machine whose first one has crashed.
//!
//! It is loaded into reserved memory long before anything goes wrong, and entered by the
//! crashing CPU with one pointer. From there it tells a short story, which the function
//! [`capture`] below is the table of contents of:
//!
//! 1. **guard**: descriptor tables of its own, so that its own mistakes have an end.
//! 2. **receive**: check the hand-off and everything it leads to.
//! 3. **settle**: move into page tables of its own, where old memory is read-only.
//! 4. **plan**: which memory goes into the dump, and what its header says.
//! 5. **write**: find a disk with a dump area and send memory to it, by DMA from where it
//!    lies; flush, seal. When the first stage is sealed, call the stopped CPUs that can still
//!    work, and say what has been kept back for it.
//! 6. **finish**: say how it went, and follow the policy.
//!
//! When a step fails there are last words on the console instead of a dump, and then the
//! policy all the same. When the appliance arms it has all of this rehearsed (`rehearsal.rs`). The
//! entry contract is in `machine::capture`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod finish;
#[cfg(target_os = "none")]
mod helpers;
#[cfg(target_os = "none")]
mod hw_watchdog;
#[cfg(target_os = "none")]
mod in_flight;
#[cfg(target_os = "none")]
mod physical;
#[cfg(target_os = "none")]
mod pvpanic;
#[cfg(target_os = "none")]
mod receive;
#[cfg(target_os = "none")]
mod rehearsal;
#[cfg(target_os = "none")]
mod rescue;
#[cfg(target_os = "none")]
mod screen;
#[cfg(target_os = "none")]
mod search;
#[cfg(target_os = "none")]
mod write;

#[cfg(target_os = "none")]
machine::capture_main!(capture);

#[cfg(target_os = "none")]
fn capture(argument: u64, kind: u64) -> ! {
    let entered_tsc = machine::cpu::rdtsc();
    fault::install();
    let crash = match receive::receive(argument, kind) {
        Ok(crash) => crash,
        Err(refusal) => finish::without_dump(format_args!("{refusal}")),
    };
    pvpanic::taken_over(crash.facts.pvpanic_port);
    let zero_page = match receive::settle(&crash) {
        Ok(zero_page) => zero_page,
        Err(problem) => finish::without_dump(format_args!("{problem}")),
    };
    let settled_tsc = machine::cpu::rdtsc();
    screen::find(crash.facts);
    hw_watchdog::take_over(crash.facts);
    let plan = match write::plan(&crash, zero_page, [entered_tsc, settled_tsc]) {
        Ok(plan) => plan,
        Err(problem) => finish::without_dump(format_args!("{problem}")),
    };
    match search::write(plan) {
        Ok(()) => finish::follow_policy(),
        Err(problem) => finish::without_dump(format_args!("{problem}")),
    }
}

/// On a host there is no crash to capture.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the capture image runs on bare metal; build it for x86_64-unknown-none");
}
