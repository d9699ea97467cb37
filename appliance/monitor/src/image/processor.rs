//! Registers of the processor that EL3 sets for itself and for the levels below it.

#![expect(unsafe_code, reason = "system registers")]

use core::arch::asm;

use epitaph_monitor::Client;

/// Reads a system register.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading this register changes nothing that Rust knows of.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: EL3 runs with its MMU off and its exceptions masked; the registers written
        // here rule the levels below, interrupts and features, never the memory of EL3.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) }
    }};
}

/// SCR_EL3: non-secure, 64 bits below, `hvc` works, no secure instructions from non-secure
/// memory, Group 0 interrupts as FIQ to EL3; bits 4 and 5 are 1.
const SECURE_CONFIGURATION: u64 = 1 << 0 | 1 << 2 | 0b11 << 4 | 1 << 8 | 1 << 9 | 1 << 10;
/// SCTLR_EL3 with everything off, and instruction caching on. SCTLR_EL2 has the same bits at 1.
const SYSTEM_CONTROL_EL3: u64 = 0x30c5_0830;
/// SCTLR_EL1 with everything off.
const SYSTEM_CONTROL_EL1: u64 = 0x30d0_0800;
/// The instruction cache, in SCTLR_EL3.
const INSTRUCTION_CACHE: u64 = 1 << 12;
/// CPTR_EL3: SVE and SME are not trapped.
const SVE_NOT_TRAPPED: u64 = 1 << 8;
const SME_NOT_TRAPPED: u64 = 1 << 12;
/// ZCR_EL3 and SMCR_EL3: the longest vectors there are; all of SME, ZT0 included.
const LONGEST: u64 = 0xf;
const ALL_OF_SME: u64 = 1 << 31 | 1 << 30;
/// HCR_EL2: EL1 is of 64 bits.
const EL1_IS_64_BITS: u64 = 1 << 31;
/// CNTHCTL_EL2: EL1 may use the physical counter and timer.
const TIMERS: u64 = 0b11;
/// Exception class of an `smc` from 64-bit code, in bits 31–26 of ESR_EL3.
const SMC: u64 = 0x17;

/// A feature that traps to EL3 unless SCR_EL3 opens it.
struct Feature {
    /// Value of its identification register.
    register: u64,
    /// First bit of its field of 4 bits.
    shift: u32,
    /// The smallest value of the field with which the bits exist.
    least: u64,
    /// The bits of SCR_EL3.
    opens: u64,
}

/// Returns the field of 4 bits of an identification register.
fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// Sets what EL3 rules on the calling CPU. Returns the level that a client runs at.
pub fn set_up() -> Client {
    let [isar1, isar2] = [read!("id_aa64isar1_el1"), read!("S3_0_C0_C6_2")];
    let [pfr0, pfr1, pfr2] =
        [read!("id_aa64pfr0_el1"), read!("id_aa64pfr1_el1"), read!("S3_0_C0_C4_2")];
    let [mmfr0, mmfr1, mmfr3] =
        [read!("id_aa64mmfr0_el1"), read!("id_aa64mmfr1_el1"), read!("S3_0_C0_C7_3")];
    let feature = |register, shift, least, opens| Feature { register, shift, least, opens };
    // Arm ARM D24.2.126, SCR_EL3.
    let pointer_authentication = 0b11 << 16;
    let features = [
        feature(isar1, 4, 1, pointer_authentication),
        feature(isar1, 8, 1, pointer_authentication),
        feature(isar1, 24, 1, pointer_authentication),
        feature(isar1, 28, 1, pointer_authentication),
        feature(isar2, 8, 1, pointer_authentication),
        feature(isar2, 12, 1, pointer_authentication),
        feature(isar1, 60, 3, 1 << 36), // stores of 64 bytes with a value
        feature(pfr0, 44, 2, 1 << 35),  // offsets of activity monitors
        feature(pfr1, 8, 2, 1 << 26),   // memory tags
        feature(pfr1, 24, 1, 1 << 41),  // TPIDR2 of SME
        feature(pfr1, 44, 1, 1 << 39),  // guarded control stacks
        feature(pfr1, 48, 1, 1 << 42),  // masks of read-check-write
        feature(pfr2, 32, 1, 1 << 50),  // FPMR
        feature(mmfr0, 56, 1, 1 << 27), // fine-grained traps
        feature(mmfr0, 60, 2, 1 << 28), // offset of the physical counter
        feature(mmfr1, 40, 1, 1 << 38), // HCRX_EL2
        feature(mmfr3, 0, 1, 1 << 43),  // TCR2
        feature(mmfr3, 4, 1, 1 << 44),  // SCTLR2
        feature(mmfr3, 8, 1, 1 << 45),  // permission indirection
        feature(mmfr3, 16, 1, 1 << 45), // permission overlays
        feature(mmfr3, 24, 1, 1 << 46), // attribute indexes
    ];
    let opened = features
        .iter()
        .filter(|feature| field(feature.register, feature.shift) >= feature.least)
        .fold(0, |bits, feature| bits | feature.opens);
    let (sve, sme) = (field(pfr0, 32) >= 1, field(pfr1, 24) >= 1);
    write!("sctlr_el3", SYSTEM_CONTROL_EL3 | INSTRUCTION_CACHE);
    // The secure copy of this register, as long as SCR_EL3.NS is 0.
    write!("icc_sre_el3", 0xf);
    isb();
    write!("icc_sre_el1", 0x7);
    write!("scr_el3", SECURE_CONFIGURATION | opened);
    let traps = if sve { SVE_NOT_TRAPPED } else { 0 } | if sme { SME_NOT_TRAPPED } else { 0 };
    write!("cptr_el3", traps);
    isb();
    if sve {
        write!("S3_6_C1_C2_0", LONGEST);
    }
    if sme {
        write!("S3_6_C1_C2_6", LONGEST | ALL_OF_SME);
    }
    reset_client();
    client()
}

