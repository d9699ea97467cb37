//! What the firmware's ACPI tables say: the CPUs, and how to switch the machine off.
//!
//! Every table is taken with its checksum and within its length; a table that does not add
//! up is as good as absent. Section numbers are those of the ACPI specification, 6.5.

mod pci;

use handoff::{MAX_CPUS, PowerFacts};
use heapless::Vec;

pub use self::pci::Pci;
use crate::base::physical::Physical;

/// Bytes of a table's header (§5.2.6).
const HEADER: usize = 36;
/// A table longer than this is not believed.
const MAX_TABLE: usize = 1 << 20;
/// Where a BIOS may keep the RSDP when the loader does not say (§5.2.5.1).
const BIOS_AREA: (u64, u64) = (0xe_0000, 0x10_0000);
/// FADT flag: hardware-reduced ACPI (§5.2.9, table 5.10, bit 20), and the one for a reset
/// register (bit 10).
const FLAG_HARDWARE_REDUCED: u32 = 1 << 20;
const FLAG_RESET: u32 = 1 << 10;
/// MADT entry types (§5.2.12).
const MADT_LOCAL_APIC: u8 = 0;
const MADT_LOCAL_NMI: u8 = 4;
const MADT_LOCAL_X2APIC: u8 = 9;
const MADT_LOCAL_X2APIC_NMI: u8 = 10;
/// The ACPI IDs that mean "every CPU" in entries about NMI pins (§5.2.12.7, §5.2.12.13).
const EVERYONE: u8 = 0xff;
const EVERYONE_X2APIC: u32 = u32::MAX;
/// Bits 0 and 1 of the flags of an interrupt input, and their value for "active low"
/// (§5.2.12.5, table 5.26).
const POLARITY: u8 = 3;
const ACTIVE_LOW: u8 = 3;
/// NMI pins remembered: one entry for all CPUs is what firmware has.
const MAX_NMI_PINS: usize = 16;
/// MADT local APIC flags: enabled, online capable (§5.2.12.2.1).
const CPU_ENABLED: u32 = 1;

/// Why there is nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// The loader named no RSDP and none was found.
    NoRsdp,
    /// The RSDP's or root table's checksum is wrong.
    Damaged,
}

impl core::fmt::Display for AcpiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoRsdp => "no ACPI tables found",
            Self::Damaged => "the ACPI root table is damaged",
        })
    }
}

/// A CPU that the firmware lists as usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuEntry {
    /// Its APIC ID.
    pub apic_id: u32,
    /// The ID by which other tables name it; none for a CPU the MADT does not list.
    pub acpi_id: Option<u32>,
}

/// An input of local APICs that NMIs from outside arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiPin {
    /// Whose: an ACPI ID, or every CPU's.
    pub acpi_id: Option<u32>,
    /// 0 for LINT0, 1 for LINT1.
    pub pin: u8,
    /// Whether the input is active low.
    pub active_low: bool,
}

/// What the tables say.
#[derive(Clone, Debug)]
pub struct Acpi {
    /// Usable CPUs in MADT order, each APIC ID once; none without a MADT, as on a machine
    /// with one CPU: the boot processor is known without it.
    pub cpus: Vec<CpuEntry, MAX_CPUS>,
    /// Where NMIs from outside arrive.
    pub nmi_pins: Vec<NmiPin, MAX_NMI_PINS>,
    /// How to reset and switch off.
    pub power: PowerFacts,
    /// I/O port of the power-management timer.
    pub pm_timer: Option<u16>,
    /// How to reach PCI.
    pub pci: Pci,
}

impl Acpi {
    /// Reads the tables from the RSDP at `rsdp`, or from where a BIOS keeps it.
    ///
    /// # Errors
    /// When there are none. A table that is missing is no error: what it would say is left
    /// at its default, so that a machine without a list of CPUs can still be switched off.
    pub fn read(rsdp: Option<u64>, memory: &dyn Physical) -> Result<Self, AcpiError> {
        let rsdp = rsdp.or_else(|| search(memory)).ok_or(AcpiError::NoRsdp)?;
        let root = Root::read(rsdp, memory).ok_or(AcpiError::Damaged)?;
        let madt = root.find(memory, b"APIC").unwrap_or_default();
        let mut acpi = Self {
            cpus: cpus(madt),
            nmi_pins: nmi_pins(madt),
            power: PowerFacts::default(),
            pm_timer: None,
            pci: Pci::default(),
        };
        let fadt = root.find(memory, b"FACP");
        if let Some(fadt) = fadt {
            acpi.read_fadt(fadt, &root, memory);
        }
        let dsdt = fadt.and_then(|fadt| dsdt(fadt, memory)).unwrap_or_default();
        acpi.pci = Pci::read(root.find(memory, b"MCFG"), dsdt);
        acpi.pci.add_roots(dsdt);
        let secondary = root.tables(memory).filter(|table| table.starts_with(b"SSDT"));
        secondary.for_each(|table| acpi.pci.add_roots(table));
        Ok(acpi)
    }

