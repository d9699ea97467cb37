//! Last words: what is said when there will be no dump.

use handoff::crash::{cause_kind, registers_from, stopped_by};
use vmcore_format::last_words::LastWords;

use super::record;
use crate::arm;
use crate::console::Sink;

/// Prints the last-words record: cause, build-id, and a line for each CPU.
pub fn say_them() {
    let mut words = LastWords::begin(Sink);
    if let Some(cause) = record::cause() {
        words.line(format_args!(
            "cause kind={} cpu={} vector={} address={:#x} message={}",
            cause_kind::name(cause.kind),
            cause.cpu,
            cause.vector as i32,
            cause.address,
            cause.message(),
        ));
        if cause.line != 0 {
            words.line(format_args!("panic file={} line={}", cause.file(), cause.line));
        }
    }
    words.line(format_args!("build-id {}", arm::BuildId));
    for cpu in record::cpu_records() {
        let registers = &cpu.registers;
        words.line(format_args!(
            "cpu index={} apic_id={} stopped_by={} registers_from={} rip={:#x} rsp={:#x} rbp={:#x}",
            cpu.index,
            cpu.apic_id,
            stopped_by::name(cpu.stopped_by),
            registers_from::name(cpu.registers_from),
            registers.rip,
            registers.rsp,
            registers.rbp,
        ));
    }
    words.end();
}
