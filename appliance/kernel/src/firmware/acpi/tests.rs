//! What the kernel makes of the tables; how they are read is tested in `epitaph-firmware`.

use super::*;

/// Tables of QEMU's q35 with four CPUs, VT-d and a second host bridge: address, length and
/// bytes of each.
const Q35: &[u8] = include_bytes!("../../../../../capture/firmware/tests/fixtures/q35-vtd.bin");

struct Ram;

impl Physical for Ram {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let mut rest = Q35;
        while let Some((head, behind)) = rest.split_at_checked(12) {
            let start = u64::from_le_bytes(head[..8].try_into().unwrap());
            let (part, others) =
                behind.split_at(u32::from_le_bytes(head[8..].try_into().unwrap()) as usize);
            if let Some(at) = address.checked_sub(start).map(|at| at as usize)
                && let Some(bytes) = part.get(at..at.saturating_add(length))
            {
                return Some(bytes);
            }
            rest = others;
        }
        None
    }
}

#[test]
fn the_kernel_keeps_cpus_power_and_pci_of_a_machine() {
    let acpi = Acpi::read(None, &Ram).unwrap();
    let ids: std::vec::Vec<_> = acpi.cpus.iter().map(|cpu| cpu.apic_id).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    let power = acpi.power;
    assert_eq!((power.pm1a_control, power.sleep_type_a), (0x604, 0));
    assert_eq!((power.reset_space, power.reset_address, power.reset_value), (1, 0xcf9, 0x0f));
    assert_eq!(acpi.pm_timer.map(|timer| timer.port), Some(0x608));
    assert_eq!(acpi.pci.config_spaces[0].address, 0xb000_0000);
    assert_eq!(acpi.pci.root_buses, [0, 1, 0, 0]);
    assert_eq!(Acpi::read(Some(0x1000), &Ram).err(), Some(AcpiError::Damaged));
}

#[test]
fn the_boot_processor_comes_first() {
    let acpi = Acpi::read(None, &Ram).unwrap();
    let ids =
        |boot| acpi.cpus_from(boot).iter().map(|cpu| cpu.apic_id).collect::<std::vec::Vec<_>>();
    assert_eq!(ids(2), [2, 0, 1, 3]);
    // One that the table does not list.
    assert_eq!(ids(9), [9, 0, 1, 2, 3]);
}

#[test]
fn more_cpus_than_there_is_room_for_are_left_out() {
    let cpus = (0..MAX_CPUS as u32).map(|id| CpuEntry { apic_id: id * 2, acpi_id: Some(id) });
    let acpi = Acpi { cpus: cpus.collect(), ..Acpi::default() };
    let ordered = acpi.cpus_from(9999);
    assert_eq!((ordered.len(), ordered[0].apic_id, ordered[1].apic_id), (MAX_CPUS, 9999, 0));
}

#[test]
fn nmi_pins_are_found_by_acpi_id() {
    let everyone = NmiPin { acpi_id: None, pin: 1, active_low: false };
    let one = NmiPin { acpi_id: Some(9), pin: 0, active_low: true };
    let of = |pins: &[NmiPin]| Acpi { nmi_pins: pins.iter().copied().collect(), ..Acpi::default() };
    let cpu = |acpi_id| CpuEntry { apic_id: 1, acpi_id };
    assert_eq!(of(&[everyone, one]).nmi_pin(&cpu(None)), Some(everyone));
    assert_eq!(of(&[one]).nmi_pin(&cpu(Some(9))), Some(one));
    assert_eq!(of(&[one]).nmi_pin(&cpu(Some(3))), None);
    assert_eq!(of(&[one]).nmi_pin(&cpu(None)), None);
}