    /// The CPUs with the boot processor, whose APIC ID is `boot`, moved to the front.
    #[must_use]
    pub fn cpus_from(&self, boot: u32) -> Vec<CpuEntry, MAX_CPUS> {
        let others = self.cpus.iter().copied().filter(|cpu| cpu.apic_id != boot);
        let listed = self.cpus.iter().copied().find(|cpu| cpu.apic_id == boot);
        let first = listed.unwrap_or(CpuEntry { apic_id: boot, acpi_id: None });
        core::iter::once(first).chain(others).take(MAX_CPUS).collect()
    }

    /// The pin at which NMIs from outside reach `cpu`; none when the tables name none.
    #[must_use]
    pub fn nmi_pin(&self, cpu: &CpuEntry) -> Option<NmiPin> {
        let reaches = |pin: &&NmiPin| pin.acpi_id.is_none() || pin.acpi_id == cpu.acpi_id;
        self.nmi_pins.iter().find(reaches).copied()
    }

    fn read_fadt(&mut self, fadt: &[u8], root: &Root, memory: &dyn Physical) {
        let flags = u32_in(fadt, 112).unwrap_or(0);
        // Offsets of §5.2.9, table 5.9. The 64-bit fields win where they are set.
        let control = |block: usize, extended: usize| {
            generic_address(fadt, extended)
                .filter(|&(space, address)| space == 1 && address != 0)
                .map(|(_, address)| address as u16)
                .or_else(|| u32_in(fadt, block).map(|port| port as u16))
                .unwrap_or(0)
        };
        if flags & FLAG_HARDWARE_REDUCED == 0 {
            self.power.pm1a_control = control(64, 172);
            self.power.pm1b_control = control(68, 184);
            let timer = control(76, 208);
            self.pm_timer = Some(timer).filter(|&port| port != 0);
        } else if let Some((space, address)) = generic_address(fadt, 244) {
            self.power.sleep_space = space;
            self.power.sleep_control = address;
        }
        self.power.reset_space = u8::MAX;
        if flags & FLAG_RESET != 0
            && let Some((space, address)) = generic_address(fadt, 116)
        {
            self.power.reset_space = space;
            self.power.reset_address = address;
            self.power.reset_value = fadt.get(128).copied().unwrap_or(0);
        }
        let secondary = || root.tables(memory).filter(|table| table.starts_with(b"SSDT"));
        if let Some((a, b)) =
            dsdt(fadt, memory).into_iter().chain(secondary()).find_map(sleep_types)
        {
            self.power.sleep_type_a = a;
            self.power.sleep_type_b = b;
        } else {
            // Without the value to write, the registers are of no use.
            self.power.pm1a_control = 0;
            self.power.pm1b_control = 0;
            self.power.sleep_control = 0;
        }
    }
}

fn u32_in(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_in(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// A generic address structure (§5.2.3.2): space and address.
fn generic_address(bytes: &[u8], at: usize) -> Option<(u8, u64)> {
    Some((*bytes.get(at)?, u64_in(bytes, at + 4)?))
}

/// The machine's first table of AML, which the FADT names.
fn dsdt<'a>(fadt: &[u8], memory: &'a dyn Physical) -> Option<&'a [u8]> {
    u64_in(fadt, 140)
        .filter(|&address| address != 0)
        .or_else(|| u32_in(fadt, 40).map(u64::from))
        .and_then(|address| table(memory, address))
}

fn adds_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Looks for the RSDP in the EBDA and the BIOS area, on 16-byte boundaries.
fn search(memory: &dyn Physical) -> Option<u64> {
    // The BIOS data area keeps the EBDA's segment at 40:0E.
    let segment = memory.bytes(0x40e, 2).and_then(|word| word.try_into().ok());
    let ebda = u64::from(segment.map_or(0, u16::from_le_bytes)) << 4;
    let areas = [(ebda, ebda + 1024), BIOS_AREA];
    areas.into_iter().filter(|&(start, _)| start >= 0x400).find_map(|(start, end)| {
        (start..end).step_by(16).find(|&at| {
            memory.bytes(at, 20).is_some_and(|rsdp| rsdp.starts_with(b"RSD PTR ") && adds_up(rsdp))
        })
    })
}

/// A whole table, header included, whose length is sane and whose bytes add up to zero.
fn table(memory: &dyn Physical, address: u64) -> Option<&[u8]> {
    let length = u32_in(memory.bytes(address, HEADER)?, 4)? as usize;
    if !(HEADER..=MAX_TABLE).contains(&length) {
        return None;
    }
    memory.bytes(address, length).filter(|bytes| adds_up(bytes))
}

/// The root table: XSDT where there is one, RSDT otherwise.
struct Root {
    address: u64,
    entry_bytes: usize,
}

impl Root {
    fn read(rsdp: u64, memory: &dyn Physical) -> Option<Self> {
        let first = memory.bytes(rsdp, 20)?;
        if !first.starts_with(b"RSD PTR ") || !adds_up(first) {
            return None;
        }
        // Revision 2 and later have a 64-bit table and a checksum over all 36 bytes.
        let xsdt = (first[15] >= 2)
            .then(|| memory.bytes(rsdp, 36).filter(|bytes| adds_up(bytes)))
            .flatten()
            .and_then(|bytes| u64_in(bytes, 24))
            .filter(|&address| address != 0 && table(memory, address).is_some());
        if let Some(address) = xsdt {
            return Some(Self { address, entry_bytes: 8 });
        }
        let address = u64::from(u32_in(first, 16)?);
        table(memory, address).map(|_| Self { address, entry_bytes: 4 })
    }

