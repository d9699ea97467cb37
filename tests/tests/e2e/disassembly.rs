//! What the compiler and the linker made of the stop path: read off the linked image, for
//! an emulator shows none of it.

use std::path::Path;

use e2e::code::{self, Function, Sends};
use e2e::harness::Images;
use gimli::{CallFrameInstruction, DebugFrame, LittleEndian, UnwindSection};
use iced_x86::{Mnemonic, Register};
use object::{Object, ObjectSection, ObjectSymbol};
use vmcore::Image;

/// An appliance as it was linked.
struct Linked {
    images: Images,
    functions: Vec<Function>,
}

/// The appliance as it is shipped, and the one with faults on request: each has to pass.
fn linked() -> [Linked; 2] {
    [Images::find(), Images::find_with_faults()].map(|images| {
        let images = images.expect("the images: run cargo xtask build");
        let functions = code::functions(&images.appliance).expect("the appliance's functions");
        Linked { images, functions }
    })
}

/// The one whose name has all of `words`.
fn named<'a>(functions: &'a [Function], words: &[&str]) -> &'a Function {
    let mut found = functions.iter().filter(|f| words.iter().all(|word| f.name.contains(word)));
    let first = found.next().unwrap_or_else(|| panic!("no function named {words:?}"));
    assert!(found.next().is_none(), "several functions named {words:?}");
    first
}

/// Who calls or jumps to `to`: the functions, those included that were inlined there.
fn callers(linked: &Linked, to: &Function) -> Vec<String> {
    let image = Image::open(&linked.images.appliance).expect("the appliance's debug information");
    let mut names = Vec::new();
    for function in &linked.functions {
        for (place, _) in function.leads_to.iter().filter(|(_, target)| *target == to.address) {
            names.push(function.name.clone());
            names.extend(image.places(*place).into_iter().filter_map(|place| place.function));
        }
    }
    names
}

/// State is published before the signal: a WRMSR to the ICR does not order earlier stores, so
/// both fences stand between the last store and it, in the one place that sends. Proves R11,
/// L3.
#[test]
#[ignore = "reads the linked image: run cargo xtask test"]
fn the_barrier_is_inside_the_send() {
    for Linked { functions, .. } in linked() {
        let mut ways = Vec::new();
        for function in &functions {
            for (address, how, fenced) in code::sends(function) {
                assert!(fenced, "{} sends at {address:#x} without its barrier", function.name);
                assert!(function.name.contains("apic::send"), "{} sends as well", function.name);
                ways.push(how);
            }
        }
        assert!(ways.contains(&Sends::ByMsr), "{ways:?}");
        assert!(ways.contains(&Sends::ByMemory), "{ways:?}");
    }
}

/// Nobody else could write the ICR: every other WRMSR names its register as a constant, or
/// belongs to what sets a CPU and its timer up or reads its machine-check banks. Proves R11.
#[test]
#[ignore = "reads the linked image: run cargo xtask test"]
fn nobody_else_writes_the_command_register() {
    let linked = linked();
    for function in linked.iter().flat_map(|linked| &linked.functions) {
        for (index, instruction) in function.instructions.iter().enumerate() {
            if instruction.mnemonic() != Mnemonic::Wrmsr {
                continue;
            }
            let known = code::selected(&function.instructions[..index]).is_some();
            let set_up = [
                "x2apic::",
                "x86_64::",
                "smp",
                "apic::enable",
                // Everything that sets up a CPU or clears a machine check is inlined into these.
                "kernel::start::",
                "kernel::base::cpus::",
                "timer",
                "lockup",
                "machine_check",
            ];
            let by_set_up = set_up.iter().any(|word| function.name.contains(word));
            assert!(known || by_set_up, "{}: WRMSR to what?", function.name);
        }
    }
}

/// All ways to stop lead through one function, and only that one leads to the park area, where
/// a CPU acknowledges. Proves R13.
#[test]
#[ignore = "reads the linked image: run cargo xtask test"]
fn every_way_to_stop_leads_through_one_function() {
    for linked in &linked() {
        let funnel = named(&linked.functions, &["crash::stop::stop_this_cpu"]);
        let park = named(&linked.functions, &["park_enter"]);
        for name in callers(linked, park) {
            assert!(name.contains("stop_this_cpu") || name.contains("Park::enter"), "{name} parks");
        }
        if let Some(enter) = linked.functions.iter().find(|f| f.name.contains("Park::enter")) {
            for name in callers(linked, enter) {
                assert!(name.contains("stop_this_cpu"), "{name} parks");
            }
        }
        let entries = callers(linked, funnel);
        for entry in [
            "crash::on_stop_interrupt",
            "crash::on_nmi",
            "crash::crash",
            "crash::stop_for_good",
            "machine_check::on_machine_check",
        ] {
            let there = entries.iter().any(|name| name.contains(entry));
            assert!(there, "{entry} does not lead to the funnel: {entries:?}");
        }
    }
}

