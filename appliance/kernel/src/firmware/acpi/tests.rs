//! Tables of a small machine, put together by hand.

use super::*;

struct Fake(std::vec::Vec<u8>);

const BASE: u64 = 0xe_0000;

impl Physical for Fake {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(length)?)
    }
}

fn finish(bytes: &mut [u8], checksum_at: usize) {
    bytes[checksum_at] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[checksum_at] = sum.wrapping_neg();
}

fn table_of(signature: &[u8; 4], body: &[u8]) -> std::vec::Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend((HEADER as u32 + body.len() as u32).to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(body);
    finish(&mut bytes, 9);
    bytes
}

fn local_apic(id: u8, flags: u32) -> std::vec::Vec<u8> {
    let mut entry = std::vec![0, 8, 0, id];
    entry.extend(flags.to_le_bytes());
    entry
}

fn x2apic(id: u32, flags: u32) -> std::vec::Vec<u8> {
    let mut entry = std::vec![9, 16, 0, 0];
    for word in [id, flags, 0] {
        entry.extend(word.to_le_bytes());
    }
    entry
}

/// RSDP at `BASE`, then RSDT and XSDT, MADT, FADT and DSDT.
fn machine(revision: u8) -> Fake {
    let mut madt = std::vec![0; 8];
    for entry in [
        local_apic(4, 1),
        local_apic(0, 1),
        std::vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        local_apic(6, 0),
        local_apic(7, 2),
        x2apic(0, 1),
        x2apic(0x1_0000, 1),
        // LINT1 of every CPU, active high; LINT0 of the CPU with ACPI ID 9, active low.
        std::vec![4, 6, 0xff, 5, 0, 1],
        std::vec![10, 12, 3, 0, 9, 0, 0, 0, 0, 0, 0, 0],
    ] {
        madt.extend(entry);
    }
    let madt = table_of(b"APIC", &madt);
    let aml = [0x08, b'_', b'S', b'5', b'_', 0x12, 0x08, 0x04, 0x0a, 0x05, 0x01, 0x00, 0x00];
    let dsdt = table_of(b"DSDT", &aml);
    let mut fadt = std::vec![0; 244 - HEADER];
    let mut set = |at: usize, bytes: &[u8]| {
        fadt[at - HEADER..at - HEADER + bytes.len()].copy_from_slice(bytes);
    };
    set(64, &0x604u32.to_le_bytes());
    set(76, &0x608u32.to_le_bytes());
    set(112, &FLAG_RESET.to_le_bytes());
    set(116, &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0f]);
    let (madt_at, fadt_at, dsdt_at) = (BASE + 0x400, BASE + 0x600, BASE + 0x800);
    set(40, &(dsdt_at as u32).to_le_bytes());
    let fadt = table_of(b"FACP", &fadt);
    let rsdt: std::vec::Vec<u8> =
        [madt_at, fadt_at].iter().flat_map(|at| (*at as u32).to_le_bytes()).collect();
    let xsdt: std::vec::Vec<u8> =
        [madt_at, fadt_at].iter().flat_map(|at| at.to_le_bytes()).collect();
    let mut rsdp = b"RSD PTR \0EPITAP".to_vec();
    rsdp.push(revision);
    rsdp.extend((BASE as u32 + 0x100).to_le_bytes());
    finish(&mut rsdp, 8);
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend((BASE + 0x200).to_le_bytes());
    rsdp.extend([0; 4]);
    finish(&mut rsdp, 32);
    let mut bytes = std::vec![0; 0x1000];
    for (at, part) in [
        (0, rsdp),
        (0x100, table_of(b"RSDT", &rsdt)),
        (0x200, table_of(b"XSDT", &xsdt)),
        (0x400, madt),
        (0x600, fadt),
        (0x800, dsdt),
    ] {
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    Fake(bytes)
}

