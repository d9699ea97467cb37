//! `vmcore bt`: what every CPU was doing.

use std::collections::HashMap;
use std::fmt::Write;

use handoff::CpuRecord;
use handoff::cpus::{UNKNOWN_ID, X86_64};
use handoff::crash::{RegistersFrom, StoppedBy};
use serde::{Deserialize, Serialize};

use crate::dump::{MissingPage, Translation};
use crate::json::Hex;
use crate::text::clean;
use crate::unwind::{self, End, Trust};
use crate::{Dump, Image, Result};

/// The stack of one CPU; an element of `cpus` in the JSON of `vmcore bt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuBacktrace {
    /// Index of the CPU.
    pub index: u32,
    /// How it was stopped.
    pub stopped_by: String,
    /// Where the registers come from that the walk began with.
    pub registers_from: String,
    /// The frames, the innermost first.
    pub frames: Vec<Frame>,
    /// Where the walk ended.
    pub end: End,
    /// The first address that the walk asked for and whose memory is damaged: frames from there
    /// on may be missing or wrong. `null` for none.
    pub damaged_at: Option<Hex>,
    /// How virtual addresses were translated.
    pub translation: Translation,
    /// Why the page tables of the CPU were not used, for all addresses or for one of them;
    /// `null` when they were, or are not in the dump.
    pub tables_refused: Option<String>,
    /// The page at which a walk was lost: mapped, and not in the dump. `null` for none.
    pub missing_page: Option<MissingPage>,
}

/// One function of a stack, inlined or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Address: of the next instruction in the first frame, of the one behind the call in
    /// the others. Inlined functions share it with the function they are in.
    pub pc: Hex,
    /// The function, demangled; `null` when nothing is known about the address.
    pub function: Option<String>,
    /// Source file; `null` when it is not known.
    pub file: Option<String>,
    /// Line in it; `null` when it is not known.
    pub line: Option<u32>,
    /// Whether the function was inlined into the next one.
    pub inlined: bool,
    /// How the frame was found.
    pub trust: Trust,
}

/// The stacks of all CPUs, in index order.
#[must_use]
pub fn backtraces(dump: &Dump, image: &Image) -> Vec<CpuBacktrace> {
    dump.cpus.iter().map(|record| backtrace(dump, image, record)).collect()
}

/// The stacks of one CPU, or of all.
///
/// # Errors
/// When there is no such CPU.
pub fn select(dump: &Dump, image: &Image, cpu: Option<u32>) -> Result<Vec<CpuBacktrace>> {
    Ok(dump.select(cpu)?.into_iter().map(|record| backtrace(dump, image, record)).collect())
}

fn backtrace(dump: &Dump, image: &Image, record: &CpuRecord) -> CpuBacktrace {
    let mut backtrace = CpuBacktrace {
        index: record.index,
        stopped_by: record.stopped_by.to_string(),
        registers_from: record.registers_from.to_string(),
        frames: Vec::new(),
        end: End::NoRegisters,
        damaged_at: None,
        translation: Translation::ProgramHeaders,
        tables_refused: None,
        missing_page: None,
    };
    if record.registers_from == RegistersFrom::NONE {
        return backtrace;
    }
    let memory = dump.virtual_memory(record);
    let (raw, end) = unwind::walk(image, &memory, unwind::context(record), record.stack);
    backtrace.damaged_at = memory.damaged_at().map(Hex);
    backtrace.translation = memory.translation();
    backtrace.tables_refused = memory.refusal();
    backtrace.missing_page = memory.missing_page().filter(|_| end == End::Lost);
    // A recursion asks for the same address again and again.
    let mut known = HashMap::new();
    for frame in raw {
        let places = known.entry(frame.lookup()).or_insert_with_key(|&at| image.places(at));
        backtrace.frames.extend(places.iter().cloned().map(|place| Frame {
            pc: Hex(frame.pc),
            function: place.function,
            file: place.file,
            line: place.line,
            inlined: place.inlined,
            trust: frame.trust,
        }));
    }
    backtrace.end = end;
    backtrace
}

/// Equal frames in a row that are folded into one.
const FOLDED: usize = 4;