/// Returns the level that a client runs at: EL2 where the processor has it.
fn client() -> Client {
    if field(read!("id_aa64pfr0_el1"), 8) == 0 { Client::El1 } else { Client::El2 }
}

/// Returns true if the processor has FEAT_NMI.
pub fn has_nmi() -> bool {
    field(read!("id_aa64pfr1_el1"), 36) >= 1
}

/// Puts the registers of the levels below back to what a CPU starts with: MMU and caches off.
pub fn reset_client() {
    write!("sctlr_el1", SYSTEM_CONTROL_EL1);
    if client() == Client::El2 {
        write!("sctlr_el2", SYSTEM_CONTROL_EL3);
        write!("hcr_el2", EL1_IS_64_BITS);
        write!("cnthctl_el2", TIMERS);
        write!("cntvoff_el2", 0);
    }
    isb();
}

/// Sets up the calling CPU's interface to the interrupt controller: no priority of the
/// monitor's is masked, and Group 0 is on.
pub fn set_up_interrupts() {
    write!("icc_pmr_el1", 0xff);
    write!("icc_bpr0_el1", 0);
    write!("icc_igrpen0_el1", 1);
    isb();
}

/// Switches the client's group off, and takes back the client's priority mask.
pub fn ignore_client_interrupts() {
    write!("icc_igrpen1_el3", 0);
    write!("icc_pmr_el1", 0xff);
    isb();
}

/// Sends a Group 0 SGI, after everything written before is visible to the other CPUs.
pub fn send_sgi0(value: u64) {
    barrier();
    write!("icc_sgi0r_el1", value);
    isb();
}

/// Acknowledges an interrupt of Group 0.
pub fn acknowledge0() -> u32 {
    let interrupt = read!("icc_iar0_el1") as u32;
    barrier();
    interrupt
}

/// Ends an interrupt of Group 0.
pub fn end0(interrupt: u32) {
    barrier();
    write!("icc_eoir0_el1", u64::from(interrupt));
    isb();
}

/// Sets where an exception return of the client's level goes.
pub fn set_exception_return(client: Client, pc: u64, pstate: u64) {
    match client {
        Client::El1 => {
            write!("elr_el1", pc);
            write!("spsr_el1", pstate);
        }
        Client::El2 => {
            write!("elr_el2", pc);
            write!("spsr_el2", pstate);
        }
    }
}

/// Returns the syndrome of the exception that EL3 is handling.
pub fn syndrome() -> u64 {
    read!("esr_el3")
}

/// Returns true if `syndrome` is that of a call.
pub fn is_smc(syndrome: u64) -> bool {
    syndrome >> 26 & 0x3f == SMC
}

/// Returns the address that the exception was taken from.
pub fn return_address() -> u64 {
    read!("elr_el3")
}

/// Waits until an interrupt is pending that is switched on.
pub fn wait_for_interrupt() {
    // SAFETY: waits; exceptions are masked, so nothing else happens here.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Orders all accesses before it against all behind it.
pub fn barrier() {
    // SAFETY: only orders.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Makes writes of system registers take effect.
fn isb() {
    // SAFETY: only orders.
    unsafe { asm!("isb", options(nostack)) };
}
