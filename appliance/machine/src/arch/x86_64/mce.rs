//! Machine checks: what the processor's error banks say (Intel SDM vol. 3, chapter 16).

use x86_64::registers::model_specific::Msr;

use super::cpu;

/// IA32_MCG_CAP: the number of banks in its low byte, and whether IA32_MCG_CTL exists (SDM
/// vol. 3, 16.3.1.1).
const MCG_CAP: u32 = 0x179;
const CAP_BANKS: u64 = 0xff;
const CAP_CONTROL: u64 = 1 << 8;
/// IA32_MCG_STATUS: the interrupted program can go on; a machine check is being handled.
/// One that arrives while this last bit is set shuts the processor down.
pub(super) const MCG_STATUS: u32 = 0x17a;
const STATUS_CAN_RESUME: u64 = 1;
const MCG_CTL: u32 = 0x17b;
/// Four registers for each bank, from here on: control, status, address, miscellaneous.
const BANK0: u32 = 0x400;
const PER_BANK: u32 = 4;
/// Banks looked at: all that these MSR numbers have room for.
const MOST_BANKS: u32 = 32;
/// Bits of a bank's status (SDM vol. 3, figure 16-6).
const VALID: u64 = 1 << 63;
const UNCORRECTED: u64 = 1 << 61;
const HAS_ADDRESS: u64 = 1 << 58;
const CONTEXT_CORRUPT: u64 = 1 << 57;

/// One bank with an error in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// Its number.
    pub number: u32,
    /// IA32_MCi_STATUS.
    pub status: u64,
    /// IA32_MCi_ADDR, where the status says that there is one; else 0.
    pub address: u64,
}

impl Bank {
    /// How bad it is: what the processor lost weighs most.
    const fn weight(&self) -> u64 {
        self.status & (CONTEXT_CORRUPT | UNCORRECTED | HAS_ADDRESS)
            | if self.status & CONTEXT_CORRUPT != 0 { 1 << 62 } else { 0 }
    }
}

impl core::fmt::Display for Bank {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { number, status, address } = self;
        write!(f, "bank {number} status {status:#x}")?;
        if status & HAS_ADDRESS != 0 {
            write!(f, " address {address:#x}")?;
        }
        Ok(())
    }
}

/// What the running CPU's banks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// IA32_MCG_STATUS.
    pub global: u64,
    /// How many banks hold an error.
    pub errors: u32,
    /// The worst of them.
    pub worst: Option<Bank>,
    corrupt: bool,
}

impl Report {
    /// Whether the interrupted program could go on: the processor says so, and no bank says
    /// that the processor's own state is lost.
    #[must_use]
    pub const fn survivable(&self) -> bool {
        self.global & STATUS_CAN_RESUME != 0 && !self.corrupt
    }
}

impl core::fmt::Display for Report {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.worst {
            None => write!(f, "no bank says why, global status {:#x}", self.global),
            Some(bank) => {
                write!(f, "{bank}")?;
                if bank.status & CONTEXT_CORRUPT != 0 {
                    f.write_str(", processor state lost")?;
                }
                if self.errors > 1 {
                    write!(f, ", {} banks in all", self.errors)?;
                }
                Ok(())
            }
        }
    }
}

/// Whether the running CPU has the machine-check registers (CPUID 1 EDX bits 7 and 14).
#[must_use]
pub fn exists() -> bool {
    cpu::cpuid(1, 0).edx & (1 << 7 | 1 << 14) == (1 << 7 | 1 << 14)
}

fn read_msr(number: u32) -> u64 {
    // SAFETY: only called for registers of the machine-check architecture, once `exists` and
    // the number of banks have said that they are there; reading has no effect.
    unsafe { Msr::new(number).read() }
}

fn write_msr(number: u32, value: u64) {
    // SAFETY: as above. The values are the ones the architecture allows: 0 for status
    // registers, all bits for control registers. Memory is not affected.
    unsafe { Msr::new(number).write(value) }
}

fn banks() -> u32 {
    ((read_msr(MCG_CAP) & CAP_BANKS) as u32).min(MOST_BANKS)
}

/// Enables the reporting of every error on the running CPU (CR4.MCE is set from its first
/// instruction on). Returns what firmware left in the banks, which is cleared.
pub fn enable() -> Option<Report> {
    if !exists() {
        return None;
    }
    let left = read();
    if read_msr(MCG_CAP) & CAP_CONTROL != 0 {
        write_msr(MCG_CTL, u64::MAX);
    }
    for bank in 0..banks() {
        write_msr(BANK0 + bank * PER_BANK, u64::MAX);
    }
    acknowledge();
    Some(left).filter(|left| left.errors > 0)
}

/// Reads the running CPU's banks.
#[must_use]
pub fn read() -> Report {
    let mut report = Report { global: 0, errors: 0, worst: None, corrupt: false };
    if !exists() {
        return report;
    }
    report.global = read_msr(MCG_STATUS);
    for number in 0..banks() {
        let status = read_msr(BANK0 + number * PER_BANK + 1);
        if status & VALID == 0 {
            continue;
        }
        let has_address = status & HAS_ADDRESS != 0;
        let address = if has_address { read_msr(BANK0 + number * PER_BANK + 2) } else { 0 };
        let bank = Bank { number, status, address };
        report.errors += 1;
        report.corrupt |= status & CONTEXT_CORRUPT != 0;
        if report.worst.is_none_or(|worst| bank.weight() > worst.weight()) {
            report.worst = Some(bank);
        }
    }
    report
}

/// Clears the running CPU's banks and says that the machine check is dealt with: from now on
/// another one is reported again, and does not shut the processor down.
pub fn acknowledge() {
    if !exists() {
        return;
    }
    for bank in 0..banks() {
        write_msr(BANK0 + bank * PER_BANK + 1, 0);
    }
    write_msr(MCG_STATUS, 0);
}
