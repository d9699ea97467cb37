//! The builder and the reader agree, and no bytes at all make the reader panic.

use proptest::prelude::*;
use vmcore_format::area::AreaError;
use vmcore_format::core::{
    CoreError, CoreHeader, Layout, LoadSegment, header_size, note_size, write_note,
};
use vmcore_format::gpt::GptError;
use vmcore_format::notes::{self, CORE_OWNER, EPITAPH_OWNER, LINUX_OWNER};
use vmcore_format::reader::{CoreReader, ReadError, parse_note};

const X86_64: u16 = 62;

fn segment(address: u64, pages: u64) -> LoadSegment {
    let bytes = pages * 4096;
    LoadSegment {
        virtual_address: address,
        physical_address: address,
        file_bytes: bytes,
        memory_bytes: bytes,
        flags: 7,
    }
}

/// A small core's header with one note of each shape.
fn sample(buffer: &mut [u8]) -> Layout {
    let mut header = CoreHeader::begin(buffer, X86_64, 3).unwrap();
    let registers = core::array::from_fn(|word| word as u64);
    header.note(CORE_OWNER, notes::NT_PRSTATUS, &notes::prstatus(2, 6, &registers)).unwrap();
    header.note(CORE_OWNER, notes::NT_PRPSINFO, &notes::prpsinfo("appliance", "panic: x")).unwrap();
    header.note(LINUX_OWNER, notes::NT_LINUX, &[]).unwrap();
    let parts: [&[u8]; 3] = [b"ab", b"", b"cde"];
    header.note_parts(EPITAPH_OWNER, notes::NT_EPITAPH_BUILD_ID, &parts).unwrap();
    header.segment(segment(0, 2)).unwrap();
    let zeros = LoadSegment { file_bytes: 0, ..segment(0x10_0000, 16) };
    header.segment(zeros).unwrap();
    header.segment(segment(0x100_0000, 3)).unwrap();
    header.finish().unwrap()
}

#[test]
fn what_is_built_is_read_back() {
    let mut buffer = vec![0xee; 16384];
    let layout = sample(&mut buffer);
    assert_eq!(layout, Layout { header_bytes: 4096, file_bytes: 4096 + 5 * 4096 });
    let reader = CoreReader::new(&buffer[..4096], layout.file_bytes).unwrap();
    assert_eq!(reader.machine(), X86_64);
    assert_eq!(reader.needed_bytes(), layout.file_bytes);
    assert_eq!(reader.header_bytes(), layout.header_bytes);
    let segments: Vec<_> = reader.segments().map(|s| (s.load, s.offset)).collect();
    assert_eq!(segments[0], (segment(0, 2), 4096));
    assert_eq!(segments[1].1, 3 * 4096);
    assert_eq!((segments[1].0.file_bytes, segments[1].0.memory_bytes), (0, 16 * 4096));
    assert_eq!(segments[2], (segment(0x100_0000, 3), 3 * 4096));
    let found: Vec<_> = reader.notes().map(Result::unwrap).collect();
    let kinds: Vec<_> = found.iter().map(|note| (note.owner, note.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("CORE", 1),
            ("CORE", 3),
            ("LINUX", notes::NT_LINUX),
            ("EPITAPH", notes::NT_EPITAPH_BUILD_ID)
        ]
    );
    assert_eq!(found[3].desc, b"abcde");
    // PT_NOTE comes first, aligned to four bytes: gdb reads no note that claims eight.
    assert_eq!(buffer[64..68], 4u32.to_le_bytes());
    assert_eq!(buffer[64 + 48..64 + 56], 4u64.to_le_bytes());
    // What lies behind the notes is padding, not what was in the buffer.
    assert!(buffer[2000..4096].iter().all(|&byte| byte == 0));
}

