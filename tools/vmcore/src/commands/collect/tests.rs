//! The order of the steps behind a core, and what becomes of the slot when one fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use e2e::synth::area_v2::{Dump, Storing, build, build_v4};
use e2e::synth::core::Core;

use super::{Collection, run, unknown, waiting};
use crate::output::Step;
use crate::source::Source;
use crate::{OpenOptions, Storage};

/// A folder with a disk that holds one dump.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("vmcore-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let disk = build(&[Some(Dump::sealed(8, Core::small().build(), Storing::Raw))]);
    std::fs::write(folder.join("disk.img"), disk).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_slot_is_marked_when_its_core_is_on_the_medium() {
    let folder = folder("steps");
    let cores = folder.join("cores");
    let mut done = Vec::new();
    let mut steps = |step| {
        let names = names(&cores);
        let named = names.iter().any(|name| name.ends_with(".core"));
        assert_eq!(named, matches!(step, Step::FlushFolder | Step::Mark), "{step:?}: {names:?}");
        done.push(step);
        Ok(())
    };
    let disks = [folder.join("disk.img")];
    let taken = run(&disks, &cores, false, &mut steps, &mut |_, _, _| ()).unwrap();
    assert!(taken.is_good() && taken.dumps[0].marked, "{taken:?}");
    assert_eq!(done, [Step::FlushFile, Step::Name, Step::FlushFolder, Step::Mark]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_step_that_fails_leaves_the_slot_as_it_is() {
    let folder = folder("failing-steps");
    let disks = [folder.join("disk.img")];
    let before = std::fs::read(&disks[0]).unwrap();
    for failing in [Step::FlushFile, Step::Name, Step::FlushFolder, Step::Mark] {
        let cores = folder.join(format!("{failing:?}"));
        let mut steps = |step| {
            if step == failing { Err(io::Error::other("the medium is gone")) } else { Ok(()) }
        };
        let taken = run(&disks, &cores, false, &mut steps, &mut |_, _, _| ()).unwrap();
        assert!(!taken.is_good() && !taken.is_damaged(), "{failing:?}: {taken:?}");
        assert!(taken.failures[0].reason.contains("the medium is gone"), "{taken:?}");
        assert!(taken.dumps.iter().all(|dump| !dump.marked), "{failing:?}: {taken:?}");
        assert!(std::fs::read(&disks[0]).unwrap() == before, "{failing:?}: the disk was written");
        let left = names(&cores);
        assert!(left.iter().all(|name| !name.ends_with(".partial")), "{failing:?}: {left:?}");
    }
    // The dump is still there, to be taken when the medium is back.
    let mut all = |_| Ok(());
    let cores = folder.join("cores");
    let taken = run(&disks, &cores, false, &mut all, &mut |_, _, _| ()).unwrap();
    assert!(taken.is_good() && taken.dumps[0].marked, "{taken:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A disk that fails to read one block.
struct Failing {
    bytes: Vec<u8>,
    block: u64,
}

impl Storage for Failing {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        if offset < self.block + 4096 && self.block < end {
            return Err(io::Error::from_raw_os_error(5));
        }
        buffer.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }
}

#[test]
fn a_block_that_cannot_be_read_costs_what_it_holds() {
    const SLOT: u64 = 1 << 20;
    let dump = |sequence| Some(Dump::sealed(sequence, Core::small().build(), Storing::Raw));
    let disk = build_v4(&[dump(8), dump(9)]);
    let open = |block| {
        let storage = Arc::new(Failing { bytes: disk.clone(), block });
        Source::from_storage("disk", storage).expect("a dump area")
    };
    let sequences = |source: &Source| -> Vec<u64> {
        waiting(source, &mut 0).iter().map(|dump| dump.open.sequence).collect()
    };
    // The open record of the first slot.
    let source = open(SLOT);
    let lost = unknown(&source);
    assert_eq!((lost.len(), lost[0].slot, lost[0].offset), (1, 0, SLOT));
    assert!(lost[0].reason.contains("the open record cannot be read"), "{lost:?}");
    assert_eq!(sequences(&source), [9]);
    assert!(source.dump(OpenOptions::default()).is_ok());
    // Its only seal.
    let source = open(SLOT + 4096);
    let lost = unknown(&source);
    assert_eq!((lost.len(), lost[0].slot), (1, 0), "{lost:?}");
    assert_eq!(sequences(&source), [9]);
    // The note that it was collected: it is taken once more, and that is told.
    let source = open(SLOT + 15 * 4096);
    assert_eq!((unknown(&source).len(), sequences(&source)), (0, vec![8, 9]));
    let mut collection = Collection::new();
    collection.note_damage(&source);
    assert!(collection.is_damaged() && !collection.is_good());
    assert!(collection.failures[0].reason.contains("slot 0: whether its dump was collected"));
    // The header, and blocks that only tell what else may be on the disk.
    for block in [0, 4096, 8192, 64 << 10] {
        assert_eq!(sequences(&open(block)), [8, 9], "{block}");
    }
}
