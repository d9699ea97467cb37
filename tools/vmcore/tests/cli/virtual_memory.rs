//! A kernel of the higher half: an image moved from where it is linked, a stack of scattered
//! pages, page tables in the dump.

use addrspace::Steps;
use e2e::synth::core::{Core, Cpu, Memory, Paging};
use e2e::synth::image;
use serde_json::Value;
use vmcore::Dump;
use vmcore::dump::MissingPage;
use vmcore::json::Hex;
use vmcore_format::reader::CoreReader;

use crate::common::{Folder, answer, vmcore};

/// From where the image is linked to where it ran.
const SLIDE: u64 = 0xffff_ffff_9a60_0000;
/// Bottom of the stack of three pages.
const STACK: u64 = 0xffff_c900_0001_0000;
/// Physical addresses of its pages, in the order of their virtual ones.
const PAGES: [u64; 3] = [0x70_3000, 0x70_0000, 0x70_7000];
/// Physical address of the root; further tables follow it.
const TABLES: u64 = 0x60_0000;
/// Physical address of the image.
const IMAGE: u64 = 0x320_0000;
const PAE: u64 = 1 << 5;
const LA57: u64 = 1 << 12;
/// EFER.LMA, LME and NXE.
const LONG_MODE: u64 = 0xd00;

/// Page tables of 4 or 5 levels, built entry by entry.
struct Tables {
    bytes: Vec<u8>,
    levels: u32,
}

impl Tables {
    fn new(levels: u32) -> Self {
        Self { bytes: vec![0; 4096], levels }
    }

    fn map(&mut self, address: u64, physical: u64) {
        let mut table = 0;
        for level in (1..self.levels).rev() {
            let at = table + (address >> (12 + 9 * level) & 511) as usize * 8;
            let entry = self.bytes[at..at + 8].try_into().map(u64::from_le_bytes);
            table = match entry.expect("eight bytes") {
                0 => {
                    let new = self.bytes.len();
                    self.bytes.resize(new + 4096, 0);
                    self.put(at, (TABLES + new as u64) | 3);
                    new
                }
                entry => ((entry & !0xfff) - TABLES) as usize,
            };
        }
        self.put(table + (address >> 12 & 511) as usize * 8, physical | 3);
    }