/// Who a CPU is and how it was stopped, in one line.
pub(crate) fn title(record: &CpuRecord) -> String {
    let id = match (record.hardware_id, record.architecture) {
        (UNKNOWN_ID, _) => String::new(),
        (id, X86_64) => format!(" (APIC {id})"),
        (id, _) => format!(" (id {id})"),
    };
    let how = match record.stopped_by {
        StoppedBy::CRASH => "crashed",
        StoppedBy::IRQ => "stopped by IRQ",
        StoppedBy::NMI => "stopped by NMI",
        StoppedBy::INIT => "stopped by INIT",
        StoppedBy::SELF => "stopped itself",
        StoppedBy::NOT_STOPPED => "NOT STOPPED",
        StoppedBy::NEVER_STARTED => "never started",
        _ => "how it stopped is not known",
    };
    let from = match record.registers_from {
        RegistersFrom::LAST_KNOWN => ", registers are the LAST KNOWN, not those of the crash",
        RegistersFrom::SELF => ", registers taken by itself",
        _ => "",
    };
    let workload = match clean(record.workload()) {
        name if name.is_empty() => String::new(),
        name => format!(", running {name}"),
    };
    format!("CPU {}{id}: {how}{from}{workload}", record.index)
}

/// The stacks for the terminal.
///
/// # Errors
/// When a stack's CPU is not in the dump.
pub fn render(dump: &Dump, backtraces: &[CpuBacktrace]) -> Result<String> {
    let mut out = String::new();
    for (number, backtrace) in backtraces.iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", title(dump.cpu(backtrace.index)?));
        stack(&mut out, &backtrace.frames);
        if let Some(address) = backtrace.damaged_at {
            let at = address.0;
            let _ = writeln!(
                out,
                "       DAMAGED: the memory at {at:#x} is not what was captured; frames from there \
                 on may be missing or wrong"
            );
        }
        if let Some(why) = &backtrace.tables_refused {
            let why = clean(why);
            let _ = writeln!(
                out,
                "       PAGE TABLES NOT USED: {why}; addresses are looked up in the program headers"
            );
        }
        if let Some(page) = backtrace.missing_page {
            let (address, physical) = (page.virtual_address.0, page.physical_address.0);
            let _ = writeln!(
                out,
                "       the page at {address:#x} (physical {physical:#x}) is not in this dump"
            );
        }
        let end = match backtrace.end {
            End::Outermost => continue,
            End::CutShort => {
                "CUT SHORT: the return address here is zero, above the bottom of the stack; it \
                 was overwritten"
            }
            End::Lost if backtrace.damaged_at.is_some() => continue,
            End::Lost => "the stack cannot be followed any further",
            End::TooDeep => "… and so on: the stack is deeper than is shown",
            End::NoRegisters => "no registers were saved",
        };
        let _ = writeln!(out, "       {end}");
    }
    Ok(out)
}

fn stack(out: &mut String, frames: &[Frame]) {
    // Inlined functions are parts of one real frame: its number and address stand once.
    let real: Vec<&[Frame]> = frames.split_inclusive(|frame| !frame.inlined).collect();
    let mut number = 0;
    // A recursion is said in two lines rather than shown in hundreds.
    for same in real.chunk_by(|one, other| one == other) {
        let shown = if same.len() >= FOLDED { 1 } else { same.len() };
        for (offset, parts) in same[..shown].iter().enumerate() {
            for (part, frame) in parts.iter().enumerate() {
                let number = (part == 0).then_some(number + offset);
                let _ = writeln!(out, "{}", line(frame, number));
            }
        }
        if shown < same.len() {
            let _ = writeln!(out, "       the same {} times more", same.len() - shown);
        }
        number += same.len();
    }
}

fn line(frame: &Frame, number: Option<usize>) -> String {
    let function = clean(frame.function.as_deref().unwrap_or("??"));
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    let at = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!(" at {}:{line}", clean(file)),
        (Some(file), None) => format!(" in {}", clean(file)),
        _ => String::new(),
    };
    let start = match number {
        Some(number) => {
            format!("#{number:<3} {:#018x}  {:<13}", frame.pc.0, frame.trust.name())
        }
        None => " ".repeat(38),
    };
    format!("  {start}  {function}{inlined}{at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(pc: u64, inlined: bool) -> Frame {
        let function = Some(format!("f{pc:x}"));
        Frame { pc: Hex(pc), function, file: None, line: None, inlined, trust: Trust::Cfi }
    }

    #[test]
    fn a_recursion_is_folded_and_the_numbers_go_on() {
        let mut frames = vec![frame(1, false)];
        for _ in 0..100 {
            frames.extend([frame(2, true), frame(2, false)]);
        }
        frames.extend([frame(3, false), frame(3, false), frame(4, false)]);
        let mut out = String::new();
        stack(&mut out, &frames);
        let lines: Vec<&str> = out.lines().map(str::trim).collect();
        let begins = ["#0", "#1", "f2", "the same 99 times more", "#101", "#102", "#103"];
        assert_eq!(lines.len(), begins.len(), "{out}");
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.starts_with(begin), "{out}");
        }
    }
}
