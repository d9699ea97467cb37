//! `vmcore cpus`: every CPU, how it was stopped, where it stood.

use handoff::X86Registers;
use handoff::crash::RegistersFrom;
use serde::{Deserialize, Serialize};

use super::info::{CpuInfo, cpu_info};
use crate::json::Hex;
use crate::text::{self, Table, clean};
use crate::{Dump, Image};

/// One CPU and where it stood; an element of `cpus` in the JSON of `vmcore cpus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// Who it is and how it was stopped.
    #[serde(flatten)]
    pub info: CpuInfo,
    /// Its instruction pointer; `null` when the dump has no registers of it.
    pub pc: Option<Hex>,
    /// Its stack pointer, likewise.
    pub sp: Option<Hex>,
    /// The function `pc` is in; `null` when the image is not at hand.
    pub function: Option<String>,
}

/// Every CPU of a dump; functions are named when the image is at hand.
#[must_use]
pub fn cpus(dump: &Dump, image: Option<&Image>) -> Vec<CpuState> {
    let state = |record: &handoff::CpuRecord| {
        let there = record.registers_from != RegistersFrom::NONE;
        let registers = record.x86().filter(|_| there);
        let place = |(image, registers): (&Image, &X86Registers)| {
            let places = image.places(registers.rip);
            places.into_iter().find_map(|place| place.function)
        };
        CpuState {
            info: cpu_info(record),
            pc: registers.map(|registers| Hex(registers.rip)),
            sp: registers.map(|registers| Hex(registers.rsp)),
            function: image.zip(registers).and_then(place),
        }
    };
    dump.cpus.iter().map(state).collect()
}

/// The columns that `info` shows as well.
pub(crate) fn table(cpus: &[CpuInfo]) -> Table {
    let mut table = Table::new(&HEADINGS, &[0, 1, 3]);
    for cpu in cpus {
        table.row(cells(cpu));
    }
    table
}

const HEADINGS: [&str; 6] = ["CPU", "APIC", "stopped by", "after", "registers", "workload"];

fn cells(cpu: &CpuInfo) -> Vec<String> {
    let id = cpu.hardware_id.map_or("?".into(), |id| id.0.to_string());
    let after = cpu.latency_ns.map_or("-".into(), text::nanoseconds);
    let mut workload = clean(&cpu.workload);
    if let Some(unit) = cpu.unit {
        workload += &format!(" unit {}", unit);
    }
    vec![
        cpu.index.to_string(),
        id,
        cpu.stopped_by.clone(),
        after,
        cpu.registers_from.clone(),
        workload,
    ]
}

/// The state in which the stop, or its own crash, found a CPU, and its NMIs: the stop's,
/// live backtraces', others.
fn found(cpu: &CpuInfo) -> [String; 3] {
    let unknown = || "-".to_owned();
    let interrupts = cpu.interrupts.map_or_else(unknown, |on| {
        let state = if on { "on" } else { "off" };
        state.to_owned()
    });
    let locks = cpu.locks_held.map_or_else(unknown, |locks| locks.to_string());
    let kinds = [
        (cpu.stop_nmi_count, "stop"),
        (cpu.live_nmi_count, "live"),
        (cpu.stop_nmi_count.map(|stop| cpu.nmi_count.saturating_sub(stop)), "other"),
    ];
    let seen = kinds.iter().filter_map(|&(count, kind)| Some((count.filter(|&n| n > 0)?, kind)));
    let seen: Vec<String> = seen.map(|(count, kind)| format!("{count} {kind}")).collect();
    let nmis = match (cpu.stop_nmi_count, seen.is_empty()) {
        (None, _) => cpu.nmi_count.to_string(),
        (Some(_), true) => "0".to_owned(),
        (Some(_), false) => seen.join(", "),
    };
    [interrupts, locks, nmis]
}

/// The table for the terminal.
#[must_use]
pub fn render(cpus: &[CpuState]) -> String {
    let mut headings = HEADINGS.to_vec();
    headings.extend(["interrupts", "locks", "NMIs", "pc", "function"]);
    let mut table = Table::new(&headings, &[0, 1, 3, 7]);
    for cpu in cpus {
        let mut row = cells(&cpu.info);
        row.extend(found(&cpu.info));
        row.push(cpu.pc.map_or("-".into(), |pc| format!("{:#018x}", pc.0)));
        row.push(clean(cpu.function.as_deref().unwrap_or_default()));
        table.row(row);
    }
    let mut out = String::new();
    table.write(&mut out, "");
    out
}
