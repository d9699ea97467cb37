extern crate std;

use std::format;
use std::vec;
use std::vec::Vec as List;

use super::*;

const SECTORS: u64 = 2048;

/// A disk with one partition of the type, in third place, and one of another.
fn disk(sector: u64) -> List<u8> {
    let mut disk = vec![0; (SECTORS * sector) as usize];
    disk[450] = PROTECTIVE;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 128];
    let mut entry = |at: usize, kind: u8, first: u64, last: u64| {
        let entry = &mut entries[at * 128..][..128];
        entry[..16].copy_from_slice(&if kind == 0 { TYPE_GUID } else { [kind; 16] });
        entry[16..32].copy_from_slice(&[at as u8; 16]);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    };
    entry(0, 7, 100, 199);
    entry(2, 0, 200, 999);
    entry(127, 0, 5, 4);
    let array = entries.len() as u64 / sector;
    for (place, other, array_at) in [(1, SECTORS - 1, 2), (SECTORS - 1, 1, SECTORS - 1 - array)] {
        let mut header = <Header as zerocopy::FromZeros>::new_zeroed();
        header.signature = *b"EFI PART";
        header.revision = U32::new(0x1_0000);
        header.header_bytes = U32::new(92);
        header.this_sector = U64::new(place);
        header.other_sector = U64::new(other);
        header.first_usable = U64::new(40);
        header.last_usable = U64::new(SECTORS - 41);
        header.entries_sector = U64::new(array_at);
        header.entry_count = U32::new(128);
        header.entry_bytes = U32::new(128);
        header.entries_crc32 = U32::new(crc32fast::hash(&entries));
        header.crc32 = U32::new(crc32fast::hash(header.as_bytes()));
        put(&mut disk, place * sector, header.as_bytes());
        put(&mut disk, array_at * sector, &entries);
    }
    disk
}

fn put(disk: &mut [u8], at: u64, bytes: &[u8]) {
    disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

fn find(disk: &[u8], sector: u64) -> Result<Partitions, GptError<()>> {
    partitions(disk.len() as u64, sector, &mut |at, into: &mut [u8]| {
        assert!(at.is_multiple_of(sector) && (into.len() as u64).is_multiple_of(sector));
        let from = disk.get(at as usize..at as usize + into.len()).ok_or(())?;
        into.copy_from_slice(from);
        Ok(())
    })
}

#[test]
fn the_partition_of_the_type_is_found_and_no_other() {
    for sector in [512, 4096] {
        let found = find(&disk(sector), sector).unwrap();
        let wanted =
            Partition { guid: [2; 16], number: 3, start: 200 * sector, bytes: 800 * sector };
        assert_eq!(found, [wanted]);
    }
}

#[test]
fn a_damaged_table_is_read_from_its_other_place() {
    let good = find(&disk(512), 512);
    for at in [512, 512 + 16, 512 + 40, 1024, 1024 + 128 * 2, 1024 + 16383] {
        let mut disk = disk(512);
        disk[at] ^= 1;
        assert_eq!(find(&disk, 512), good, "byte {at}");
        let last = disk.len() - 512;
        disk[last + 9] ^= 1;
        assert_eq!(find(&disk, 512), Err(GptError::Damaged), "byte {at}");
    }
}

#[test]
fn without_the_protective_record_there_is_no_table() {
    let mut disk = disk(512);
    disk[450] = 0x83;
    assert_eq!(find(&disk, 512), Err(GptError::None));
    assert_eq!(find(&[], 512), Err(GptError::None));
    assert_eq!(find(&disk, 8192), Err(GptError::None));
}

#[test]
fn a_header_that_leads_out_of_the_disk_is_not_followed() {
    for change in [72, 80, 84, 48] {
        let mut disk = disk(512);
        for place in [512, disk.len() - 512] {
            let header = &mut disk[place..place + 92];
            header[change..change + 4].fill(0xff);
            header[16..20].fill(0);
            let crc = crc32fast::hash(header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
        }
        assert_eq!(find(&disk, 512), Err(GptError::Damaged), "field at {change}");
    }
}

#[test]
fn a_guid_survives_a_round_trip() {
    let text = "7408c5f2-1103-4e04-9ea7-9a7d2a17cc31";
    assert_eq!(parse_guid(text), Some(TYPE_GUID));
    assert_eq!(format!("{}", ShowGuid(&TYPE_GUID)), text);
    assert_eq!(parse_guid(&text.to_uppercase()), Some(TYPE_GUID));
    for wrong in ["", "7408c5f2-1103-4e04-9ea7-9a7d2a17cc3", "7408c5f2-1103-4e04-9ea7-9a7d2a17cc3x"]
    {
        assert_eq!(parse_guid(wrong), None, "{wrong}");
    }
}
