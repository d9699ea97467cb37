//! The same machine described by both loaders gives the same information.

use super::*;

/// Memory at an address of its own, aligned as loaders align it.
struct Fake {
    base: u64,
    words: std::vec::Vec<u64>,
}

impl Fake {
    fn new(base: u64, bytes: &[u8]) -> Self {
        let words = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        Self { base, words }
    }
}

impl Physical for Fake {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let bytes = zerocopy::IntoBytes::as_bytes(self.words.as_slice());
        let start = usize::try_from(address.checked_sub(self.base)?).ok()?;
        bytes.get(start..start.checked_add(length)?)
    }
}

const BASE: u64 = 0x9000;
const LINE: &str = "workload=sieve crash=panic,cpu=1";
const MAP: [(u64, u64, u32); 5] = [
    (0, 0x9_fc00, 1),
    (0x9_fc00, 0x400, 2),
    (0x10_0000, 0x7ee_0000, 1),
    (0x7fe_0000, 0x2_0000, 3),
    (0xfeff_c000, 0x4000, 2),
];
const MODULE: (u64, u64) = (0x50_0000, 0x1_2345);

fn put(bytes: &mut std::vec::Vec<u8>, words: &[u32]) {
    for word in words {
        bytes.extend(word.to_le_bytes());
    }
}

