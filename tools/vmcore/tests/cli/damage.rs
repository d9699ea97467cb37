//! Cut, flipped and foreign files: an error in words, never a panic, never a lie.

use std::fs::OpenOptions as File;
use std::path::Path;

use crate::common::{Folder, complaint, vmcore, with_small_core};
use e2e::synth::core::Core;
use e2e::synth::{area, image};
use vmcore::{Dump, Image, OpenOptions, Source};

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

/// Asks everything there is to ask.
fn ask_all(dump: &Dump, image: &Image) {
    let info = vmcore::info(dump);
    let _ = info.render();
    let _ = vmcore::commands::cpus::render(&vmcore::cpus(dump, Some(image)));
    let _ = vmcore::locks(dump, Some(image)).map(|locks| locks.render());
    let _ = vmcore::trace(dump, Some(image), Default::default()).map(|trace| trace.render());
    let _ = vmcore::timeline(dump).map(|timeline| timeline.render());
    let _ = vmcore::registers(dump, None);
    let _ = vmcore::log(dump).map(|log| log.render());
    let _ = vmcore::stamps(dump).map(|report| report.render());
    let backtraces = vmcore::backtraces(dump, image);
    let _ = vmcore::commands::bt::render(dump, &backtraces);
}

fn open(path: &Path, partial: bool) -> vmcore::Result<Dump> {
    Source::open(path)?.dump(OpenOptions { partial, ..OpenOptions::default() })
}

fn test_image(folder: &Folder) -> Image {
    let path = folder.file("appliance", &image::build(&image::BUILD_ID));
    Image::open(&path).expect("the synthetic image")
}

#[test]
fn no_length_of_a_core_makes_it_panic_or_pass() {
    let folder = Folder::new("lengths");
    let image = test_image(&folder);
    let core = Core::small().build();
    let path = folder.file("vmcore", &core);
    let file = File::new().write(true).open(&path).expect("open it");
    for length in (0..core.len() as u64).rev() {
        file.set_len(length).expect("cut it");
        let error = open(&path, false).expect_err("a cut core is no core");
        assert!(!error.to_string().is_empty());
        // Memory is lost page by page; one length within each shows what that does.
        if (length % 4096 == 100 || length < 9000)
            && let Ok(dump) = open(&path, true)
        {
            assert!(!dump.warnings.is_empty(), "length {length} passed unnoticed");
            ask_all(&dump, &image);
        }
    }
}

#[test]
fn no_length_of_a_disk_makes_it_panic_or_pass() {
    let folder = Folder::new("disk-lengths");
    let disk = area::build(&[Some(area::Dump::sealed(1, Core::small().build()))]);
    let path = folder.file("disk.img", &disk);
    let file = File::new().write(true).open(&path).expect("open it");
    for length in (0..disk.len() as u64).rev().step_by(997) {
        file.set_len(length).expect("cut it");
        assert!(open(&path, false).is_err(), "length {length}");
    }
}

#[test]
fn flipped_bytes_are_found_or_do_no_harm() {
    let folder = Folder::new("flips");
    let image = test_image(&folder);
    let core = Core::small().build();
    let header = area::header_bytes(&core) as usize;
    let whole = {
        let path = folder.file("whole", &core);
        vmcore::info(&open(&path, false).expect("intact"))
    };
    let mut random = Random(0x0e91_7a9b);
    for round in 0..4000 {
        let mut bad = core.clone();
        for _ in 0..=random.below(3) {
            bad[random.below(header)] ^= 1 << random.below(8);
        }
        let path = folder.file("vmcore", &bad);
        for partial in [false, true] {
            if let Ok(dump) = open(&path, partial) {
                let info = vmcore::info(&dump);
                // What has a checksum of its own is right or missed.
                if let Some(cause) = info.cause {
                    assert_eq!(Some(cause), whole.cause, "round {round}");
                }
                ask_all(&dump, &image);
            }
        }
    }
}

#[test]
fn no_flip_of_a_sealed_header_passes() {
    let folder = Folder::new("sealed-flips");
    let core = Core::small().build();
    let header = area::header_bytes(&core) as usize;
    let disk = area::build(&[Some(area::Dump::sealed(1, core))]);
    let start = (area::SLOT_BYTES + area::DATA) as usize;
    let mut random = Random(0x5ea1);
    for _ in 0..300 {
        let mut bad = disk.clone();
        bad[start + random.below(header)] ^= 1 << random.below(8);
        let path = folder.file("disk.img", &bad);
        let error = open(&path, false).expect_err("the seal is broken").to_string();
        assert!(error.contains("does not match its seal"), "{error}");
    }
}

