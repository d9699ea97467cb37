//! Memory under load is in the dump as it was, every page.

use std::os::unix::fs::FileExt;

use crate::story::Story;

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_page_is_intact_and_a_flipped_one_is_found() {
    let crashed = Story::PANIC.tell();
    let report = vmcore::stamps(&crashed.dump).expect("stamped memory");
    assert!(report.is_good(), "{report:?}");
    assert_eq!(report.absent, 0, "{report:?}");
    // Each CPU has at most one page in its hands.
    assert!(report.exempt <= u64::from(Story::PANIC.cpus));
    let stamped: u64 = crashed.dump.stamps.iter().map(|slice| u64::from(slice.pages)).sum();
    assert_eq!(report.verified + report.exempt + report.unstamped, stamped);
    assert!(report.verified > 1000, "{report:?}");

    // One bit of one page, in the middle of a slice where it is long written.
    let slice = crashed.dump.stamps[0];
    let page = slice.start + u64::from(slice.pages / 4) * 4096;
    let segments = crashed.dump.segments();
    let segment = segments
        .iter()
        .find(|segment| {
            let start = segment.load.physical_address;
            (start..start + segment.load.file_bytes).contains(&page)
        })
        .expect("the page is in the dump");
    let offset = segment.offset + (page - segment.load.physical_address) + 1234;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&crashed.vmcore);
    let file = file.expect("the vmcore");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("the byte");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("the flipped byte");

    let dump = vmcore::Dump::open(&crashed.vmcore).expect("still a vmcore");
    let report = vmcore::stamps(&dump).expect("stamped memory");
    let addresses: Vec<_> = report.damage.iter().map(|page| page.address.0).collect();
    // The core carries the checksums of its chunks: nothing of the one with the page is believed.
    assert!(addresses.contains(&page), "{addresses:x?}");
    let (first, last) = (addresses[0], addresses[addresses.len() - 1]);
    assert!(last - first < 1 << 20 && !report.is_good(), "{addresses:x?}");
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    assert_eq!(verified.bad_count, 1, "{page:#x}: {:?}", verified.bad);
}