/// A CPU that was stopped by NMI never returns from it: nothing in the funnel or in the park
/// code is an IRET. Proves R16.
#[test]
#[ignore = "reads the linked image: run cargo xtask test"]
fn a_stopped_cpu_never_returns() {
    let returns = |f: &Function| f.instructions.iter().any(|i| i.mnemonic() == Mnemonic::Iretq);
    for Linked { functions, .. } in linked() {
        for words in [&["crash::stop::stop_this_cpu"][..], &["park_enter"]] {
            assert!(!returns(named(&functions, words)), "{words:?} returns");
        }
        // That an IRET would be seen at all: interrupts do return.
        assert!(functions.iter().any(returns), "no function returns from an interrupt");
    }
}

/// A CPU learns who it is from its APIC: nothing at all is read through GS or FS. Proves R19.
#[test]
#[ignore = "reads the linked image: run cargo xtask test"]
fn nothing_is_read_through_gs() {
    let linked = linked();
    for function in linked.iter().flat_map(|linked| &linked.functions) {
        for instruction in &function.instructions {
            let segment = instruction.segment_prefix();
            let through = matches!(segment, Register::GS | Register::FS);
            assert!(!through, "{} at {:#x}", function.name, instruction.ip());
        }
    }
}

/// The comment above the funnel says what each way into it passes. Proves R18.
#[test]
fn the_funnel_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../appliance/kernel/src/crash/stop.rs");
    let text = std::fs::read_to_string(path).expect("the funnel's source");
    let (before, _) = text.split_once("pub fn stop_this_cpu").expect("the funnel");
    let start = before.find("pub enum Entry").expect("the ways in");
    let (ways, about) = before[start..].split_once("}\n").expect("its end");
    for way in ["Irq", "Nmi", "Own"] {
        let at = ways.find(&format!("    {way}(")).unwrap_or_else(|| panic!("no way in {way}"));
        let line = ways[..at].trim_end().lines().last().unwrap_or_default();
        assert!(line.trim_start().starts_with("///"), "{way} is not explained");
    }
    for word in ["mask interrupts", "save the registers", "park", "acknowledge"] {
        assert!(about.contains(word), "the funnel does not speak of '{word}'");
    }
}

/// Registers that the call frame information of the function `name` calls undefined, by DWARF
/// number.
fn undefined_in(file: &object::File<'_>, name: &str) -> Vec<u16> {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).expect("the symbol");
    let section = file.section_by_name(".debug_frame").expect("call frame information");
    let bytes = section.uncompressed_data().expect("the section");
    let mut frames = DebugFrame::new(&bytes, LittleEndian);
    frames.set_address_size(8);
    let bases = gimli::BaseAddresses::default();
    let fde = frames
        .fde_for_address(&bases, symbol.address(), DebugFrame::cie_from_offset)
        .expect("an entry for the function");
    let mut instructions = fde.instructions(&frames, &bases);
    let mut undefined = Vec::new();
    while let Some(instruction) = instructions.next().expect("an instruction") {
        if let CallFrameInstruction::Undefined { register } = instruction {
            undefined.push(register.0);
        }
    }
    undefined.sort_unstable();
    undefined
}

/// The outermost functions say that nothing at all is known of a caller. The return address alone
/// is enough for gdb and elfutils; drgn ends a stack only where no register is known, and then
/// follows a frame pointer of 0 into the memory at address 0.
#[test]
#[ignore = "reads the linked image: run cargo xtask test"]
fn the_outermost_functions_have_no_caller() {
    for Linked { images, .. } in linked() {
        let image = std::fs::read(&images.appliance).expect("the appliance");
        let file = object::File::parse(&*image).expect("an ELF file");
        // rbx, rbp, rsp, r12 to r15, and the return address.
        for name in ["boot_entry64", "ap_entry64"] {
            assert_eq!(undefined_in(&file, name), [3, 6, 7, 12, 13, 14, 15, 16], "{name}");
        }
    }
}