#[test]
fn notes_behind_the_memory_are_no_part_of_the_header() {
    let mut buffer = vec![0; 8192];
    let mut header = CoreHeader::begin(&mut buffer, X86_64, 2).unwrap();
    header.note(CORE_OWNER, 1, &[7; 336]).unwrap();
    header.segment(segment(0x1000, 1)).unwrap();
    let bytes = note_size(EPITAPH_OWNER.len(), 10);
    header.notes_behind(bytes as u64).unwrap();
    assert_eq!(header.notes_behind(8), Err(CoreError::TooManySegments));
    let layout = header.finish().unwrap();
    assert_eq!(layout.file_bytes, 8192 + bytes as u64);
    let reader = CoreReader::new(&buffer[..4096], layout.file_bytes).unwrap();
    assert_eq!(reader.needed_bytes(), layout.file_bytes);
    assert_eq!(reader.header_bytes(), 4096);
    assert_eq!(reader.notes().count(), 1);
    assert_eq!(reader.notes_behind().collect::<Vec<_>>(), [(8192, bytes as u64)]);
    let mut note = [0xff; 64];
    assert_eq!(write_note(&mut note[..bytes - 1], EPITAPH_OWNER, 12, &[3; 10]), 0);
    assert_eq!(write_note(&mut note, EPITAPH_OWNER, 12, &[3; 10]), bytes);
    let (found, taken) = parse_note(&note[..bytes]).unwrap();
    assert_eq!((found.owner, found.kind, found.desc), (EPITAPH_OWNER, 12, &[3; 10][..]));
    assert_eq!((found.offset, taken), (20, bytes));
}

#[test]
fn standard_notes_are_laid_out_as_linux_does() {
    let registers = core::array::from_fn(|word| 0x1000 + word as u64);
    let status = notes::prstatus(3, 11, &registers);
    assert_eq!(status.len(), 336);
    assert_eq!(status[12..14], 11u16.to_le_bytes());
    assert_eq!(status[32..36], 3i32.to_le_bytes());
    assert_eq!(status[112 + 16 * 8..][..8], 0x1010u64.to_le_bytes(), "rip");
    let info = notes::prpsinfo("a-name-longer-than-it-can-be", "one\nline");
    assert_eq!(info.len(), 136);
    assert_eq!(&info[40..56], b"a-name-longer-t\0");
    assert_eq!(&info[56..65], b"one line\0");
    let mut buffer = [0xff; 128];
    let bytes = notes::write_auxv(&mut buffer, &[(notes::AT_ENTRY, 0x100_0000)]);
    assert_eq!(bytes, 32);
    assert_eq!(buffer[..8], 9u64.to_le_bytes());
    assert_eq!(buffer[16..32], [0; 16]);
    let entries = [(0x1000, 0x3000, 0), (0x3000, 0x4000, 2)];
    let bytes = notes::write_file_note(&mut buffer, entries.into_iter(), "app");
    assert_eq!(bytes, 16 + 2 * 24 + 8);
    assert_eq!(buffer[..8], 2u64.to_le_bytes());
    assert_eq!(&buffer[64..72], b"app\0app\0");
    assert_eq!(notes::write_file_note(&mut buffer[..71], entries.into_iter(), "app"), 0);
    assert_eq!(notes::write_auxv(&mut buffer[..31], &[(1, 2)]), 0);
}

#[test]
fn the_planned_size_is_the_size() {
    let mut buffer = vec![0; 1 << 16];
    for notes in 0..40 {
        let mut header = CoreHeader::begin(&mut buffer, X86_64, 7).unwrap();
        for _ in 0..notes {
            header.note(EPITAPH_OWNER, 1, &[1; 333]).unwrap();
        }
        let planned = header_size(notes * note_size(EPITAPH_OWNER.len(), 333), 7);
        assert_eq!(header.finish().unwrap().header_bytes, planned);
    }
}