fn pad(bytes: &mut std::vec::Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

fn multiboot2() -> std::vec::Vec<u8> {
    let mut bytes = std::vec![0; 8];
    put(&mut bytes, &[1, 8 + LINE.len() as u32 + 1]);
    bytes.extend(LINE.bytes());
    bytes.push(0);
    pad(&mut bytes);
    let name = b"capture\0";
    let (start, size) = MODULE;
    put(&mut bytes, &[3, 16 + name.len() as u32, start as u32, (start + size) as u32]);
    bytes.extend(name);
    pad(&mut bytes);
    put(&mut bytes, &[6, 16 + 24 * MAP.len() as u32, 24, 0]);
    for (start, size, kind) in MAP {
        bytes.extend(start.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        put(&mut bytes, &[kind, 0]);
    }
    put(&mut bytes, &[14, 28]);
    bytes.extend(b"RSD PTR ");
    bytes.extend([0; 12]);
    pad(&mut bytes);
    put(&mut bytes, &[0, 8]);
    let size = bytes.len() as u32;
    bytes[..4].copy_from_slice(&size.to_le_bytes());
    bytes
}

fn pvh() -> std::vec::Vec<u8> {
    let (modules, line, name, map) = (BASE + 64, BASE + 128, BASE + 256, BASE + 272);
    let mut bytes = std::vec::Vec::new();
    put(&mut bytes, &[PVH_MAGIC, 1, 0, 1]);
    for word in [modules, line, 0xf_5b20, map] {
        bytes.extend(word.to_le_bytes());
    }
    put(&mut bytes, &[MAP.len() as u32, 0]);
    bytes.resize(64, 0);
    for word in [MODULE.0, MODULE.1, name, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(128, 0);
    bytes.extend(LINE.bytes());
    bytes.resize(256, 0);
    bytes.extend(b"capture\0");
    bytes.resize(272, 0);
    for (start, size, kind) in MAP {
        bytes.extend(start.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        put(&mut bytes, &[kind, 0]);
    }
    bytes
}

#[test]
fn both_loaders_describe_the_same_machine() {
    let grub = Fake::new(BASE, &multiboot2());
    let grub = BootInfo::detect(MULTIBOOT2_MAGIC, BASE as u32, &grub).unwrap();
    let qemu = Fake::new(BASE, &pvh());
    let qemu = BootInfo::detect(0, BASE as u32, &qemu).unwrap();
    assert_eq!((grub.loader, qemu.loader), (Loader::Multiboot2, Loader::Pvh));
    assert_eq!(grub.command_line, LINE);
    assert_eq!(grub.command_line, qemu.command_line);
    assert_eq!(grub.memory, qemu.memory);
    assert_eq!(grub.memory.len(), MAP.len());
    assert_eq!(grub.modules, qemu.modules);
    assert_eq!(grub.modules[0].name, "capture");
    assert_eq!(grub.modules[0].range, Range { start: MODULE.0, bytes: MODULE.1 });
    assert_eq!(qemu.rsdp, Some(0xf_5b20));
}

#[test]
fn the_rsdp_is_found_inside_the_tag() {
    let memory = Fake::new(BASE, &multiboot2());
    let info = BootInfo::from_multiboot2(&memory, BASE).unwrap();
    assert_eq!(memory.bytes(info.rsdp.unwrap(), 8), Some(&b"RSD PTR "[..]));
}

#[test]
fn another_loader_is_named_as_such() {
    let memory = Fake::new(BASE, &[0; 64]);
    let error = BootInfo::detect(0x2bad_b002, BASE as u32, &memory).unwrap_err();
    assert_eq!(error, BootError::UnknownLoader(0x2bad_b002));
    assert!(error.to_string().contains("multiboot2"));
}

#[test]
fn damage_is_an_error_or_harmless() {
    for (whole, magic) in [(multiboot2(), MULTIBOOT2_MAGIC), (pvh(), 0)] {
        for length in 0..whole.len() {
            let _ = BootInfo::detect(magic, BASE as u32, &Fake::new(BASE, &whole[..length]));
        }
    }
    // Multiboot2 tags are the crate's, which asserts some of their fields: damage there is a
    // panic with its text, and so ends in the crash path like any other.
    let whole = pvh();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        let _ = BootInfo::detect(0, BASE as u32, &Fake::new(BASE, &damaged));
    }
}

#[test]
fn pointers_to_the_end_of_the_address_space_are_errors() {
    // Module list, command line, module's own pointers, map: each as high as it gets.
    for at in [16, 24, 40, 64, 72, 80] {
        let mut bytes = pvh();
        bytes[at..at + 8].fill(0xff);
        let _ = BootInfo::detect(0, BASE as u32, &Fake::new(BASE, &bytes));
    }
}

#[test]
fn a_map_of_many_pieces_is_no_longer_than_what_it_says() {
    // 1000 pages that are neighbours, as UEFI lists them, then more holes than fit.
    let pages = (0..1000).map(|n| (Range { start: n << 12, bytes: 4096 }, MemoryKind::RAM));
    let (map, left_out) = normalise(pages);
    assert_eq!((map.len(), map[0].range.bytes, left_out), (1, 1000 << 12, (0, 0)));
    let pieces = (0..200).map(|n| (Range { start: n << 13, bytes: 4096 }, MemoryKind::RAM));
    let (map, left_out) = normalise(pieces);
    let lost = 200 - MAX_RANGES as u32;
    assert_eq!((map.len(), left_out), (MAX_RANGES, (lost, u64::from(lost) << 12)));
}

/// Bad pages cut RAM into many small ranges; the large one stands at the end, as memory above
/// 4 GiB does.
#[test]
fn the_largest_ranges_of_ram_are_kept_wherever_they_are() {
    let small = (0..500).flat_map(|n| {
        let start = 0x10_0000 + n * 0x3000;
        [
            (Range { start, bytes: 0x2000 }, MemoryKind::RAM),
            (Range { start: start + 0x2000, bytes: 0x1000 }, MemoryKind::BAD),
        ]
    });
    let others = [
        (Range { start: 0x7000_0000, bytes: 0x1000 }, MemoryKind::ACPI),
        (Range { start: 0x7000_1000, bytes: 0x1000 }, MemoryKind::ACPI_NVS),
        (Range { start: 1 << 32, bytes: 1 << 30 }, MemoryKind::RAM),
        (Range { start: 1 << 34, bytes: 1 << 31 }, MemoryKind::RAM),
    ];
    let (map, (ranges, ram)) = normalise(small.chain(others));
    assert_eq!(map.len(), MAX_RANGES);
    for (range, kind) in others {
        assert!(map.iter().any(|entry| (entry.range, entry.kind) == (range, kind)), "{range:?}");
    }
    // Nothing that is not RAM is kept where RAM is left out.
    let of = |kind| map.iter().filter(|entry| entry.kind == kind).count() as u32;
    assert_eq!(of(MemoryKind::BAD), 0);
    let lost = 500 - (of(MemoryKind::RAM) - 2);
    assert_eq!((ranges, ram), (500 + lost, u64::from(lost) * 0x2000));
    assert!(map.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start));
}

#[test]
fn a_command_line_that_is_cut_says_by_how_much() {
    for (bytes, left_out) in [(1, 0), (COMMAND_LINE_BYTES, 0), (COMMAND_LINE_BYTES + 7, 7)] {
        let line = "x".repeat(bytes);
        let mut info = BootInfo::empty(Loader::Pvh, Range::default());
        info.take_command_line(&line);
        assert_eq!(info.command_line, line[..bytes - left_out]);
        assert_eq!(info.left_out.command_line, left_out);
    }
}

#[test]
fn modules_beyond_the_room_are_counted() {
    let mut info = BootInfo::empty(Loader::Pvh, Range::default());
    for _ in 0..MAX_MODULES + 3 {
        info.add_module(Range::default(), "x");
    }
    assert_eq!((info.modules.len(), info.left_out.modules), (MAX_MODULES, 3));
}

proptest::proptest! {
    /// Byte by byte, in a small address space, against the plain definition.
    #[test]
    fn every_byte_has_the_strongest_kind_that_claims_it(
        areas in proptest::collection::vec((0..60u64, 0..20u64, 1..7u32), 0..12),
    ) {
        let areas = areas.into_iter().map(|(start, bytes, kind)| (Range { start, bytes }, MemoryKind(kind)));
        let (map, left_out) = normalise(areas.clone());
        proptest::prop_assert_eq!(left_out, (0, 0));
        for at in 0..90 {
            let expected = areas
                .clone()
                .filter(|(range, _)| range.holds(at, 1))
                .map(|(_, kind)| strength(kind))
                .max();
            let found: std::vec::Vec<_> =
                map.iter().filter(|entry| entry.range.holds(at, 1)).collect();
            proptest::prop_assert!(found.len() <= 1);
            proptest::prop_assert_eq!(found.first().map(|entry| strength(entry.kind)), expected);
        }
        for pair in map.windows(2) {
            let (left, right) = (&pair[0], &pair[1]);
            proptest::prop_assert!(left.range.end() <= right.range.start);
            proptest::prop_assert!(
                left.range.end() < right.range.start || left.kind != right.kind
            );
        }
    }
}

#[test]
fn usable_memory_gives_way_to_all_other_kinds_in_either_order() {
    type Kind = MemoryKind;
    let range = Range::between(0x1000, 0x2000);
    for pair in [Kind::RAM, Kind::ACPI, Kind::ACPI_NVS, Kind::RESERVED, Kind::BAD].windows(2) {
        for areas in [[pair[0], pair[1]], [pair[1], pair[0]]] {
            let (map, _) = normalise(areas.into_iter().map(|kind| (range, kind)));
            assert_eq!((map.len(), map[0].kind), (1, pair[1]));
        }
    }
}

#[test]
fn the_stronger_kind_wins_an_overlap() {
    let areas = [
        (Range::between(0x1000, 0x9000), MemoryKind::RAM),
        (Range::between(0x3000, 0x4000), MemoryKind::RESERVED),
        (Range::between(0x9000, 0xa000), MemoryKind::RAM),
        (Range::between(0x8000, 0x8800), MemoryKind::ACPI),
    ];
    let kinds: std::vec::Vec<_> = normalise(areas.into_iter())
        .0
        .iter()
        .map(|entry| (entry.range.start, entry.range.end(), entry.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (0x1000, 0x3000, MemoryKind::RAM),
            (0x3000, 0x4000, MemoryKind::RESERVED),
            (0x4000, 0x8000, MemoryKind::RAM),
            (0x8000, 0x8800, MemoryKind::ACPI),
            (0x8800, 0xa000, MemoryKind::RAM),
        ]
    );
}
