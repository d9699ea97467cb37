//! The appliance's memory: the heap, and what happens when there is none left.

use std::time::Duration;

use e2e::harness::{Bus, Disk};
use handoff::facts::MemoryKind;
use vmcore::Dump;
use vmcore::dump::Memory;

use crate::story::{Crashed, Story};

/// Memory used up to the last page, in the middle of work: the cause says so, and who asked
/// for how much. The capture needs nothing of it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn out_of_memory() {
    let story = Story {
        crash: "oom",
        kind: "oom",
        through: &["handle_alloc_error", "use_up_the_heap", "inject::strike", "Workload>::run"],
        ..Story::PANIC
    };
    let crashed = story.tell();
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    let message = cause.message();
    assert!(
        message.contains("no memory for 4000 bytes (aligned to 1), asked for by "),
        "{message}"
    );
    assert!(message.ends_with(" 0 pages are free"), "{message}");
}

/// A stopped CPU holds the heap, and the crash path asks it for memory all the same: refused
/// at once, and counted.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_heap_is_out_of_bounds_in_a_crash() {
    let story =
        Story { crash: "heap-in-crash", stopped: &[(3, "nmi", "interrupted")], ..Story::PANIC };
    let crashed = story.tell();
    let console = &crashed.outcome.console;
    for line in ["crash: 1 requests to the heap refused", "stop: 3 of 3 CPUs acknowledged"] {
        assert_eq!(console.all_after(line).count(), 1, "{line}: {}", console.text());
    }
    assert!(crashed.functions(3).iter().any(|name| name.contains("hold_the_heap")));
}

const GIB: u64 = 1 << 30;

/// A machine with 5 GiB and such a processor.
fn five_gigabytes(processor: &str) -> Crashed {
    let mut options = Story::PANIC.options();
    options.memory = 5 * GIB;
    options.command_line = "workload=sieve trace=off".into();
    options.qemu_args = vec!["-cpu".into(), processor.into()];
    options.out = options.out.join(processor);
    let crashed = Crashed::from(&options);
    Story::PANIC.check(&crashed);
    crashed
}

/// Pages of 1 GiB and of 2 MiB in the page tables that CPU 1 crashed on (Intel SDM vol. 3,
/// 4.5: bit 0 of an entry says that it is there, bit 7 that it is a page and no table).
fn large_pages(dump: &Dump) -> (usize, usize) {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let table = |address: u64| -> Vec<u64> {
        let mut bytes = [0; 4096];
        dump.read(address & FRAME, &mut bytes).expect("a page table in the dump");
        let words = bytes.chunks_exact(8);
        let entries = words.map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        entries.filter(|entry| entry & 1 != 0).collect()
    };
    let is_page = |entry: &u64| entry & 1 << 7 != 0;
    let root = dump.cpu(1).expect("CPU 1").x86().expect("registers").cr3;
    let middle: Vec<u64> = table(root).into_iter().flat_map(table).collect();
    let (giant, tables): (Vec<u64>, Vec<u64>) = middle.into_iter().partition(is_page);
    let large = tables.into_iter().flat_map(table).filter(is_page).count();
    (giant.len(), large)
}

/// Memory is mapped by the largest pages that the processor has.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn pages_of_1_gib_where_there_are_any() {
    let crashed = five_gigabytes("max");
    let (giant, large) = large_pages(&crashed.dump);
    // From 4 to 7 GiB; what is below has holes and protected parts in it.
    assert!(giant >= 3 && large > 0, "{giant} of 1 GiB, {large} of 2 MiB");
}

/// Memory above 4 GiB, with the hole below it, is known and in use; and without pages of
/// 1 GiB, which not every processor has.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn five_gigabytes_with_a_hole() {
    let crashed = five_gigabytes("max,-pdpe1gb");
    let (giant, large) = large_pages(&crashed.dump);
    assert!(giant == 0 && large > 2000, "{giant} of 1 GiB, {large} of 2 MiB");
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    let ram = || facts.memory().iter().filter(|entry| entry.kind == MemoryKind::RAM);
    let above = ram().filter(|entry| entry.range.start >= 4 * GIB);
    // The machine keeps 2 GiB of it below the hole.
    assert_eq!(above.map(|entry| entry.range.bytes).sum::<u64>(), 3 * GIB);
    assert!(ram().all(|entry| !(2 * GIB..4 * GIB).contains(&entry.range.start)));
    // Nearly all of it is there to be used.
    let free = crashed.outcome.console.after("memory: ").expect("how much is free");
    let free: u64 = free.split(' ').next().and_then(|mib| mib.parse().ok()).expect("a number");
    assert!(free > 5000, "{free} MiB");
    // This one was told to record nothing, and says so when it is asked what it recorded.
    let trace = vmcore::trace(&crashed.dump, None, Default::default());
    let lacks = trace.expect_err("no trace").to_string();
    assert!(lacks.contains("nothing was recorded (trace=off"), "{lacks}");
}

/// A machine with so much memory, of which the host has what is touched, captured.
fn large(gib: u64, processor: &str, words: &str) -> Crashed {
    let mut options = Story::PANIC.options();
    options.memory = gib * GIB;
    options.command_line = format!("workload=sieve trace=off {words}");
    options.disks = vec![Disk { bytes: Some(2 * GIB), ..Disk::new(Bus::Virtio) }];
    options.timeout = Duration::from_secs(110);
    let backend = format!("memory-backend-ram,id=m,size={gib}G,reserve=off");
    for word in ["-object", &backend, "-machine", "memory-backend=m", "-cpu", processor] {
        options.qemu_args.push(word.into());
    }
    options.out = options.out.join(format!("{gib}-{}", words.replace('=', "-")));
    let crashed = Crashed::from(&options);
    Story::PANIC.check(&crashed);
    crashed
}

/// Memory of any size is captured in every way of storing it; what was in use is compressed
/// where that was asked for.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn much_memory_in_every_way_of_storing_it() {
    for gib in [17, 256, 1024] {
        for way in ["raw", "lz4", "auto"] {
            let crashed = large(gib, "max,phys-bits=46", &format!("dump={way}"));
            let console = &crashed.outcome.console;
            let used = console.after("capture: sealed stage `used`: ").expect("the stage");
            let compressed = used.split(", ").find(|part| part.ends_with(" compressed"));
            let none = compressed == Some("0.0 MiB compressed");
            assert!(way != "lz4" || !none, "{gib} GiB: {used}");
            assert!(way != "raw" || none, "{gib} GiB: {used}");
            let budget = console.has(" compressed") && console.has("capture: room to list ");
            assert_eq!(budget, way != "raw", "{gib} GiB {way}");
        }
    }
}

/// Without pages of 1 GiB there is not room for page tables of all memory: armed with less, the
/// boot says so, and what is in use is captured.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_terabyte_without_pages_of_1_gib() {
    let crashed = large(1024, "max,phys-bits=46,-pdpe1gb", "dump=auto");
    let console = &crashed.outcome.console;
    assert!(console.has("warning: armed with less: a dump would hold about the first "));
}

/// The smallest machine that is promised to work: 96 MiB for up to eight CPUs.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn eight_cpus_in_96_mib() {
    let story = Story { cpus: 8, ..Story::PANIC };
    let mut options = story.options();
    options.memory = 96 << 20;
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    assert!(crashed.outcome.console.has("cpus: 8 of 8 started"));
}
