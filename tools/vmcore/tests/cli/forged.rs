//! Tables of a disk that lie although every checksum is right.

use std::os::unix::fs::MetadataExt;

use e2e::synth::area::header_bytes;
use e2e::synth::core::Core;
use vmcore_format::area::{
    AreaHeader, BLOCK_BYTES, ChunkEntry, DATA_OFFSET, SLOT_ALIGN, SlotOpen, StageSeal, chunk_kind,
};
use vmcore_format::core::{CoreHeader, LoadSegment, header_size};
use vmcore_format::reader::CoreReader;
use zerocopy::IntoBytes;

use crate::common::{Folder, answer, given, vmcore};

/// Pages of memory in the log: each stands for one chunk that is stored.
const PAGES: u64 = 8;

fn page(number: u64) -> Vec<u8> {
    (0..4096u64).map(|at| (at * 3 + number * 7 + 1) as u8).collect()
}

fn open() -> SlotOpen {
    let mut open = SlotOpen::new();
    (open.sequence, open.nonce, open.stages) = (3, 0x1234_5678, 1);
    open.set_message("a forged dump");
    open.seal();
    open
}

/// The entry of a page that is stored at page `number` of the log.
fn stored(number: u64, address: u64) -> ChunkEntry {
    let mut entry = ChunkEntry {
        offset: DATA_OFFSET + number * BLOCK_BYTES,
        address,
        stored_bytes: 4096,
        memory_bytes: 4096,
        kind: chunk_kind::RAW,
        ..ChunkEntry::default()
    };
    entry.checksum = entry.bind(ChunkEntry::hash(&page(number)), &open());
    entry
}

fn zero(address: u64, memory_bytes: u32) -> ChunkEntry {
    ChunkEntry { address, memory_bytes, kind: chunk_kind::ZERO, ..ChunkEntry::default() }
}

/// Address and bytes of the program headers that fit a table.
fn segments(entries: &[ChunkEntry]) -> Vec<(u64, u64)> {
    let mut segments: Vec<(u64, u64)> = Vec::new();
    for entry in entries {
        let bytes = u64::from(entry.memory_bytes);
        match segments.last_mut() {
            Some((start, length)) if *start + *length == entry.address => *length += bytes,
            _ => segments.push((entry.address, bytes)),
        }
    }
    segments
}

