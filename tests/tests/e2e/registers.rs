//! An outside witness of the registers: QEMU logs every interrupt it delivers with the
//! registers of that moment. The dump has to hold exactly those.

use e2e::intlog::{self, Delivered};
use handoff::X86Registers;
use handoff::crash::{RegistersFrom, StoppedBy};

use crate::story::{Crashed, Story};

/// The stop interrupt's vector, and the NMI's.
const STOP: u8 = 0xf0;
const NMI: u8 = 2;
/// RFLAGS.RF (Intel SDM vol. 3, 2.3): the processor sets it in what it pushes, not before.
const RESUME: u64 = 1 << 16;

/// What the dump says of a register, beside QEMU's name for it.
fn pairs(r: &X86Registers) -> Vec<(&'static str, u64)> {
    vec![
        ("RAX", r.rax),
        ("RBX", r.rbx),
        ("RCX", r.rcx),
        ("RDX", r.rdx),
        ("RSI", r.rsi),
        ("RDI", r.rdi),
        ("RBP", r.rbp),
        ("RSP", r.rsp),
        ("R8", r.r8),
        ("R9", r.r9),
        ("R10", r.r10),
        ("R11", r.r11),
        ("R12", r.r12),
        ("R13", r.r13),
        ("R14", r.r14),
        ("R15", r.r15),
        ("RIP", r.rip),
        ("RFL", r.rflags & !RESUME),
        ("CS", r.cs),
        ("SS", r.ss),
        ("FS.base", r.fs_base),
        ("GS.base", r.gs_base),
        ("CR0", r.cr0),
        ("CR2", r.cr2),
        ("CR3", r.cr3),
        ("CR4", r.cr4),
        ("EFER", r.efer),
        ("GDT", r.gdt_base),
        ("GDT.limit", r.gdt_limit),
        ("IDT", r.idt_base),
        ("IDT.limit", r.idt_limit),
    ]
}

/// Registers in which the two differ, with both values.
fn differences(ours: &X86Registers, theirs: &Delivered) -> Vec<(&'static str, u64, Option<u64>)> {
    let value = |name: &str| {
        let value = theirs.registers.get(name).copied();
        if name == "RFL" { value.map(|flags| flags & !RESUME) } else { value }
    };
    let pairs = pairs(ours).into_iter().map(|(name, ours)| (name, ours, value(name)));
    pairs.filter(|(_, ours, theirs)| Some(*ours) != *theirs).collect()
}

/// One CPU by each rung. Each was interrupted once by what stopped it, with the registers that
/// are in the dump; who was not meant to see an NMI saw none. Proves R3, R15, L8.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn are_those_that_qemu_saw() {
    let story = Story {
        wedges: &["irqs-off,cpu=3", "nmi-blocked,cpu=2"],
        stopped: &[(2, "init", "last-known"), (3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    let mut options = story.options();
    // Whose interrupts would be in the log as well.
    options.command_line.push_str(" rehearsal=off");
    std::fs::create_dir_all(&options.out).expect("a folder");
    options.out = options.out.canonicalize().expect("the folder");
    for file in options.out.read_dir().expect("the folder").flatten() {
        if file.file_name().to_string_lossy().starts_with("interrupts-") {
            std::fs::remove_file(file.path()).expect("an earlier log");
        }
    }
    options.qemu_args = intlog::wanted_in(&options.out);
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    let delivered = intlog::read_all(&options.out).expect("QEMU's log");

    for cpu in &crashed.dump.cpus {
        // Every CPU has a GDT of its own, which tells whose entry it is.
        let seen = |vector: u8| -> Vec<&Delivered> {
            let own = |entry: &&Delivered| {
                entry.vector == vector
                    && entry.registers.get("GDT") == cpu.x86().map(|set| &set.gdt_base)
            };
            delivered.iter().filter(own).collect()
        };
        let by = match (cpu.stopped_by, cpu.registers_from) {
            (StoppedBy::CRASH, _) => {
                assert!(seen(STOP).is_empty() && seen(NMI).is_empty(), "the stopper");
                continue;
            }
            (StoppedBy::IRQ, _) => {
                assert!(seen(NMI).is_empty(), "CPU {} saw an NMI", cpu.index);
                seen(STOP)
            }
            // By an NMI, the one that stopped it or the one it never came back from.
            (StoppedBy::NMI, _) | (_, RegistersFrom::LAST_KNOWN) => {
                assert!(seen(STOP).is_empty(), "CPU {} took the interrupt", cpu.index);
                seen(NMI)
            }
            other => panic!("CPU {}: {other:?}", cpu.index),
        };
        let [entry] = by[..] else { panic!("CPU {}: {} entries", cpu.index, by.len()) };
        let different = differences(cpu.x86().expect("registers"), entry);
        assert!(different.is_empty(), "CPU {}: {different:x?}", cpu.index);
        // That a difference would be seen at all.
        let set = *cpu.x86().expect("registers");
        let changed = X86Registers { r12: set.r12 ^ 1, ..set };
        assert_eq!(differences(&changed, entry).len(), 1);
    }
}