    /// Every table that is whole.
    fn tables<'a>(&self, memory: &'a dyn Physical) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let entries = table(memory, self.address).and_then(|root| root.get(HEADER..));
        entries.unwrap_or_default().chunks_exact(self.entry_bytes).filter_map(move |entry| {
            let address = u64_in(entry, 0).or_else(|| u32_in(entry, 0).map(u64::from))?;
            table(memory, address)
        })
    }

    fn find<'a>(&self, memory: &'a dyn Physical, signature: &[u8; 4]) -> Option<&'a [u8]> {
        self.tables(memory).find(|table| table.starts_with(signature))
    }
}

/// The entries of the MADT: kind, and all bytes of the entry.
fn entries(madt: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    // Behind the header: local APIC address and flags.
    let mut rest = madt.get(HEADER + 8..).unwrap_or_default();
    core::iter::from_fn(move || {
        let &[kind, length, ..] = rest else { return None };
        let entry = rest.get(..usize::from(length)).filter(|entry| entry.len() >= 2)?;
        rest = &rest[entry.len()..];
        Some((kind, entry))
    })
}

/// The usable CPUs of the MADT, each once.
///
/// A CPU that is only "online capable" is left out: it is a socket that may be filled later.
fn cpus(madt: &[u8]) -> Vec<CpuEntry, MAX_CPUS> {
    let mut found: Vec<CpuEntry, MAX_CPUS> = Vec::new();
    for (kind, entry) in entries(madt) {
        let byte = |at: usize| entry.get(at).map(|&byte| u32::from(byte));
        let ids = match kind {
            MADT_LOCAL_APIC => (byte(3), byte(2), u32_in(entry, 4)),
            MADT_LOCAL_X2APIC => (u32_in(entry, 4), u32_in(entry, 12), u32_in(entry, 8)),
            _ => continue,
        };
        if let (Some(apic_id), acpi_id, Some(flags)) = ids
            && flags & CPU_ENABLED != 0
            && !found.iter().any(|cpu| cpu.apic_id == apic_id)
            && found.push(CpuEntry { apic_id, acpi_id }).is_err()
        {
            break;
        }
    }
    found
}

/// The NMI pins of the MADT.
fn nmi_pins(madt: &[u8]) -> Vec<NmiPin, MAX_NMI_PINS> {
    let pin = |(kind, entry): (u8, &[u8])| {
        let (id, flags, pin) = match kind {
            MADT_LOCAL_NMI => {
                let id = *entry.get(2)?;
                ((id != EVERYONE).then_some(u32::from(id)), *entry.get(3)?, *entry.get(5)?)
            }
            MADT_LOCAL_X2APIC_NMI => {
                let id = u32_in(entry, 4)?;
                ((id != EVERYONE_X2APIC).then_some(id), *entry.get(2)?, *entry.get(8)?)
            }
            _ => return None,
        };
        Some(NmiPin { acpi_id: id, pin, active_low: flags & POLARITY == ACTIVE_LOW })
    };
    entries(madt).filter_map(pin).take(MAX_NMI_PINS).collect()
}

/// SLP_TYPa and SLP_TYPb of the `_S5_` package in a table's AML (§7.4.2, §20.2.5.4).
///
/// A full AML interpreter is not needed for it: firmware declares the package as
/// `Name (_S5_, Package (…) {…})` with constants. The first place that reads like that is
/// taken; the name may occur in others.
fn sleep_types(aml: &[u8]) -> Option<(u8, u8)> {
    const PACKAGE: u8 = 0x12;
    let name = |window: &[u8]| window == [b'_', b'S', b'5', b'_', PACKAGE];
    let places = aml.windows(5).enumerate().filter(|(_, window)| name(window));
    places.filter_map(|(at, _)| aml.get(at + 5..)).find_map(sleep_package)
}

/// The first two constants of a package, given what follows its opcode.
fn sleep_package(package: &[u8]) -> Option<(u8, u8)> {
    // PkgLength: its top two bits say how many more bytes it has; then the element count.
    let skip = 1 + usize::from(package.first()? >> 6) + 1;
    let mut rest = package.get(skip..)?;
    let mut constant = || {
        let (value, bytes) = match *rest.first()? {
            // ByteConst, WordConst, DWordConst: the low byte is what counts.
            0x0a => (*rest.get(1)?, 2),
            0x0b => (*rest.get(1)?, 3),
            0x0c => (*rest.get(1)?, 5),
            // ZeroOp and OneOp are their own values.
            value @ 0..=1 => (value, 1),
            _ => return None,
        };
        rest = rest.get(bytes..)?;
        Some(value & 7)
    };
    let a = constant()?;
    Some((a, constant().unwrap_or(a)))
}

#[cfg(test)]
mod tests;