#[test]
fn more_program_headers_than_sixteen_bits_can_count() {
    for segments in [0xfffd, 0xfffe, 70_000] {
        let bytes = header_size(note_size(4, 336), segments) as usize;
        let mut buffer = vec![0; bytes];
        let mut header = CoreHeader::begin(&mut buffer, X86_64, segments).unwrap();
        header.note(CORE_OWNER, 1, &notes::prstatus(1, 6, &[0; 27])).unwrap();
        for index in 0..segments as u64 {
            header.segment(segment(index * 8192, 1)).unwrap();
        }
        let layout = header.finish().unwrap();
        let reader = CoreReader::new(&buffer, layout.file_bytes).unwrap();
        assert_eq!(reader.segments().count(), segments);
        assert_eq!(reader.notes().count(), 1);
        let extended = buffer[56..58] == [0xff, 0xff];
        assert_eq!(extended, segments >= 0xfffe);
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let says = |error: &dyn core::error::Error| error.to_string();
    assert_eq!(
        says(&CoreError::BadSegment(0x10)),
        "segment at 0x10 is not made of whole pages, has more bytes in the file than in memory, \
         or ends past the last address"
    );
    assert_eq!(says(&ReadError::NotCore(2)), "an ELF file of type 2, not a core (type 4)");
    assert_eq!(says(&AreaError::Checksum(1, 0xabc)), "checksum 00000001 stored, 00000abc computed");
    assert_eq!(says(&GptError::<CoreError>::None), "the disk has no GPT partition table");
    // The reader's own error is the source.
    let disk = GptError::Disk(AreaError::TooShort);
    assert_eq!(says(&disk), "cannot read the partition table: record cut short");
    assert_eq!(says(core::error::Error::source(&disk).unwrap()), "record cut short");
}

#[test]
fn a_full_buffer_and_bad_segments_are_errors() {
    let mut small = [0; 100];
    let error = CoreHeader::begin(&mut small, X86_64, 1).unwrap_err();
    assert_eq!(error, CoreError::BufferTooSmall { needed: 4096 });
    let mut buffer = [0; 4096];
    let mut header = CoreHeader::begin(&mut buffer, X86_64, 1).unwrap();
    let error = header.note("X", 1, &[0; 4096]).unwrap_err();
    assert_eq!(error, CoreError::BufferTooSmall { needed: 8192 });
    let crooked = LoadSegment { physical_address: 0x10, ..segment(0, 1) };
    assert_eq!(header.segment(crooked).unwrap_err(), CoreError::BadSegment(0x10));
    let wrapping = segment(u64::MAX - 4095, 1);
    assert_eq!(
        header.segment(LoadSegment { memory_bytes: 8192, ..wrapping }).unwrap_err(),
        CoreError::BadSegment(u64::MAX - 4095)
    );
    header.segment(segment(0, 1)).unwrap();
    assert_eq!(header.segment(segment(0, 1)).unwrap_err(), CoreError::TooManySegments);
    assert!(header.finish().is_ok());
}

#[test]
fn every_truncation_is_an_error_or_says_what_is_missing() {
    let mut buffer = vec![0; 4096];
    let layout = sample(&mut buffer);
    for length in 0..4096u64 {
        let result = CoreReader::new(&buffer[..length as usize], length);
        if let Ok(reader) = result {
            assert!(reader.needed_bytes() > length);
        }
        // With the whole file behind it, a short header is asked to be longer.
        if let Err(ReadError::NeedMore(bytes)) =
            CoreReader::new(&buffer[..length as usize], layout.file_bytes)
        {
            assert!(bytes > length && bytes <= 4096);
        }
    }
}

fn walk(bytes: &[u8], file_bytes: u64) {
    if let Ok(reader) = CoreReader::new(bytes, file_bytes) {
        let _ = reader.segments().count();
        let _ = reader.notes().count();
        let _ = reader.header_bytes();
        let _ = reader.note(EPITAPH_OWNER, notes::NT_EPITAPH_CPUS);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..1024),
        file_bytes in any::<u64>(),
    ) {
        walk(&bytes, file_bytes);
        let mut elf = bytes;
        let ident = [0x7f, b'E', b'L', b'F', 2, 1, 1];
        if elf.len() > 64 {
            elf[..7].copy_from_slice(&ident);
            elf[16..18].copy_from_slice(&4u16.to_le_bytes());
            elf[54..56].copy_from_slice(&56u16.to_le_bytes());
            walk(&elf, file_bytes);
            walk(&elf, elf.len() as u64);
        }
    }

    #[test]
    fn no_damage_to_a_header_makes_the_reader_panic(
        damage in proptest::collection::vec((0usize..1400, any::<u8>()), 1..20),
    ) {
        let mut buffer = vec![0; 4096];
        let layout = sample(&mut buffer);
        for (at, value) in damage {
            buffer[at] = value;
        }
        walk(&buffer, layout.file_bytes);
        walk(&buffer, u64::MAX);
    }
}
