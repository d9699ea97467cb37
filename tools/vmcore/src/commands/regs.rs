//! `vmcore regs`: the registers of a CPU, or of all.

use std::fmt::Write;

use handoff::X86Registers;
use handoff::crash::RegistersFrom;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::json::Hex;
use crate::{Dump, Result};

/// The registers of one CPU; an element of `cpus` in the JSON of `vmcore regs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRegisters {
    /// Index of the CPU.
    pub index: u32,
    /// How it was stopped.
    pub stopped_by: String,
    /// Where the registers come from: `interrupted`, `self`, `last-known`, `none`.
    pub registers_from: String,
    /// ELF machine the registers belong to, 62 for x86_64.
    pub machine: u32,
    /// Name and value; `null` when there are none.
    pub registers: Option<Map<String, serde_json::Value>>,
}

/// The registers of one CPU, or of all.
///
/// # Errors
/// When there is no such CPU.
pub fn registers(dump: &Dump, cpu: Option<u32>) -> Result<Vec<CpuRegisters>> {
    let one = |record: &handoff::CpuRecord| {
        let there = record.registers_from != RegistersFrom::NONE;
        let values = record.x86().filter(|_| there).map(named);
        let entry = |(name, value): (&str, u64)| (name.to_owned(), serde_json::json!(Hex(value)));
        CpuRegisters {
            index: record.index,
            stopped_by: record.stopped_by.to_string(),
            registers_from: record.registers_from.to_string(),
            machine: record.architecture,
            registers: values.map(|values| values.into_iter().map(entry).collect()),
        }
    };
    Ok(dump.select(cpu)?.into_iter().map(one).collect())
}

/// All registers in the order in which they are shown.
fn named(r: &X86Registers) -> [(&'static str, u64); 37] {
    [
        ("rip", r.rip),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("rflags", r.rflags),
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("orig_rax", r.orig_rax),
        ("cr0", r.cr0),
        ("cr2", r.cr2),
        ("cr3", r.cr3),
        ("cr4", r.cr4),
        ("efer", r.efer),
        ("cs", r.cs),
        ("ss", r.ss),
        ("ds", r.ds),
        ("es", r.es),
        ("fs", r.fs),
        ("gs", r.gs),
        ("fs_base", r.fs_base),
        ("gs_base", r.gs_base),
        ("gdt_base", r.gdt_base),
        ("gdt_limit", r.gdt_limit),
        ("idt_base", r.idt_base),
        ("idt_limit", r.idt_limit),
        ("apic_base", r.apic_base),
    ]
}

/// The registers of the CPUs for the terminal, three in a row.
///
/// # Errors
/// When there is no such CPU.
pub fn render(dump: &Dump, cpu: Option<u32>) -> Result<String> {
    let mut out = String::new();
    for (number, record) in dump.select(cpu)?.into_iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", super::bt::title(record));
        if record.registers_from == RegistersFrom::NONE {
            out.push_str("  no registers were saved\n");
            continue;
        }
        let Some(registers) = record.x86() else {
            let machine = record.architecture;
            let _ = writeln!(out, "  registers of ELF machine {machine}, which are not known here");
            continue;
        };
        for row in named(registers).chunks(3) {
            let cells = row.iter().map(|(name, value)| format!("  {name:<9} {value:#018x}"));
            let _ = writeln!(out, "{}", cells.collect::<String>());
        }
    }
    Ok(out)
}
