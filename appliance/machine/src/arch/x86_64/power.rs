//! Reset and power-off: what ACPI said at boot, then the ways every PC has.

use handoff::PowerFacts;

use super::{cpu, port};

/// ACPI 6.5 §4.8.3.2.1: SLP_EN.
const SLEEP_ENABLE: u16 = 1 << 13;
/// ACPI 6.5 §4.8.3.7: SLP_EN of the sleep control register.
const SLEEP_CONTROL_ENABLE: u8 = 1 << 5;
/// FADT address space identifiers (ACPI 6.5 §5.2.3.2).
const SPACE_MEMORY: u8 = 0;
const SPACE_IO: u8 = 1;

/// Polls before a method that did not work is given up.
const PATIENCE: u32 = 2_000_000;

fn wait() {
    for _ in 0..PATIENCE {
        cpu::pause();
    }
}

fn write_byte(space: u8, address: u64, value: u8) {
    match space {
        SPACE_IO => port::write8(address as u16, value),
        SPACE_MEMORY if address != 0 => {
            // SAFETY: the firmware's FADT names this byte as a register; it was validated as
            // such at boot, and both images map it. Nothing of ours lies there.
            unsafe { (address as *mut u8).write_volatile(value) };
        }
        _ => {}
    }
}

/// Switches the machine off; halts when nothing works.
pub fn power_off(facts: &PowerFacts) -> ! {
    cpu::interrupts_off();
    if facts.sleep_control != 0 {
        let value = (facts.sleep_type_a << 2) | SLEEP_CONTROL_ENABLE;
        write_byte(facts.sleep_space, facts.sleep_control, value);
        wait();
    }
    if facts.pm1a_control != 0 {
        port::write16(facts.pm1a_control, (u16::from(facts.sleep_type_a) << 10) | SLEEP_ENABLE);
        if facts.pm1b_control != 0 {
            let value = (u16::from(facts.sleep_type_b) << 10) | SLEEP_ENABLE;
            port::write16(facts.pm1b_control, value);
        }
        wait();
    }
    cpu::halt_forever()
}

/// Resets the machine: FADT reset register, port 0xCF9, the 8042, then a triple fault.
pub fn reset(facts: &PowerFacts) -> ! {
    cpu::interrupts_off();
    if facts.reset_address != 0 {
        write_byte(facts.reset_space, facts.reset_address, facts.reset_value);
        wait();
    }
    // Intel ICH9 data sheet §13.7.5: hard reset, then with the CPU reset bit.
    port::write8(0xcf9, 0x02);
    port::write8(0xcf9, 0x06);
    wait();
    // IBM PC/AT: the keyboard controller pulses the reset line.
    port::write8(0x64, 0xfe);
    wait();
    // SAFETY: an empty IDT and an exception: the processor shuts down, the board resets it.
    unsafe {
        let pointer = [0u8; 10];
        core::arch::asm!("lidt [{}]", "ud2", in(reg) pointer.as_ptr(), options(noreturn));
    }
}