/// A disk with one sealed dump of such chunks and program headers, `disk.img`.
fn forge(folder: &Folder, entries: &[ChunkEntry], segments: &[(u64, u64)], end: Option<u64>) {
    let small = Core::small().build();
    let reader = CoreReader::new(&small, small.len() as u64).expect("a core");
    let bytes = header_bytes(&small) as usize + segments.len() * 56;
    let mut header = vec![0; header_size(bytes, segments.len()) as usize];
    let mut writer =
        CoreHeader::begin(&mut header, reader.machine(), segments.len()).expect("room");
    for note in reader.notes().flatten() {
        writer.note(note.owner, note.kind, note.desc).expect("room");
    }
    for &(address, bytes) in segments {
        let segment = LoadSegment {
            virtual_address: address,
            physical_address: address,
            file_bytes: bytes,
            memory_bytes: bytes,
            flags: 6,
        };
        writer.segment(segment).expect("room");
    }
    let layout = writer.finish().expect("a header");
    header.truncate(layout.header_bytes as usize);

    let mut log: Vec<u8> = (0..PAGES).flat_map(page).collect();
    let mut seal = StageSeal::new(&open());
    seal.complete = 1;
    let table = entries.as_bytes();
    seal.table_offset = DATA_OFFSET + log.len() as u64;
    seal.table_bytes = table.len() as u64;
    seal.table_crc32 = crc32fast::hash(table);
    log.extend(table);
    log.resize(log.len().next_multiple_of(4096), 0);
    seal.header_offset = DATA_OFFSET + log.len() as u64;
    seal.header_bytes = header.len() as u64;
    seal.header_crc32 = crc32fast::hash(&header);
    log.extend(&header);
    log.resize(log.len().next_multiple_of(4096), 0);
    seal.log_end = end.unwrap_or(DATA_OFFSET + log.len() as u64);
    let memory: u64 = entries.iter().map(|entry| u64::from(entry.memory_bytes)).sum();
    seal.elf_bytes = seal.header_bytes + memory;
    seal.seal();

    let slot_bytes = (DATA_OFFSET + log.len() as u64).next_multiple_of(SLOT_ALIGN);
    let mut area = AreaHeader::plan(2 * SLOT_ALIGN + slot_bytes, 1).expect("an area");
    area.seal();
    let mut disk = vec![0; area.area_bytes as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(0, area.as_bytes());
    put(SLOT_ALIGN, open().as_bytes());
    put(SLOT_ALIGN + BLOCK_BYTES, seal.as_bytes());
    put(SLOT_ALIGN + DATA_OFFSET, &log);
    folder.file("disk.img", &disk);
}

/// Checks that nothing is taken off the disk and that `what` is said; that reading it in part is
/// refused as well, or gives no more than what is stored.
fn refused(folder: &Folder, what: &str) {
    for salvage in [&[][..], &["--salvage"]] {
        let words = ["collect", "disk.img", "-o", "cores"];
        let (code, taken) = given(folder, &[&words[..], salvage].concat());
        assert_eq!(code, Some(3), "{taken}");
        let dump = &taken["dumps"][0];
        assert_eq!(dump["verified"], false, "{taken}");
        assert!(dump["warnings"].to_string().contains(what), "{what}: {taken}");
        if salvage.is_empty() {
            assert!(dump["core"].is_null() && dump["marked"] == false, "{taken}");
        }
    }
    let output = vmcore(folder, &["extract", "disk.img", "-o", "part", "--partial", "--force"]);
    assert!(matches!(output.status.code(), Some(1 | 3)), "{:?}", output.status);
    if let Ok(data) = std::fs::metadata(folder.path("part")) {
        assert!(data.blocks() * 512 < 8 << 20, "{} blocks", data.blocks());
        std::fs::remove_file(folder.path("part")).expect("remove it");
    }
}

#[test]
fn a_true_table_is_believed() {
    let folder = Folder::new("forged-none");
    let mut entries: Vec<_> = (0..PAGES).map(|number| stored(number, number * 8192)).collect();
    entries.push(zero(1 << 30, 64 << 20));
    forge(&folder, &entries, &segments(&entries), None);
    answer(&folder, &["extract", "disk.img", "-o", "core"]);
    let core = std::fs::read(folder.path("core")).expect("a core");
    assert!(core.windows(4096).any(|bytes| bytes == page(PAGES - 1)));
    answer(&folder, &["verify", "disk.img"]);
    assert!(std::fs::metadata(folder.path("core")).expect("it").blocks() * 512 < 1 << 20);
}

/// Ten terabytes that cost nothing: no command goes through them byte by byte.
#[test]
fn zeros_are_not_read() {
    let folder = Folder::new("forged-much");
    let mut entries: Vec<_> = (1..10_000).map(|number| zero(number << 30, 1 << 30)).collect();
    entries.push(stored(0, 0));
    let mut bad = stored(1, 8192);
    bad.checksum ^= 1;
    entries.push(bad);
    forge(&folder, &entries, &segments(&entries), None);
    for elide in [&[][..], &["--elide-zero"]] {
        let words = ["extract", "disk.img", "-o", "core", "--partial", "--force"];
        let (code, out) = given(&folder, &[&words[..], elide].concat());
        assert_eq!((code, &out["left_out"][0]["address"]), (Some(3), &"0x2000".into()), "{out}");
        let data = std::fs::metadata(folder.path("core")).expect("it");
        assert!(data.blocks() * 512 < 8 << 20, "{} blocks", data.blocks());
    }
    let (code, verified) = given(&folder, &["verify", "disk.img"]);
    assert_eq!((code, &verified["bad_count"]), (Some(3), &1.into()), "{verified}");
}

#[test]
fn one_chunk_listed_4000_times_is_damage() {
    let folder = Folder::new("forged-many");
    let entries = vec![stored(0, 0x10_0000); 4000];
    forge(&folder, &entries, &[(0x10_0000, 4000 * 4096)], None);
    refused(&folder, "share memory");
    // At an address of its own each time, every checksum right.
    let entries: Vec<_> = (0..4000).map(|number| stored(0, number * 4096)).collect();
    forge(&folder, &entries, &segments(&entries), None);
    refused(&folder, "shares its place");
}

#[test]
fn terabytes_of_zeros_are_damage() {
    let folder = Folder::new("forged-zeros");
    let most = u32::MAX / 4096 * 4096;
    let entries: Vec<_> = (0..100_000).map(|number| zero(number << 32, most)).collect();
    forge(&folder, &entries, &[(0, 100_000 << 32)], None);
    refused(&folder, "bytes of memory");
    // Fewer than the most there can be, in chunks that no capture makes.
    let entries: Vec<_> = (0..1000).map(|number| zero(number << 32, most)).collect();
    forge(&folder, &entries, &segments(&entries), None);
    refused(&folder, "impossible size");
    let entries = vec![zero(0x10_0000, 1 << 20); 100_000];
    forge(&folder, &entries, &[(0x10_0000, 100_000 << 20)], None);
    refused(&folder, "share memory");
}

#[test]
fn chunks_lie_in_the_used_log_and_in_the_program_headers() {
    let folder = Folder::new("forged-places");
    let good: Vec<_> = (0..PAGES).map(|number| stored(number, number * 4096)).collect();
    forge(&folder, &good, &segments(&good), Some(DATA_OFFSET + 3 * 4096));
    refused(&folder, "leads behind the end of its log");
    // Program headers of other memory, or of less.
    forge(&folder, &good, &[(0x80_0000, PAGES * 4096)], None);
    refused(&folder, "not where the program headers say");
    forge(&folder, &good, &[(0, 4096)], None);
    refused(&folder, "not where the program headers say");
    // Two program headers of one memory.
    forge(&folder, &good, &[(0, 4 * 4096), (4096, 4 * 4096)], None);
    refused(&folder, "two program headers share memory");
    // A chunk that is the table.
    let mut entries = good.clone();
    entries[3] = stored(PAGES, 3 * 4096);
    forge(&folder, &entries, &segments(&entries), None);
    refused(&folder, "the table or the header");
}
