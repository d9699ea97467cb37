//! `vmcore cpus`: every CPU, how it was stopped, where it stood.

use handoff::crash::registers_from;
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
        let there = record.registers_from != registers_from::NONE;
        let place = |image: &Image| {
            let places = image.places(record.registers.rip);
            places.into_iter().find_map(|place| place.function)
        };
        CpuState {
            info: cpu_info(record),
            pc: there.then_some(Hex(record.registers.rip)),
            sp: there.then_some(Hex(record.registers.rsp)),
            function: image.filter(|_| there).and_then(place),
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
    let apic = if cpu.apic_id == u32::MAX { "?".into() } else { cpu.apic_id.to_string() };
    let after = cpu.latency_ns.map_or("-".into(), |latency| text::nanoseconds(latency.0));
    let mut workload = clean(&cpu.workload);
    if let Some(unit) = cpu.unit {
        workload += &format!(" unit {}", unit.0);
    }
    vec![
        cpu.index.to_string(),
        apic,
        cpu.stopped_by.clone(),
        after,
        cpu.registers_from.clone(),
        workload,
    ]
}

/// The table for the terminal.
#[must_use]
pub fn render(cpus: &[CpuState]) -> String {
    let mut headings = HEADINGS.to_vec();
    headings.extend(["pc", "function"]);
    let mut table = Table::new(&headings, &[0, 1, 3]);
    for cpu in cpus {
        let mut row = cells(&cpu.info);
        row.push(cpu.pc.map_or("-".into(), |pc| format!("{:#018x}", pc.0)));
        row.push(cpu.function.clone().unwrap_or_default());
        table.row(row);
    }
    let mut out = String::new();
    table.write(&mut out, "");
    out
}
