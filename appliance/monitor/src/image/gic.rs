//! The interrupt controller, a GICv3 with two security states (Arm IHI 0069).
//!
//! SGIs 8–15 are of Group 0, which EL3 takes as FIQ; everything else is the client's.

use super::{mmio, processor};

/// The distributor.
pub const DISTRIBUTOR: usize = 0x0800_0000;
/// GICD_CTLR: both security states route by affinity; then Group 0 is on, which also opens the
/// gate of the other CPUs.
const ROUTE_BY_AFFINITY: u32 = 1 << 4 | 1 << 5;
/// The bit of GICD_CTLR that the other CPUs wait for: EnableGrp0.
pub const OPEN_BIT: u32 = 0;
/// GICD_CTLR: a write is still on its way (RWP).
const WRITE_PENDING: u32 = 1 << 31;
/// GICD_TYPER, whose bits 4–0 tell the number of registers for shared interrupts.
const TYPER: usize = DISTRIBUTOR + 0x4;
/// GICD_IGROUPR0.
const GROUPS: usize = DISTRIBUTOR + 0x80;

/// The redistributors, one for each CPU, in the order of CPUs.
pub const REDISTRIBUTORS: usize = 0x080a_0000;
/// Bytes between two of them: two frames of 64 KiB.
pub const REDISTRIBUTOR_SIZE: usize = 0x2_0000;
/// GICR_TYPER, with the affinity of the CPU in bits 63–32.
pub const REDISTRIBUTOR_TYPER: usize = 0x8;
/// The bit of GICR_TYPER that the last redistributor has.
pub const TYPER_LAST_BIT: u32 = 4;
/// The place of the affinity in GICR_TYPER.
pub const TYPER_AFFINITY_SHIFT: u32 = 32;
/// The place of Aff3 in MPIDR_EL1.
pub const AFF3_SHIFT: u32 = 32;
/// The place of Aff3 in an affinity of 32 bits.
pub const AFF3_PACKED_SHIFT: u32 = 24;
/// Bits of an affinity field.
pub const AFF_BITS: u32 = 8;
/// GICR_WAKER, and its bits ProcessorSleep and ChildrenAsleep.
const WAKER: usize = 0x14;
const SLEEP: u32 = 1 << 1;
const ASLEEP: u32 = 1 << 2;
/// Registers of SGIs and PPIs, in the second frame: group, enable, priority, group modifier.
const SGI_GROUP: usize = 0x1_0080;
const SGI_ENABLE: usize = 0x1_0100;
const SGI_PRIORITY: usize = 0x1_0400;
const SGI_GROUP_MODIFIER: usize = 0x1_0d00;
/// Group 1, non-secure, for all but SGIs 8–15.
const CLIENTS_GROUP: u32 = 0xffff_00ff;

/// The SGI of event 0.
pub const EVENT: u32 = 8;
/// The SGI that ends the wait of a CPU that is off.
pub const WAKE: u32 = 9;
/// Below 0x80, so that no priority mask of the client reaches it.
const EVENT_PRIORITY: u8 = 0x70;
/// More urgent than an event, which a CPU that went off may have left active.
const WAKE_PRIORITY: u8 = 0x60;

/// Interrupt numbers from here on are none (1020–1023).
const NO_INTERRUPT: u32 = 1020;
/// Polls of a register that changes within a few accesses.
const POLLS: usize = 1 << 20;

/// Gives all shared interrupts to the client.
pub fn set_up_distributor() {
    mmio::write(DISTRIBUTOR, ROUTE_BY_AFFINITY);
    settle(DISTRIBUTOR, WRITE_PENDING);
    let registers = (mmio::read::<u32>(TYPER) & 0x1f) as usize;
    for register in 1..=registers {
        mmio::write(GROUPS + 4 * register, u32::MAX);
    }
}

/// Switches Group 0 on, and with that lets the other CPUs in.
pub fn open() {
    mmio::write(DISTRIBUTOR, ROUTE_BY_AFFINITY | 1 << OPEN_BIT);
}

/// Returns the MPIDR of each CPU.
pub fn cpus() -> impl Iterator<Item = u64> {
    let mut next = Some(REDISTRIBUTORS);
    core::iter::from_fn(move || {
        let base = next?;
        let typer: u64 = mmio::read(base + REDISTRIBUTOR_TYPER);
        next = (typer & 1 << TYPER_LAST_BIT == 0).then_some(base + REDISTRIBUTOR_SIZE);
        let affinity = typer >> TYPER_AFFINITY_SHIFT;
        let low = (1 << AFF3_PACKED_SHIFT) - 1;
        Some(affinity & low | affinity >> AFF3_PACKED_SHIFT << AFF3_SHIFT)
    })
}

/// Prepares the redistributor and the interface of the calling CPU, whose number is `cpu`.
pub fn set_up_cpu(cpu: usize) {
    let base = REDISTRIBUTORS + cpu * REDISTRIBUTOR_SIZE;
    let waker: u32 = mmio::read(base + WAKER);
    mmio::write(base + WAKER, waker & !SLEEP);
    settle(base + WAKER, ASLEEP);
    mmio::write(base + SGI_GROUP, CLIENTS_GROUP);
    mmio::write(base + SGI_GROUP_MODIFIER, 0_u32);
    for (interrupt, priority) in [(EVENT, EVENT_PRIORITY), (WAKE, WAKE_PRIORITY)] {
        mmio::write(base + SGI_PRIORITY + interrupt as usize, priority);
        mmio::write(base + SGI_ENABLE, 1_u32 << interrupt);
    }
    processor::set_up_interrupts();
}

/// Keeps the client's interrupts from ending a wait of the calling CPU.
pub fn ignore_client() {
    processor::ignore_client_interrupts();
}

/// Sends the SGI `interrupt` of Group 0 to the CPU `mpidr`.
pub fn send(mpidr: u64, interrupt: u32) {
    let [aff0, aff1, aff2, _, aff3, ..] = mpidr.to_le_bytes().map(u64::from);
    // ICC_SGI0R_EL1: a list of 16 CPUs, which of such lists, and the rest of the affinity.
    let list = 1 << (aff0 & 0xf) | (aff0 >> 4) << 44;
    processor::send_sgi0(aff3 << 48 | aff2 << 32 | aff1 << 16 | u64::from(interrupt) << 24 | list);
}

/// Acknowledges the most urgent interrupt of Group 0, which is active from then on.
pub fn acknowledge() -> Option<u32> {
    Some(processor::acknowledge0()).filter(|interrupt| *interrupt < NO_INTERRUPT)
}

/// Ends an interrupt of Group 0.
pub fn end(interrupt: u32) {
    processor::end0(interrupt);
}

/// Waits until no bit of `mask` is set at `address`.
fn settle(address: usize, mask: u32) {
    for _ in 0..POLLS {
        if mmio::read::<u32>(address) & mask == 0 {
            return;
        }
    }
    super::fatal(format_args!("the interrupt controller is stuck at {address:#x}"))
}