    fn put(&mut self, at: usize, entry: u64) {
        self.bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
}

/// A core of one CPU that crashed in `leaf`, called by `main`, whose frame lies on two pages.
fn core(levels: u32) -> Core {
    let mut tables = Tables::new(levels);
    let address = |linked: u64| linked.wrapping_add(SLIDE);
    tables.map(address(image::TEXT), IMAGE);
    for (page, physical) in (0..).zip(PAGES) {
        tables.map(STACK + page * 4096, physical);
    }
    let mut stack = vec![0; 3 * 4096];
    let mut word = |at: usize, value: u64| {
        stack[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    word(0xff8, address(image::MAIN) + image::RETURN);
    word(0x1ff8, 0);
    word(0x2000, address(image::START) + image::RETURN);
    let cpu = Cpu {
        rip: address(image::LEAF) + 5,
        rsp: STACK + 0xff8,
        rbp: STACK + 0x1ff8,
        stack: (STACK, 3 * 4096),
        ..Core::small().cpus[1].clone()
    };
    let mut memory = vec![
        Memory { address: TABLES, bytes: tables.bytes, zeros: 0 },
        Memory { address: IMAGE, bytes: image::text(), zeros: 0 },
    ];
    for (bytes, physical) in stack.chunks_exact(4096).zip(PAGES) {
        memory.push(Memory { address: physical, bytes: bytes.to_vec(), zeros: 0 });
    }
    let five = if levels == 5 { LA57 } else { 0 };
    Core {
        version: 5,
        crashed: 0,
        cpus: vec![cpu],
        memory,
        paging: Paging {
            registers: (TABLES, PAE | five, LONG_MODE),
            segments: vec![(address(image::TEXT), IMAGE, 4096, 5)],
        },
        ..Core::small()
    }
}

fn folder(name: &str, core: &Core) -> Folder {
    let folder = Folder::new(name);
    folder.file("vmcore", &core.build());
    folder.file("appliance", &image::build(&image::BUILD_ID));
    folder
}

/// The only CPU in the answer of a command.
fn cpu(folder: &Folder, command: &str) -> Value {
    let text = answer(folder, &[command, "vmcore", "--json"]);
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    json["cpus"][0].take()
}

fn functions(bt: &Value) -> Vec<&str> {
    let frames = bt["frames"].as_array().expect("frames");
    frames.iter().map(|frame| frame["function"].as_str().unwrap_or("??")).collect()
}

#[test]
fn a_stack_of_scattered_pages_is_walked_by_the_page_tables_of_its_cpu() {
    for levels in [4, 5] {
        let core = core(levels);
        let folder = folder("virtual-walk", &core);
        let bt = cpu(&folder, "bt");
        assert_eq!(functions(&bt), ["leaf", "appliance::main", "_start"], "{bt}");
        assert_eq!((&bt["end"], &bt["translation"]), (&"outermost".into(), &"page-tables".into()));
        assert_eq!(bt["tables_refused"], Value::Null);
        let trust: Vec<_> = (0..3).map(|frame| bt["frames"][frame]["trust"].as_str()).collect();
        assert_eq!(trust, [Some("context"), Some("cfi"), Some("cfi")]);
        let main = image::MAIN.wrapping_add(SLIDE) + image::RETURN;
        assert_eq!(bt["frames"][1]["pc"], format!("{main:#x}"));
        assert_eq!(cpu(&folder, "cpus")["function"], "leaf");
        let rip = image::LEAF.wrapping_add(SLIDE) + 5;
        assert_eq!(cpu(&folder, "regs")["registers"]["rip"], format!("{rip:#x}"));

        // Every level of a walk, down to the page.
        let dump = Dump::open(folder.path("vmcore")).expect("the core");
        let memory = dump.virtual_memory(&dump.cpus[0]);
        let mut steps = Steps::new();
        let walk = memory.walk(STACK + 0x1008, &mut steps).expect("tables").expect("mapped");
        assert_eq!((walk.physical, steps.len()), (PAGES[1] + 8, levels as usize));
        assert_eq!(steps[0].entry & !0xfff, TABLES);
    }
}

#[test]
fn a_page_that_is_not_in_the_dump_is_named_by_both_addresses() {
    let mut core = core(4);
    core.memory.retain(|memory| memory.address != PAGES[2]);
    let folder = folder("virtual-missing", &core);
    let bt = cpu(&folder, "bt");
    assert_eq!(functions(&bt), ["leaf", "appliance::main"], "{bt}");
    let page =
        MissingPage { virtual_address: Hex(STACK + 0x2000), physical_address: Hex(PAGES[2]) };
    assert_eq!(bt["missing_page"], serde_json::to_value(page).expect("JSON"));
    let said = answer(&folder, &["bt", "vmcore"]);
    let line = "the page at 0xffffc90000012000 (physical 0x707000) is not in this dump";
    assert!(said.contains(line), "{said}");
}

#[test]
fn bad_page_tables_are_told_and_the_program_headers_used() {
    /// Changes the tables.
    type Change = fn(&mut [u8]);
    let to_itself: Change = |tables| {
        for entry in tables[..4096].chunks_exact_mut(8) {
            entry.copy_from_slice(&(TABLES | 3).to_le_bytes());
        }
    };
    let beyond: Change = |tables| {
        for entry in tables.chunks_exact_mut(8) {
            entry.copy_from_slice(&0x000f_ffff_ffff_f003_u64.to_le_bytes());
        }
    };
    let garbage: Change = |tables| {
        let mut state = 0x1234_5678_9abc_def1_u64;
        for byte in tables {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8 | 1;
        }
    };
    let empty: Change = |tables| tables.fill(0);
    let all = [
        (to_itself, Some("0x320")),
        (garbage, Some("")),
        (empty, Some("maps nothing")),
        // The tables that these lead to are not in the dump.
        (beyond, None),
    ];
    for (number, (change, said)) in all.into_iter().enumerate() {
        let mut core = core(4);
        change(core.at(TABLES));
        // By the program headers the stack is one piece.
        core.memory.retain(|memory| !PAGES.contains(&memory.address));
        let stack = self::core(4).memory.split_off(2);
        let bytes = stack.into_iter().flat_map(|page| page.bytes).collect();
        core.memory.push(Memory { address: PAGES[0], bytes, zeros: 0 });
        core.paging.segments.push((STACK, PAGES[0], 3 * 4096, 6));
        let folder = folder("virtual-bad", &core);
        let bt = cpu(&folder, "bt");
        assert_eq!(functions(&bt), ["leaf", "appliance::main", "_start"], "{number}: {bt}");
        assert_eq!(bt["translation"], "program-headers", "{number}");
        let text = answer(&folder, &["bt", "vmcore"]);
        match said {
            Some(words) => {
                let why = bt["tables_refused"].as_str().unwrap_or_else(|| panic!("{number}: {bt}"));
                assert!(why.contains(words), "{number}: {why}");
                assert!(text.contains(&format!("PAGE TABLES NOT USED: {why}")), "{text}");
            }
            None => assert_eq!(bt["tables_refused"], Value::Null, "{number}"),
        }
    }
}

#[test]
fn an_image_that_fits_no_distance_is_told() {
    let mut core = core(4);
    core.paging.segments[0].3 = 6;
    let folder = folder("virtual-slide", &core);
    let output = vmcore(&folder, &["bt", "vmcore"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("does not say where the image ran"), "{said}");
}

#[test]
fn an_extracted_core_has_every_page_at_its_virtual_address() {
    for levels in [4, 5] {
        let folder = folder("aliases", &core(levels));
        answer(&folder, &["extract", "vmcore", "-o", "core"]);
        answer(&folder, &["extract", "core", "-o", "again"]);
        let bytes = std::fs::read(folder.path("core")).expect("the core");
        assert!(bytes == std::fs::read(folder.path("again")).expect("the core of the core"));
        let core = CoreReader::new(&bytes, bytes.len() as u64).expect("a core");
        let all: Vec<_> = core.segments().chain(core.aliases()).collect();
        let at = |address: u64| {
            let found = all.iter().filter(|segment| segment.load.virtual_address == address);
            let found: Vec<_> = found.collect();
            assert_eq!(found.len(), 1, "{address:#x} in {all:x?}");
            found[0]
        };
        for (page, physical) in (0..).zip(PAGES) {
            let alias = at(STACK + page * 4096);
            assert_eq!((alias.load.physical_address, alias.load.memory_bytes), (physical, 4096));
            let whole = core.segments().find(|whole| whole.load.physical_address == physical);
            assert_eq!(whole.map(|whole| whole.offset), Some(alias.offset), "the same bytes");
        }
        assert_eq!(at(image::TEXT.wrapping_add(SLIDE)).load.physical_address, IMAGE);
        // Each page of memory is counted once, and read by its physical address as before.
        let physical: u64 = core.segments().map(|segment| segment.load.memory_bytes).sum();
        let dump = Dump::open(folder.path("core")).expect("a dump");
        let counted = dump.segments().iter().map(|segment| segment.load.memory_bytes);
        assert_eq!(counted.sum::<u64>(), physical);
        answer(&folder, &["bt", "core", "--json"]);
    }
}
