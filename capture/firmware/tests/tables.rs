//! Tables as QEMU makes them, tables put together here, and damage to both.

use std::cell::Cell;
use std::collections::BTreeMap;

use epitaph_firmware::acpi::{
    ConsoleKind, CpuEntry, Location, MAX_BYTES_READ, NmiPin, PmTimer, ScopeKind, WatchdogAction,
};
use epitaph_firmware::hardware::{Ports, Registers};
use epitaph_firmware::{Acpi, AcpiError, PhysicalMemory, Unreadable};
use handoff::Range;

const Q35_VTD: &[u8] = include_bytes!("fixtures/q35-vtd.bin");
const Q35_AMD: &[u8] = include_bytes!("fixtures/q35-amd.bin");
const PC: &[u8] = include_bytes!("fixtures/pc.bin");

/// Memory of which some parts exist.
#[derive(Clone, Default)]
struct Ram {
    parts: BTreeMap<u64, Vec<u8>>,
    read: Cell<u64>,
}

impl PhysicalMemory for Ram {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        self.read.set(self.read.get() + buffer.len() as u64);
        let (start, part) = self.parts.range(..=address).next_back().ok_or(Unreadable)?;
        let at = usize::try_from(address - start).map_err(|_| Unreadable)?;
        let end = at.checked_add(buffer.len()).ok_or(Unreadable)?;
        buffer.copy_from_slice(part.get(at..end).ok_or(Unreadable)?);
        Ok(())
    }
}

impl Ram {
    /// From a fixture: address, length and bytes of each part.
    fn of(mut fixture: &[u8]) -> Self {
        let mut ram = Self::default();
        while let Some((head, rest)) = fixture.split_at_checked(12) {
            let address = u64::from_le_bytes(head[..8].try_into().unwrap());
            let length = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
            ram.parts.insert(address, rest[..length].to_vec());
            fixture = &rest[length..];
        }
        ram
    }

    /// A machine with these tables: RSDP of `revision`, RSDT and XSDT.
    fn with(revision: u8, tables: &[Vec<u8>]) -> Self {
        let mut ram = Self::default();
        let places: Vec<u64> = (0..tables.len() as u64).map(|n| 0x10_0000 + n * 0x1_0000).collect();
        for (at, table) in places.iter().zip(tables) {
            ram.parts.insert(*at, table.clone());
        }
        let rsdt: Vec<u8> = places.iter().flat_map(|at| (*at as u32).to_le_bytes()).collect();
        let xsdt: Vec<u8> = places.iter().flat_map(|at| at.to_le_bytes()).collect();
        ram.parts.insert(0xf_1000, table(b"RSDT", &rsdt));
        ram.parts.insert(0xf_4000, table(b"XSDT", &xsdt));
        let mut rsdp = b"RSD PTR \0EPITAP".to_vec();
        rsdp.push(revision);
        rsdp.extend(0xf_1000_u32.to_le_bytes());
        finish(&mut rsdp, 8);
        rsdp.extend(36_u32.to_le_bytes());
        rsdp.extend(0xf_4000_u64.to_le_bytes());
        rsdp.extend([0; 4]);
        finish(&mut rsdp, 32);
        ram.parts.insert(RSDP, rsdp);
        ram
    }
}

const RSDP: u64 = 0xf_0000;

fn finish(bytes: &mut [u8], checksum_at: usize) {
    bytes[checksum_at] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[checksum_at] = sum.wrapping_neg();
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.resize(36, 0);
    bytes.extend(body);
    finish(&mut bytes, 9);
    bytes
}

/// A table with `fields` at their offsets, which count from the header on.
fn table_of(signature: &[u8; 4], length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; length - 36];
    for (at, field) in fields {
        bytes[at - 36..at - 36 + field.len()].copy_from_slice(field);
    }
    table(signature, &bytes)
}

fn register(space: u8, bits: u8, access: u8, address: u64) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    [space, bits, 0, access, a, b, c, d, e, f, g, h]
}