#[test]
fn both_roots_lead_to_the_same_machine() {
    for revision in [0, 2] {
        for rsdp in [Some(BASE), None] {
            let acpi = Acpi::read(rsdp, &machine(revision)).unwrap();
            let ids: std::vec::Vec<_> = acpi.cpus.iter().map(|cpu| cpu.apic_id).collect();
            assert_eq!(ids, [4, 0, 0x1_0000], "revision {revision}");
            assert_eq!(acpi.pm_timer, Some(0x608));
            let power = acpi.power;
            assert_eq!((power.pm1a_control, power.pm1b_control), (0x604, 0));
            assert_eq!((power.sleep_type_a, power.sleep_type_b), (5, 1));
            assert_eq!((power.reset_space, power.reset_address), (1, 0xcf9));
            assert_eq!(power.reset_value, 0x0f);
        }
    }
}

#[test]
fn the_64_bit_root_is_preferred_and_the_other_is_the_fallback() {
    let read = |damaged: usize| {
        let mut machine = machine(2);
        machine.0[damaged] ^= 1;
        Acpi::read(Some(BASE), &machine).is_ok()
    };
    assert!(read(0x120) && read(0x220), "either root alone is enough");
    // The RSDT of a table beyond 4 GiB cannot name it: here it names nothing.
    let mut machine = machine(2);
    machine.0[0x104..0x108].copy_from_slice(&(HEADER as u32).to_le_bytes());
    finish(&mut machine.0[0x100..0x100 + HEADER], 9);
    assert!(Acpi::read(Some(BASE), &machine).is_ok());
}

#[test]
fn the_boot_processor_comes_first() {
    let acpi = Acpi::read(Some(BASE), &machine(2)).unwrap();
    let ids: std::vec::Vec<_> = acpi.cpus_from(0).iter().map(|cpu| cpu.apic_id).collect();
    assert_eq!(ids, [0, 4, 0x1_0000]);
}

#[test]
fn nmi_pins_are_found_by_acpi_id() {
    let acpi = Acpi::read(Some(BASE), &machine(2)).unwrap();
    let everyone = NmiPin { acpi_id: None, pin: 1, active_low: false };
    let one = NmiPin { acpi_id: Some(9), pin: 0, active_low: true };
    assert_eq!(acpi.nmi_pins, [everyone, one]);
    let cpu = |acpi_id| CpuEntry { apic_id: 1, acpi_id };
    assert_eq!(acpi.nmi_pin(&cpu(None)), Some(everyone));
    let named = Acpi { nmi_pins: [one].into_iter().collect(), ..acpi };
    assert_eq!(named.nmi_pin(&cpu(Some(9))), Some(one));
    assert_eq!(named.nmi_pin(&cpu(Some(3))), None);
    assert_eq!(named.nmi_pin(&cpu(None)), None);
}

#[test]
fn what_does_not_add_up_is_absent() {
    let error = |change: fn(&mut [u8])| {
        let mut machine = machine(0);
        change(&mut machine.0);
        Acpi::read(None, &machine).err()
    };
    assert_eq!(error(|bytes| bytes[3] ^= 1), Some(AcpiError::NoRsdp));
    assert_eq!(error(|bytes| bytes[0x120] ^= 1), Some(AcpiError::Damaged));
    assert_eq!(error(|_| ()), None);
}

#[test]
fn a_machine_without_a_list_of_cpus_can_still_be_switched_off() {
    let whole = Acpi::read(None, &machine(0)).unwrap();
    let mut damaged = machine(0);
    damaged.0[0x430] ^= 1;
    let acpi = Acpi::read(None, &damaged).unwrap();
    assert!(acpi.cpus.is_empty() && acpi.nmi_pins.is_empty());
    // The boot processor, whatever its number.
    let cpus = acpi.cpus_from(7);
    assert_eq!(cpus.as_slice(), [CpuEntry { apic_id: 7, acpi_id: None }]);
    let power = |acpi: &Acpi| zerocopy::IntoBytes::as_bytes(&acpi.power).to_vec();
    assert_eq!((power(&acpi), acpi.pm_timer), (power(&whole), whole.pm_timer));
}