#[test]
fn no_damage_to_an_image_makes_it_panic() {
    let folder = with_small_core("image-flips");
    let dump = open(&folder.path("vmcore"), false).expect("intact");
    let good = image::build(&image::BUILD_ID);
    let mut random = Random(0x1ace);
    for _ in 0..3000 {
        let mut bad = good.clone();
        for _ in 0..=random.below(4) {
            // Not in the code, most of which is NOPs.
            let at = if random.below(4) == 0 {
                random.below(120)
            } else {
                8192 + random.below(bad.len() - 8192)
            };
            bad[at] = random.below(256) as u8;
        }
        let path = folder.file("bad", &bad);
        if let Ok(image) = Image::open(&path) {
            ask_all(&dump, &image);
        }
    }
}

#[test]
fn foreign_files_are_named() {
    let folder = Folder::new("foreign");
    let at = |offset: usize, bytes: &[u8]| {
        let mut file = vec![0; 200_000];
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    };
    let mut other_core = Core::small();
    other_core.memory.truncate(1);
    let mut other_core = other_core.build();
    while let Some(owner) = other_core.windows(7).position(|bytes| bytes == b"EPITAPH") {
        other_core[owner..owner + 7].copy_from_slice(b"FOREIGN");
    }
    let files: [(&str, Vec<u8>, &str); 11] = [
        ("empty", Vec::new(), "an empty file"),
        ("text", b"dear diary".to_vec(), "neither an ELF core nor a disk"),
        ("zeros", vec![0; 200_000], "a blank disk without a dump area"),
        ("qcow2", at(0, b"QFI\xfb"), "qemu-img convert"),
        ("zstd", at(0, b"\x28\xb5\x2f\xfd"), "zstd -d"),
        ("ext4", at(1080, b"\x53\xef"), "an ext file system"),
        ("gpt", at(512, b"EFI PART"), "a GPT partition table"),
        ("kdump", at(0, b"KDUMP   "), "kdump-compressed"),
        ("program", image::build(&[1]), "not a core"),
        ("other-core", other_core, "not of an Epitaph appliance"),
        ("elf32", at(0, b"\x7fELF\x01\x01\x01"), "not a 64-bit little-endian ELF file"),
    ];
    for (name, bytes, expected) in files {
        folder.file(name, &bytes);
        for command in
            ["info", "cpus", "locks", "timeline", "regs", "bt", "stamps", "log", "extract"]
        {
            let found = complaint(&folder, &[command, name]);
            assert!(found.contains(expected), "{command} {name}: {found}");
            assert!(found.contains("hint: "), "{command} {name}: {found}");
        }
    }
    let found = complaint(&folder, &["info", "."]);
    assert!(found.contains("a folder"), "{found}");
    let found = complaint(&folder, &["info", "nowhere"]);
    assert!(found.contains("No such file"), "{found}");
}

#[test]
fn a_cut_core_says_so_and_can_be_read_in_part() {
    let folder = with_small_core("cut");
    let core = Core::small().build();
    folder.file("vmcore", &core[..core.len() - 4096]);
    let found = complaint(&folder, &["info", "vmcore"]);
    assert!(found.contains("cut short") && found.contains("--partial"), "{found}");
    let output = vmcore(&folder, &["info", "vmcore", "--partial"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("INCOMPLETE") && text.contains("cut short"), "{text}");
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let folder = Folder::new("newer");
    let mut disk = area::build(&[None]);
    disk[8] = 3;
    folder.file("disk.img", &disk);
    let found = complaint(&folder, &["info", "disk.img"]);
    assert!(found.contains("version 3") && found.contains("hint: "), "{found}");
    let mut core = Core::small().build();
    let handoff = core.windows(7).position(|bytes| bytes == b"EPIHAND").expect("the hand-off");
    core[handoff + 8] = 9;
    folder.file("vmcore", &core);
    let found = complaint(&folder, &["info", "vmcore"]);
    assert!(found.contains("version 9"), "{found}");
}

#[test]
fn a_log_ring_at_the_end_of_the_address_space_is_refused() {
    let folder = Folder::new("log-ring");
    for (address, capacity, written) in [
        (u64::MAX - 10, 64, 100),
        (u64::MAX - 63, 64, u64::MAX),
        (u64::MAX, 1, 1),
        (0xffff_ffff_ffff_f000, 64 << 20, 64 << 20),
    ] {
        let core = Core { log: (address, capacity, written), ..Core::small() };
        folder.file("vmcore", &core.build());
        let found = complaint(&folder, &["log", "vmcore"]);
        assert!(found.contains("not in this dump"), "{address:#x}: {found}");
    }
}
