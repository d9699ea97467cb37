//! Small files that ask for much: each command stays within the bounds of docs/limits.md.
//!
//! The shell bounds the address space and the CPU time of the program. A program that asks
//! for more ends by a signal, which is none of its exit codes.

use std::fmt::Write;
use std::process::{Command, Output};

use crate::common::{Folder, answer, with_small_core};
use e2e::synth::core::{Core, Lock, Memory};
use e2e::synth::image;
use serde_json::Value;
use vmcore_format::last_words::LastWords;

/// Seconds of CPU time, generous for a build without optimisation.
const SECONDS: u64 = 120;

/// Runs the program with so many MiB of address space.
fn limited(folder: &Folder, mebibytes: u64, arguments: &[&str]) -> Output {
    let shell = format!("ulimit -v {}; ulimit -t {SECONDS}; exec \"$0\" \"$@\"", mebibytes << 10);
    Command::new("sh")
        .args(["-c", &shell, env!("CARGO_BIN_EXE_vmcore")])
        .args(arguments)
        .current_dir(folder.path(""))
        .env_remove("EPITAPH_IMAGE_PATH")
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .expect("start a shell")
}

/// Its complaint within the bounds.
fn complaint(folder: &Folder, mebibytes: u64, arguments: &[&str]) -> String {
    let output = limited(folder, mebibytes, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    stderr
}

/// A compressed section (`Elf64_Chdr`, type 1 is zlib) that claims to unpack to `size`.
fn compressed(name: &'static str, size: u64, stored: usize) -> image::Extra {
    let mut content = 1_u64.to_le_bytes().to_vec();
    content.extend(size.to_le_bytes());
    content.extend(1_u64.to_le_bytes());
    content.resize(24 + stored, 0x78);
    // SHF_COMPRESSED.
    (name, 0x800, content)
}

#[test]
fn an_image_unpacks_to_no_more_than_its_bound() {
    let folder = with_small_core("limits-image");
    for (name, sections, expected) in [
        ("claims", vec![compressed(".debug_info", 1 << 31, 400)], "claim to unpack to 2147483648"),
        ("claims-64", vec![compressed(".debug_line", u64::MAX, 400)], "claim to unpack to"),
        (
            "large",
            vec![
                compressed(".debug_info", 70 << 20, 70 << 10),
                compressed(".debug_str", 70 << 20, 70 << 10),
            ],
            "takes more than 64 MiB unpacked",
        ),
    ] {
        folder.file(name, &image::build_with(&image::BUILD_ID, &sections));
        let found = complaint(&folder, 128, &["bt", "vmcore", "--image", name]);
        assert!(found.contains(expected), "{name}: {found}");
    }
    // A file without an end to speak of.
    let sparse = folder.file("sparse", &image::build(&image::BUILD_ID));
    let file = std::fs::File::options().write(true).open(sparse).expect("open it");
    file.set_len(1 << 40).expect("lengthen it");
    let found = complaint(&folder, 128, &["bt", "vmcore", "--image", "sparse"]);
    assert!(found.contains("too large for an image: more than 256 MiB"), "{found}");
}

/// Debug information whose units share one table of abbreviations, of lines and of ranges,
/// with so many units, and ranges in the list.
fn sharing(units: usize, ranges: usize) -> Vec<image::Extra> {
    let [mut abbrev, mut info, line]: [image::Extra; 3] =
        image::debug_lines().try_into().expect("three sections");
    // DW_AT_ranges in place of the first address and the length.
    abbrev.2 =
        [&[1, 0x11, 0, 0x03, 0x08, 0x10, 0x17, 0x1b, 0x08][..], &[0x55, 0x17, 0, 0, 0]].concat();
    let mut unit = info.2;
    unit.truncate(unit.len() - 16);
    unit.extend(0_u32.to_le_bytes());
    let length = unit.len() as u32 - 4;
    unit[..4].copy_from_slice(&length.to_le_bytes());
    info.2 = unit.repeat(units);
    let mut list = Vec::new();
    for range in 0..ranges as u64 {
        list.extend((image::TEXT + range).to_le_bytes());
        list.extend((image::TEXT + range + 1).to_le_bytes());
    }
    list.extend([0; 16]);
    // A table of lines for each unit, but not another one.
    let lines = (line.0, line.1, line.2.repeat(units));
    vec![abbrev, info, lines, (".debug_ranges", 0, list)]
}

#[test]
fn units_of_an_image_do_not_share_what_has_to_be_unfolded() {
    let folder = with_small_core("limits-units");
    folder.file("few", &image::build_with(&image::BUILD_ID, &sharing(3, 3)));
    answer(&folder, &["bt", "vmcore", "--image", "few"]);
    // 20,000 units with one list of 20,000 ranges: 400 million of them.
    folder.file("ranges", &image::build_with(&image::BUILD_ID, &sharing(20_000, 20_000)));
    let found = complaint(&folder, 512, &["bt", "vmcore", "--image", "ranges"]);
    assert!(found.contains("too many ranges of addresses"), "{found}");
    let mut lines = sharing(2_000, 1);
    // One table of lines for all.
    let one = lines[2].2.len() / 2_000;
    lines[2].2.truncate(one);
    folder.file("lines", &image::build_with(&image::BUILD_ID, &lines));
    let found = complaint(&folder, 512, &["bt", "vmcore", "--image", "lines"]);
    assert!(found.contains("too many shared tables of lines"), "{found}");
    folder.file("units", &image::build_with(&image::BUILD_ID, &sharing(70_000, 1)));
    let found = complaint(&folder, 512, &["bt", "vmcore", "--image", "units"]);
    assert!(found.contains("more than 65536 units"), "{found}");
}

#[test]
fn stamps_of_zero_memory_are_counted_without_a_look_at_each_page() {
    let folder = Folder::new("limits-stamps");
    let base = 0x1_0000_0000_u64;
    let mut core = Core::small();
    core.memory.push(Memory { address: base, bytes: vec![0; 4096], zeros: 1 << 45 });
    // All of what 32 bits can count; then one in its first epoch.
    let second = base + (1 << 44);
    core.stamps = vec![(base, u32::MAX, 1, 2, 5), (second, 100, u32::MAX, 1, 40)];
    folder.file("vmcore", &core.build());
    let output = limited(&folder, 256, &["stamps", "vmcore", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let number = |field: &str| report[field].as_u64().expect("a number");
    // Below `next` the second epoch is due, above it the first; in the second run the first
    // is due below `next` and none above it.
    assert_eq!(number("exempt"), 1);
    assert_eq!(number("damaged"), u64::from(u32::MAX) - 1 + 40);
    assert_eq!(number("unstamped"), 60);
    assert_eq!(report["damage"].as_array().map(Vec::len), Some(1000));
    assert_eq!(report["damage"][4]["epoch"], 2);
    assert_eq!(report["damage"][5]["epoch"], 1);
    assert_eq!(report["damage"][5]["address"], format!("{:#x}", base + 6 * 4096));

    // Runs that share pages would make the work a multiple of the dump.
    core.stamps = vec![(base, 100, 1, 2, 5); 3];
    folder.file("vmcore", &core.build());
    let found = complaint(&folder, 256, &["stamps", "vmcore"]);
    assert!(found.contains("has runs that share pages at 0x100000000"), "{found}");
}

#[test]
fn segments_that_share_bytes_of_the_file_are_refused() {
    let folder = Folder::new("limits-segments");
    let mut core = Core::small().build();
    // Every segment has the bytes of the first.
    let offset = core[64 + 56 + 8..64 + 56 + 16].to_vec();
    for segment in 2..7 {
        let at = 64 + 56 * segment + 8;
        core[at..at + 8].copy_from_slice(&offset);
    }
    folder.file("vmcore", &core);
    for command in ["info", "trace", "stamps"] {
        let found = complaint(&folder, 256, &[command, "vmcore"]);
        assert!(found.contains("segments share bytes of the file"), "{command}: {found}");
    }
}

#[test]
fn locks_are_no_more_than_a_machine_records() {
    let folder = Folder::new("limits-locks");
    let mut core = Core::small();
    let lock = |number: u64| Lock {
        name: "lock",
        address: 0x100_0000 + number * 64,
        owner: (number % 64) as u32,
        acquired_at: 0,
        acquired_tsc: 0,
        waiters: u64::MAX,
        contended: 1,
    };
    core.locks = (0..4000).map(lock).collect();
    folder.file("vmcore", &core.build());
    let output = limited(&folder, 256, &["locks", "vmcore", "--partial"]);
    let found = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{found}");
    assert!(
        found.contains("the table of locks has 4000 records, where 64 are the most"),
        "{found}"
    );
    core.locks = (0..64).map(lock).collect();
    folder.file("vmcore", &core.build());
    let output = limited(&folder, 256, &["locks", "vmcore", "--json"]);
    let locks: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // Every CPU waits for the first lock, which its own holder waits for.
    assert_eq!(locks["cycles"], serde_json::json!([[0]]));
}

#[test]
fn a_record_of_65500_lines_of_memory_is_read() {
    let folder = Folder::new("limits-console");
    let mut words = LastWords::begin(String::new());
    words.line(format_args!(
        "cpu index=0 apic_id=0 stopped_by=crash registers_from=none rip=0x1 rsp=0x2 rbp=0x3"
    ));
    // From the highest address down, and none beside another.
    for line in (0..65_500_u64).rev() {
        words.bytes(format_args!("memory"), line * 64, &[7; 8]);
    }
    folder.file("console", words.end().as_bytes());
    let made = ["from-console", "console", "-o", "core", "--json"];
    let output = limited(&folder, 512, &made);
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &made["memory_bytes"]), (Some(0), &0x7fee0.into()), "{made}");
    let info = answer(&folder, &["info", "core"]);
    assert!(info.contains("at an unknown time (not in last words)"));

    // Torn lines without end: the guesses are bounded.
    let mut text = String::new();
    for line in 0..100_000 {
        let _ = writeln!(text, "~EP {line:04x} c8 0186382c memory at=0x0 hex=");
    }
    folder.file("torn", text.as_bytes());
    let output = limited(&folder, 512, &["last-words", "torn"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