#[test]
fn the_sleep_package_is_found_among_other_uses_of_its_name() {
    let package = |elements: &[u8]| {
        let mut aml = b"_S5_\x12".to_vec();
        aml.extend([elements.len() as u8 + 2, 4]);
        aml.extend(elements);
        aml
    };
    // Byte, word and double word; zero and one; a computed element is no constant.
    assert_eq!(sleep_types(&package(&[0x0a, 7, 0x0b, 6, 0])), Some((7, 6)));
    assert_eq!(sleep_types(&package(&[0x0c, 3, 0, 0, 0, 1])), Some((3, 1)));
    assert_eq!(sleep_types(&package(&[0, 0, 0, 0])), Some((0, 0)));
    assert_eq!(sleep_types(&package(&[0x0a, 5])), Some((5, 5)));
    assert_eq!(sleep_types(&package(b"ABCD")), None);
    // A package length of two bytes.
    assert_eq!(sleep_types(b"_S5_\x12\x46\x00\x04\x0a\x05\x0a\x05"), Some((5, 5)));
    let mut aml = b"\x5c_S5_\x70".to_vec();
    aml.extend(package(b"ABCD"));
    aml.extend(package(&[0x0a, 5, 0x0a, 4]));
    assert_eq!(sleep_types(&aml), Some((5, 4)));
}

#[test]
fn a_hardware_reduced_machine_sleeps_by_its_own_register() {
    let mut machine = machine(2);
    let fadt = 0x600;
    let flags = (FLAG_RESET | FLAG_HARDWARE_REDUCED).to_le_bytes();
    machine.0[fadt + 112..fadt + 116].copy_from_slice(&flags);
    // Longer by the sleep control register: memory space, 8 bits wide.
    machine.0[fadt + 4..fadt + 8].copy_from_slice(&256u32.to_le_bytes());
    machine.0[fadt + 244..fadt + 256].copy_from_slice(&[0, 8, 0, 1, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    finish(&mut machine.0[fadt..fadt + 256], 9);
    let power = Acpi::read(Some(BASE), &machine).unwrap().power;
    assert_eq!((power.sleep_space, power.sleep_control), (0, 0xfee0_0000));
    assert_eq!((power.pm1a_control, power.sleep_type_a), (0, 5));
}

#[test]
fn more_cpus_than_there_is_room_for_are_left_out() {
    let mut madt = std::vec![0; 8];
    for id in 0..MAX_CPUS as u32 + 100 {
        madt.extend(x2apic(id * 2, CPU_ENABLED));
    }
    let found = cpus(&table_of(b"APIC", &madt));
    assert_eq!(found.len(), MAX_CPUS);
    let (nmi_pins, power) = (Vec::new(), PowerFacts::default());
    let acpi = Acpi { cpus: found, nmi_pins, power, pm_timer: None, pci: Pci::default() };
    let ordered = acpi.cpus_from(9999);
    assert_eq!((ordered.len(), ordered[0].apic_id, ordered[1].apic_id), (MAX_CPUS, 9999, 0));
}

proptest::proptest! {
    /// Damage behind a checksum that was made right again, so that it gets all the way in.
    #[test]
    fn damage_that_adds_up_is_no_panic_either(
        damage in proptest::collection::vec((0..0xa00usize, proptest::num::u8::ANY), 1..6),
    ) {
        let mut machine = machine(2);
        for (at, value) in damage {
            machine.0[at] = value;
        }
        finish(&mut machine.0[..20], 8);
        finish(&mut machine.0[..36], 32);
        for at in [0x100, 0x200, 0x400, 0x600, 0x800] {
            let length = u32_in(&machine.0, at + 4).unwrap() as usize;
            if length >= HEADER && let Some(table) = machine.0.get_mut(at..at + length) {
                finish(table, 9);
            }
        }
        if let Ok(acpi) = Acpi::read(Some(BASE), &machine) {
            let ids: std::collections::BTreeSet<_> =
                acpi.cpus.iter().map(|cpu| cpu.apic_id).collect();
            proptest::prop_assert_eq!(ids.len(), acpi.cpus.len());
        }
    }
}

#[test]
fn no_damage_makes_it_panic() {
    let whole = machine(2).0;
    for at in 0..0xa00 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = Acpi::read(Some(BASE), &Fake(damaged));
        }
    }
    let _ = sleep_types(b"_S5_\x12");
    let _ = sleep_types(b"_S5_\x12\xff\x04\x0a");
}
