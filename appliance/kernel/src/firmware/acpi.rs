//! What the kernel keeps of the firmware's ACPI tables: the CPUs, how to switch the machine
//! off, how to reach PCI. The crate `epitaph-firmware` reads the tables.

use epitaph_firmware::acpi::{self, PmTimer};
use epitaph_firmware::{PhysicalMemory, Unreadable};
use handoff::{MAX_CPUS, PowerFacts};
use heapless::Vec;

pub use epitaph_firmware::acpi::{AcpiError, CpuEntry, NmiPin, Pci};

use crate::base::physical::Physical;

/// NMI pins remembered: one entry for all CPUs is what firmware has.
const MAX_NMI_PINS: usize = 16;

/// What the tables say.
#[derive(Clone, Debug, Default)]
pub struct Acpi {
    /// Usable CPUs in MADT order, each APIC ID once; none without a MADT, as on a machine
    /// with one CPU: the boot processor is known without it.
    pub cpus: Vec<CpuEntry, MAX_CPUS>,
    /// Where NMIs from outside arrive.
    pub nmi_pins: Vec<NmiPin, MAX_NMI_PINS>,
    /// How to reset and switch off.
    pub power: PowerFacts,
    /// The power-management timer.
    pub pm_timer: Option<PmTimer>,
    /// How to reach PCI.
    pub pci: Pci,
}

/// Memory of the machine, copied as the reader of the tables wants it.
struct Copied<'a>(&'a dyn Physical);

impl PhysicalMemory for Copied<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = self.0.bytes(address, buffer.len()).ok_or(Unreadable)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl Acpi {
    /// Reads the tables from the RSDP at `rsdp`, or from where a BIOS keeps it.
    ///
    /// # Errors
    /// When there are none. A table that is missing is no error: what it would say is left
    /// at its default, so that a machine without a list of CPUs can still be switched off.
    pub fn read(rsdp: Option<u64>, memory: &dyn Physical) -> Result<Self, AcpiError> {
        let memory = Copied(memory);
        let tables = acpi::Acpi::open(&memory, rsdp)?;
        let mut cpus: Vec<CpuEntry, MAX_CPUS> = Vec::new();
        for cpu in tables.cpus() {
            let listed = cpus.iter().any(|listed| listed.apic_id == cpu.apic_id);
            if !listed && cpus.push(cpu).is_err() {
                break;
            }
        }
        let fadt = tables.fadt();
        let aml = tables.aml(fadt.as_ref());
        Ok(Self {
            cpus,
            nmi_pins: tables.nmi_pins().take(MAX_NMI_PINS).collect(),
            power: fadt
                .map_or_else(PowerFacts::default, |fadt| tables.power(&fadt, aml.sleep_types)),
            pm_timer: fadt.and_then(|fadt| tables.pm_timer(&fadt)),
            pci: tables.pci(&aml),
        })
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
}

#[cfg(test)]
mod tests;
