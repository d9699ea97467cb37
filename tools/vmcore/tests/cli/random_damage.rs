//! Damage of one byte anywhere: every dump is taken as it was, or the damage is reported.

use e2e::synth::area::SLOT_BYTES;
use e2e::synth::area_v2::{Dump, Storing, build};
use e2e::synth::core::Core;

use crate::common::{Folder, is_core};

/// Damages tried; `EPITAPH_DAMAGES` sets another number.
const DAMAGES: usize = 500;

/// A reproducible sequence of numbers (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Stretches of the disk that hold something: header, records, chunks, tables, headers.
fn stretches(disk: &[u8]) -> Vec<(usize, usize)> {
    let blocks = (0..disk.len() / 4096)
        .filter(|block| disk[block * 4096..(block + 1) * 4096].iter().any(|&byte| byte != 0));
    let used = |block: usize| {
        let content = &disk[block * 4096..(block + 1) * 4096];
        content.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
    };
    blocks.map(|block| (block * 4096, used(block))).collect()
}

#[test]
fn every_damage_of_a_byte_is_harmless_or_reported() {
    let wanted = std::env::var("EPITAPH_DAMAGES").ok().and_then(|text| text.parse().ok());
    let folder = Folder::new("random-damage");
    let mut second = Core::small();
    second.message = "another crash";
    let cores = [(8, Core::small().build()), (9, second.build())];
    let dump = |index: usize, storing| {
        let (sequence, core) = &cores[index];
        Some(Dump::sealed(*sequence, core.clone(), storing))
    };
    let good = build(&[dump(0, Storing::Raw), dump(1, Storing::Lz4)]);
    let stretches = stretches(&good);
    // The cores of a disk without damage: every one that is taken has to be the same.
    let disk = folder.file("good.img", &good);
    let taken =
        vmcore::collect(&[disk], &folder.path("good"), &mut |_, _, _| ()).expect("a folder");
    let cores: Vec<(u64, Vec<u8>)> = (cores.iter().zip(&taken.dumps))
        .map(|((sequence, wanted), dump)| {
            assert_eq!((dump.sequence, dump.complete), (*sequence, true));
            let path = dump.core.as_ref().expect("a core");
            is_core(&folder, path.to_str().expect("UTF-8"), wanted);
            (*sequence, std::fs::read(path).expect("a core"))
        })
        .collect();
    let mut random = Random(0x0dd_ba11);
    let (mut harmless, mut reported) = (0, 0);
    for round in 0..wanted.unwrap_or(DAMAGES) {
        let mut bad = good.clone();
        // Records are few bytes among many: every kind of block is as likely as any other.
        let at = match round % 4 {
            0 => random.below(bad.len()),
            _ => {
                let (start, bytes) = stretches[random.below(stretches.len())];
                start + random.below(bytes)
            }
        };
        let flip = 1 + random.below(255) as u8;
        bad[at] ^= flip;
        let what = format!("round {round}: byte {at:#x} changed by {flip:#x}");
        // A file of its own each time: a process that another test starts holds the lock on the
        // last one for a moment.
        let disk = folder.file(&format!("disk-{round}.img"), &bad);
        let out = folder.path("cores");
        let taken = vmcore::collect(std::slice::from_ref(&disk), &out, &mut |_, _, _| ())
            .expect("a folder");
        let mut whole = true;
        for (slot, (sequence, core)) in (0..).zip(&cores) {
            let dump = taken.dumps.iter().find(|dump| dump.sequence == *sequence);
            if let Some(path) = dump.and_then(|dump| dump.core.as_ref()) {
                assert!(std::fs::read(path).expect("a core") == *core, "{what}: wrong bytes");
                continue;
            }
            whole = false;
            // A dump that is not taken, a slot of which nothing is known, or the area's header.
            let place = SLOT_BYTES * (1 + u64::from(slot));
            let told = dump.is_some_and(|dump| {
                let said = dump.warnings.join(" ");
                !dump.verified && dump.slot == slot && said.contains("at byte ")
            });
            let unknown =
                taken.unknown.iter().any(|unknown| (unknown.slot, unknown.offset) == (slot, place));
            let header = taken.failures.iter().any(|failure| {
                failure.damaged && failure.reason.contains("header of the dump area")
            });
            assert!(told || unknown || header, "{what}: not a word of slot {slot}: {taken:?}");
            // A slot is believed only where the damage is in it, or in what leads to it.
            let here = (place..place + SLOT_BYTES).contains(&(at as u64));
            assert!(here || at < 4096, "{what}: slot {slot} is blamed");
        }
        assert!(whole || taken.is_damaged(), "{what}: exit code 0");
        assert!(taken.dumps.iter().all(|dump| dump.marked == dump.core.is_some()), "{what}");
        if whole {
            harmless += 1
        } else {
            reported += 1
        }
        std::fs::remove_dir_all(out).expect("the cores gone");
        std::fs::remove_file(disk).expect("the disk gone");
    }
    println!("{harmless} did no harm, {reported} were reported");
    assert!(harmless > 0 && reported > harmless / 4, "{harmless} {reported}");
}