/// Asks for everything there is; the result does not matter.
fn ask_all(ram: &Ram, rsdp: Option<u64>) {
    let Ok(acpi) = Acpi::open(ram, rsdp) else { return };
    let fadt = acpi.fadt();
    let aml = acpi.aml(fadt.as_ref());
    let _ = acpi.pci(&aml);
    if let Some(fadt) = fadt {
        let _ = (acpi.power(&fadt, aml.sleep_types), acpi.pm_timer(&fadt));
    }
    let _ = (acpi.cpus().count(), acpi.nmi_pins().count(), acpi.config_spaces().count());
    let _ = (acpi.console(), acpi.dmar_flags(), acpi.amd_vi_units());
    for unit in acpi.vtd_units() {
        assert!(acpi.vtd_scopes(&unit).count() <= 1 << 16);
    }
    if let Some(watchdog) = acpi.watchdog() {
        let counts = watchdog.counts(10_000);
        assert!((watchdog.min_count..=watchdog.max_count).contains(&counts));
        acpi.do_with_watchdog(&watchdog, WatchdogAction::Feed, counts, &Devices::default());
    }
}

#[derive(Default)]
struct Devices {
    port: Cell<u16>,
    memory: Cell<u32>,
}

impl Ports for Devices {
    fn read8(&self, _: u16) -> u8 {
        self.port.get() as u8
    }
    fn read16(&self, _: u16) -> u16 {
        self.port.get()
    }
    fn read32(&self, _: u16) -> u32 {
        self.port.get().into()
    }
    fn write8(&self, _: u16, value: u8) {
        self.port.set(value.into());
    }
    fn write16(&self, port: u16, value: u16) {
        assert_eq!(port, 0x468);
        self.port.set(value);
    }
    fn write32(&self, _: u16, _: u32) {}
}

impl Registers for Devices {
    fn read_memory8(&self, _: u64) -> u8 {
        0
    }
    fn read_memory16(&self, _: u64) -> u16 {
        0
    }
    fn read_memory32(&self, _: u64) -> u32 {
        self.memory.get()
    }
    fn write_memory8(&self, _: u64, _: u8) {}
    fn write_memory16(&self, _: u64, _: u16) {}
    fn write_memory32(&self, address: u64, value: u32) {
        assert_eq!(address, 0xfed0_0000);
        self.memory.set(value);
    }
}

#[test]
fn q35_with_vtd_is_read_as_qemu_made_it() {
    let ram = Ram::of(Q35_VTD);
    let acpi = Acpi::open(&ram, None).unwrap();
    let ids: Vec<_> = acpi.cpus().map(|cpu| (cpu.apic_id, cpu.acpi_id)).collect();
    assert_eq!(ids, [0, 1, 2, 3].map(|id| (id, Some(id))));
    let pins: Vec<_> = acpi.nmi_pins().collect();
    assert_eq!(pins, [NmiPin { acpi_id: None, pin: 1, active_low: false }]);
    let fadt = acpi.fadt().unwrap();
    assert_eq!(acpi.pm_timer(&fadt), Some(PmTimer { port: 0x608, wide: false }));
    let aml = acpi.aml(Some(&fadt));
    assert_eq!(aml.sleep_types, Some((0, 0)));
    assert_eq!(aml.root_buses, [0, 1, 0, 0]);
    let power = acpi.power(&fadt, aml.sleep_types);
    assert_eq!((power.pm1a_control, power.pm1b_control), (0x604, 0));
    assert_eq!((power.reset_space, power.reset_address, power.reset_value), (1, 0xcf9, 15));
    let pci = acpi.pci(&aml);
    let spaces: Vec<_> = pci
        .config_spaces
        .iter()
        .map(|space| (space.segment, space.address, space.first_bus, space.last_bus))
        .collect();
    assert_eq!(spaces, [(0, 0xb000_0000, 0, 255)]);
    assert!(acpi.dmar_flags().unwrap().remaps_interrupts());
    let units: Vec<_> = acpi.vtd_units().collect();
    assert_eq!(units.len(), 1);
    assert_eq!((units[0].registers, units[0].segment), (0xfed9_0000, 0));
    assert_eq!(units[0].register_bytes, 4096);
    let scopes: Vec<_> = acpi.vtd_scopes(&units[0]).collect();
    assert_eq!(scopes[0].kind, ScopeKind::IoApic);
    assert!(acpi.amd_vi_units().is_empty() && acpi.console().is_none());
    assert!(acpi.watchdog().is_none());
    assert_eq!(acpi.table(b"HPET").map(|table| table.bytes()), Some(56));
}

