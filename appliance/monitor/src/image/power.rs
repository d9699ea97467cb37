//! CPUs that are off, and the machine's power.

use epitaph_monitor::Frame;

use super::{gic, mmio, processor, state};

/// The PL061 that only secure code sees: pin 0 switches the machine off, pin 1 resets it.
const GPIO: usize = 0x090b_0000;
/// Directions of its pins; 1 is an output (Arm DDI 0190, PL061, table 3-1).
const DIRECTION: usize = GPIO + 0x400;
const OFF_PIN: usize = 0;
const RESET_PIN: usize = 1;

/// Waits, as a CPU that is off, until a `CPU_ON` names it, then makes `frame` its start.
///
/// The wait is a `wfi` that only the monitor's own interrupts end: the client's are switched
/// off in the CPU interface, as a power-off would have it.
pub fn wait(cpu: usize, frame: &mut Frame) {
    gic::ignore_client();
    let start = loop {
        while let Some(interrupt) = gic::acknowledge() {
            gic::end(interrupt);
        }
        if let Some(found) = state::with(cpu, |monitor, _| {
            monitor.start(cpu).map(|start| (start, monitor.settings().client))
        }) {
            break found;
        }
        processor::wait_for_interrupt();
    };
    let (start, client) = start;
    processor::reset_client();
    *frame = Frame::starting(client, start.entry, start.argument);
}

/// Switches the machine off.
pub fn system_off() -> ! {
    pull(OFF_PIN)
}

/// Resets the machine.
pub fn system_reset() -> ! {
    pull(RESET_PIN)
}

/// Raises one pin. QEMU acts on the edge, from its main loop.
fn pull(pin: usize) -> ! {
    let bit = 1_usize << pin;
    // The address of the data register holds a mask of pins, from bit 2 on.
    let data = GPIO + (bit << 2);
    mmio::write(DIRECTION, bit as u32);
    mmio::write(data, 0_u32);
    mmio::write(data, bit as u32);
    loop {
        processor::wait_for_interrupt();
    }
}