#[test]
fn q35_with_amd_vi_and_a_pc_are_read_as_qemu_made_them() {
    let ram = Ram::of(Q35_AMD);
    let acpi = Acpi::open(&ram, None).unwrap();
    let units = acpi.amd_vi_units();
    assert_eq!(units.len(), 1, "blocks of type 10h and 11h name the same unit");
    assert_eq!((units[0].registers, units[0].segment), (0xfed8_0000, 0));
    assert!(acpi.dmar_flags().is_none() && acpi.vtd_units().next().is_none());
    assert_eq!(acpi.cpus().count(), 2);
    let ram = Ram::of(PC);
    let acpi = Acpi::open(&ram, None).unwrap();
    let fadt = acpi.fadt().unwrap();
    assert_eq!(acpi.pm_timer(&fadt), Some(PmTimer { port: 0x608, wide: false }));
    // Without the DSDT, which the fixture leaves out, nothing says what to write.
    assert_eq!(acpi.power(&fadt, acpi.aml(Some(&fadt)).sleep_types).pm1a_control, 0);
    assert_eq!(acpi.config_spaces().count(), 0);
}

#[test]
fn processors_and_nmi_pins_of_all_kinds_are_listed() {
    let mut madt = vec![0; 8];
    for entry in [
        &[0, 8, 5, 4, 1, 0, 0, 0][..],
        &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // Switched off; online capable.
        &[0, 8, 0, 6, 0, 0, 0, 0],
        &[0, 8, 0, 7, 2, 0, 0, 0],
        &[9, 16, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0, 0],
        // LINT1 of every CPU, active high; LINT0 of one, active low.
        &[4, 6, 0xff, 5, 0, 1],
        &[10, 12, 3, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        &[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        // No length: the end.
        &[0, 0],
        &[0, 8, 5, 8, 1, 0, 0, 0],
    ] {
        madt.extend(entry);
    }
    let ram = Ram::with(2, &[table(b"APIC", &madt)]);
    let acpi = Acpi::open(&ram, Some(RSDP)).unwrap();
    let cpu = |apic_id, acpi_id| CpuEntry { apic_id, acpi_id: Some(acpi_id) };
    assert_eq!(acpi.cpus().collect::<Vec<_>>(), [cpu(4, 5), cpu(0x1_0000, 9)]);
    let pin = |acpi_id, pin, active_low| NmiPin { acpi_id, pin, active_low };
    let pins = [pin(None, 1, false), pin(Some(9), 0, true), pin(None, 1, false)];
    assert_eq!(acpi.nmi_pins().collect::<Vec<_>>(), pins);
}

#[test]
fn either_root_table_alone_is_enough() {
    let open = |revision, damage: &[u64]| {
        let mut ram = Ram::with(revision, &[table(b"HPET", &[])]);
        for at in damage {
            ram.parts.get_mut(at).unwrap()[20] ^= 1;
        }
        Acpi::open(&ram, None).map(|acpi| acpi.table(b"HPET").is_some())
    };
    assert_eq!(open(2, &[]), Ok(true));
    assert_eq!(open(2, &[0xf_1000]), Ok(true));
    assert_eq!(open(2, &[0xf_4000]), Ok(true));
    assert_eq!(open(0, &[0xf_4000]), Ok(true));
    assert_eq!(open(0, &[0xf_1000]), Err(AcpiError::Damaged));
    assert_eq!(open(2, &[0xf_1000, 0xf_4000]), Err(AcpiError::Damaged));
    assert_eq!(Acpi::open(&Ram::default(), None).err(), Some(AcpiError::NoRsdp));
}

#[test]
fn a_hardware_reduced_machine_sleeps_by_its_own_register() {
    let flags = (1_u32 << 20 | 1 << 10).to_le_bytes();
    let (sleep, reset) = (register(0, 8, 1, 0xfee0_0000), register(0, 8, 1, 0xfec0_0000));
    let fields: &[(usize, &[u8])] =
        &[(64, &[4, 6, 0, 0]), (76, &[8, 6]), (112, &flags), (116, &reset), (244, &sleep)];
    let ram = Ram::with(2, &[table_of(b"FACP", 268, fields)]);
    let acpi = Acpi::open(&ram, None).unwrap();
    let fadt = acpi.fadt().unwrap();
    let power = acpi.power(&fadt, Some((5, 5)));
    assert_eq!((power.sleep_space, power.sleep_control), (0, 0xfee0_0000));
    assert_eq!((power.pm1a_control, power.sleep_type_a), (0, 5));
    assert_eq!((power.reset_space, power.reset_address), (0, 0xfec0_0000));
    assert_eq!(acpi.pm_timer(&fadt), None);
}

#[test]
fn the_64_bit_fields_win_and_a_wide_timer_is_known() {
    let flags = (1_u32 << 8).to_le_bytes();
    let (control, timer) = (register(1, 16, 2, 0x1804), register(1, 32, 3, 0x1808));
    let fields: &[(usize, &[u8])] =
        &[(64, &[4, 6]), (76, &[8, 6]), (112, &flags), (172, &control), (208, &timer)];
    let ram = Ram::with(2, &[table_of(b"FACP", 268, fields)]);
    let acpi = Acpi::open(&ram, None).unwrap();
    let fadt = acpi.fadt().unwrap();
    assert_eq!(acpi.power(&fadt, Some((5, 5))).pm1a_control, 0x1804);
    assert_eq!(acpi.pm_timer(&fadt), Some(PmTimer { port: 0x1808, wide: true }));
}

#[test]
fn every_segment_is_listed_and_sorted_for_the_facts() {
    let entries = [
        (0x7000_0000_u64, 2_u16, 128, 255),
        (0x4000_0000, 1, 9, 8),
        (0, 3, 0, 255),
        (0x5000_0000, 2, 0, 127),
        (0x6000_0000, 1, 0, 31),
    ];
    let mut mcfg = vec![0; 8];
    for (address, segment, first, last) in entries {
        mcfg.extend(address.to_le_bytes());
        mcfg.extend(segment.to_le_bytes());
        mcfg.extend([first, last, 0, 0, 0, 0]);
    }
    let ram = Ram::with(2, &[table(b"MCFG", &mcfg)]);
    let acpi = Acpi::open(&ram, None).unwrap();
    assert_eq!(acpi.config_spaces().count(), 3);
    let mut aml = acpi.aml(None);
    let spaces = |aml: &_| {
        let spaces = acpi.pci(aml).config_spaces;
        spaces.iter().map(|at| (at.segment, at.address, at.first_bus)).collect::<Vec<_>>()
    };
    let rest = [(1, 0x6000_0000, 0), (2, 0x5000_0000, 0), (2, 0x7000_0000, 128)];
    assert_eq!(spaces(&aml), rest);
    // Segment 0 is then the AML's, and what it passes on lies elsewhere.
    aml.config_space = Some(0xe000_0000);
    let windows = [0xe000_0000, 0xc000_0000].map(|start| Range { start, bytes: 0x1000_0000 });
    aml.memory_windows.extend(windows);
    assert_eq!(spaces(&aml), [&[(0, 0xe000_0000, 0)][..], &rest].concat());
    assert_eq!(acpi.pci(&aml).window, Some(windows[1]));
}

#[test]
fn a_console_is_a_port_or_registers_in_memory() {
    let console = |kind: u8, base: [u8; 12], baud: u8| {
        let fields: &[(usize, &[u8])] = &[(36, &[kind]), (40, &base), (58, &[baud])];
        let ram = Ram::with(2, &[table_of(b"SPCR", 80, fields)]);
        let console = Acpi::open(&ram, None).unwrap().console();
        console.map(|at| (at.kind, at.location, at.stride, at.baud))
    };
    let port = console(0, register(1, 8, 0, 0x3f8), 7);
    assert_eq!(port, Some((ConsoleKind::Uart16550, Location::Port(0x3f8), 1, Some(115_200))));
    let arm = console(3, register(0, 32, 3, 0x900_0000), 0);
    assert_eq!(arm, Some((ConsoleKind::Pl011, Location::Memory(0x900_0000), 4, None)));
    assert_eq!(console(0, register(0, 8, 1, 0), 7), None, "redirection is off");
    assert_eq!(console(0, register(1, 8, 1, 0x1_03f8), 7), None, "no such port");
    assert_eq!(console(0x42, register(0, 8, 1, 16), 7).unwrap().0, ConsoleKind::Other(0x42));
}

#[test]
fn units_of_vtd_name_their_devices() {
    let mut dmar = vec![38, 0b101, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // A unit with an endpoint behind a bridge; a reserved region; the unit for the rest.
    dmar.extend([0, 0, 26, 0, 0, 1, 2, 0]);
    dmar.extend(0xfed9_0000_u64.to_le_bytes());
    dmar.extend([1, 10, 0, 0, 0, 3, 0x1c, 0, 0, 2]);
    dmar.extend([1, 0, 8, 0, 0, 0, 0, 0]);
    dmar.extend([0, 0, 16, 0, 1, 0, 0, 0]);
    dmar.extend(0xfed9_1000_u64.to_le_bytes());
    let ram = Ram::with(2, &[table(b"DMAR", &dmar)]);
    let acpi = Acpi::open(&ram, None).unwrap();
    let flags = acpi.dmar_flags().unwrap();
    assert!(flags.firmware_protects_dma() && !flags.opts_out_of_x2apic());
    let units: Vec<_> = acpi.vtd_units().collect();
    assert_eq!((units[0].segment, units[0].register_bytes, units[0].include_all), (2, 8192, false));
    assert_eq!((units[1].registers, units[1].include_all), (0xfed9_1000, true));
    let scopes: Vec<_> = acpi.vtd_scopes(&units[0]).collect();
    assert_eq!(scopes.len(), 1);
    assert_eq!((scopes[0].kind, scopes[0].start_bus), (ScopeKind::Endpoint, 3));
    assert_eq!(scopes[0].path, [(0x1c, 0), (0, 2)]);
    assert_eq!(acpi.vtd_scopes(&units[1]).count(), 0);
}

#[test]
fn a_watchdog_of_the_firmware_is_fed_by_its_instructions() {
    let mut entries = Vec::new();
    let mut add = |action: u8, kind: u8, register: [u8; 12], value: u32, mask: u32| {
        entries.extend([action, kind, 0, 0]);
        entries.extend(register);
        entries.extend(value.to_le_bytes());
        entries.extend(mask.to_le_bytes());
    };
    let mut shifted = register(0, 32, 3, 0xfed0_0000);
    shifted[2] = 4;
    add(1, 2, register(1, 16, 2, 0x468), 0x55, 0xffff);
    add(6, 0x83, shifted, 0, 0x3f);
    add(8, 0, register(1, 16, 2, 0x468), 0x55, 0xff);
    let words = [0_u32, 0, 0, 600, 1023, 4, 1, 3].map(u32::to_le_bytes).concat();
    let ram = Ram::with(2, &[table(b"WDAT", &[words, entries].concat())]);
    let acpi = Acpi::open(&ram, None).unwrap();
    let watchdog = acpi.watchdog().expect("a watchdog");
    assert_eq!((watchdog.counts(0), watchdog.counts(30_000)), (4, 50));
    assert_eq!(watchdog.counts(u64::MAX), 1023);
    let devices = Devices::default();
    devices.memory.set(0xffff_ffff);
    let act = |action| acpi.do_with_watchdog(&watchdog, action, 0x15, &devices);
    assert_eq!(act(WatchdogAction::IsRunning), Some(0));
    assert_eq!(act(WatchdogAction::Feed), Some(0));
    assert_eq!(devices.port.get(), 0x55);
    assert_eq!(act(WatchdogAction::IsRunning), Some(1));
    // The field is replaced, and the bits around it stay.
    assert_eq!(act(WatchdogAction::SetCounts), Some(0));
    assert_eq!(devices.memory.get(), 0xffff_fd5f);
    assert_eq!(act(WatchdogAction::Stop), None);
}

#[test]
fn a_root_table_that_names_one_large_table_often_ends() {
    let large = table(b"SSDT", &vec![b'_'; (1 << 20) - 36]);
    let mut ram = Ram::with(2, &vec![table(b"HPET", &[]); 600]);
    let at = 0x8000_0000_u64;
    ram.parts.insert(at, large);
    ram.parts.insert(0xf_4000, table(b"XSDT", &at.to_le_bytes().repeat(600)));
    ask_all(&ram, Some(RSDP));
    assert!(ram.read.get() <= MAX_BYTES_READ, "{} bytes", ram.read.get());
}

#[test]
fn tables_cut_off_anywhere_are_absent_or_read_as_far_as_they_go() {
    for fixture in [Q35_VTD, Q35_AMD, PC] {
        let whole = Ram::of(fixture);
        for (at, part) in &whole.parts {
            let step = (part.len() / 64).max(1);
            for length in (0..part.len()).step_by(step) {
                let mut ram = whole.clone();
                ram.parts.get_mut(at).unwrap().truncate(length);
                ask_all(&ram, None);
                // With a length and a checksum that say so.
                let part = ram.parts.get_mut(at).unwrap();
                if part.len() >= 36 && !part.starts_with(b"RSD PTR ") {
                    part[4..8].copy_from_slice(&(length as u32).to_le_bytes());
                    finish(part, 9);
                    ask_all(&ram, None);
                }
            }
        }
    }
}

proptest::proptest! {
    /// Damage behind a checksum that was made right again, so that it gets all the way in.
    #[test]
    fn damage_that_adds_up_is_no_panic(
        which in 0..3usize,
        damage in proptest::collection::vec(
            (0..12usize, 0..200usize, proptest::num::u8::ANY), 1..8),
    ) {
        let mut ram = Ram::of([Q35_VTD, Q35_AMD, PC][which]);
        for (part, at, value) in damage {
            let count = ram.parts.len();
            let (_, bytes) = ram.parts.iter_mut().nth(part % count).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        for bytes in ram.parts.values_mut() {
            let at = if bytes.len() <= 36 { 8 } else { 9 };
            finish(bytes, at);
        }
        ask_all(&ram, None);
        proptest::prop_assert!(ram.read.get() <= MAX_BYTES_READ + (1 << 20));
    }

    /// Bodies of random bytes under signatures that are looked for.
    #[test]
    fn random_tables_are_no_panic(
        bodies in proptest::collection::vec(
            proptest::collection::vec(proptest::num::u8::ANY, 0..300), 8),
    ) {
        let names = [b"APIC", b"FACP", b"MCFG", b"SPCR", b"DMAR", b"IVRS", b"WDAT", b"SSDT"];
        let tables: Vec<_> = names.iter().zip(&bodies).map(|(name, body)| table(name, body)).collect();
        ask_all(&Ram::with(2, &tables), None);
    }
}
