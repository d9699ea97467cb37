//! Last words: what is said when there will be no dump.
//!
//! As far as they go they are those of the capture image, so `vmcore from-console` makes a
//! small dump of either: registers of the CPUs, the stack of the one that crashed, the end of
//! the log.

use core::fmt::Write;

use handoff::crash::{LogRange, RegistersFrom};
use handoff::last_words::{BuildIdLine, CauseLine, CpuLine, PanicLine};
use handoff::registers::PRSTATUS_WORDS;
use handoff::{CpuRecord, Range};
use vmcore_format::last_words::LastWords;
use zerocopy::IntoBytes;

use super::record;
use crate::arming::arm;
use crate::base::console::{self, Sink};
use crate::base::{clock, memory};
use crate::work::workload;

/// CPUs whose registers are said: a console is slow.
const MOST_CPUS: usize = 32;
/// Bytes of the crashing CPU's stack, from where it stood upwards.
const STACK_BYTES: u64 = 4096;
/// Bytes of the log, up to its end.
const LOG_BYTES: u64 = 4096;
/// Bytes that are said at once.
const PIECE: usize = 256;

/// Prints the last-words record: cause, build-id, what the workload said, a line for each
/// CPU, and what a small dump can be made of.
pub fn say_them() {
    // What is said from here on goes into the log as well.
    let log = console::log_range();
    let mut words = LastWords::begin(Sink);
    if let Some(cause) = record::cause() {
        let unix_time = clock::unix_time_at(cause.tsc);
        words.line(format_args!("{}", CauseLine { cause, unix_time }));
        if cause.line != 0 {
            words.line(format_args!("{}", PanicLine(cause)));
        }
    }
    words.line(format_args!("{}", BuildIdLine(arm::build_id())));
    if let Some((name, said)) = workload::report::kept() {
        words.line(format_args!("workload name={name} message={said}"));
    }
    let cpus = record::cpu_records();
    for cpu in cpus {
        words.line(format_args!("{}", CpuLine(cpu)));
    }
    let crashed = record::cause().map_or(0, |cause| cause.cpu);
    say_registers(&mut words, cpus, crashed);
    if let Some(cpu) = cpus.iter().find(|cpu| cpu.index == crashed) {
        say_stack(&mut words, cpu);
    }
    say_log(&mut words, &log);
    words.end();
}

/// Registers, those of the crashing CPU first.
fn say_registers<W: Write>(words: &mut LastWords<W>, cpus: &[CpuRecord], crashed: u32) {
    let first = cpus.iter().filter(|cpu| cpu.index == crashed);
    let others = cpus.iter().filter(|cpu| cpu.index != crashed);
    let known = first.chain(others).filter(|cpu| cpu.registers_from != RegistersFrom::NONE);
    for cpu in known.take(MOST_CPUS) {
        let standard = size_of::<[u64; PRSTATUS_WORDS]>();
        let Some(registers) = cpu.x86() else { continue };
        let registers = registers.as_bytes().get(..standard).unwrap_or_default();
        words.bytes(format_args!("registers cpu={}", cpu.index), 0, registers);
    }
}

/// The top of a CPU's stack, when it stood on the one it was given: of any other nobody knows
/// here where it ends.
fn say_stack<W: Write>(words: &mut LastWords<W>, cpu: &CpuRecord) {
    let Some(registers) = cpu.x86() else { return };
    let top = registers.rsp & !7;
    if !cpu.stack.holds(top, 8) {
        return;
    }
    let stack = Range::between(top, cpu.stack.end().min(top.saturating_add(STACK_BYTES)));
    for at in (stack.start..stack.end()).step_by(PIECE) {
        let mut piece = [0; PIECE];
        let bytes = (stack.end() - at).min(PIECE as u64) as usize;
        let Some(piece) = piece.get_mut(..bytes) else { break };
        if !memory::look_at(at, piece) {
            break;
        }
        words.bytes(format_args!("memory"), at, piece);
    }
}

/// Where the log is, and its end as it stood before the last words.
fn say_log<W: Write>(words: &mut LastWords<W>, log: &LogRange) {
    let LogRange { address, capacity, written } = *log;
    words.line(format_args!("log address={address:#x} capacity={capacity} written={written}"));
    let mut at = written.saturating_sub(LOG_BYTES.min(capacity));
    while at < written {
        let Some(place) = at.checked_rem(capacity) else { break };
        // Up to the end of the ring, where the next piece is somewhere else.
        let bytes = (PIECE as u64).min(written - at).min(capacity - place);
        let mut piece = [0; PIECE];
        for (index, byte) in (0..bytes).zip(&mut piece) {
            *byte = console::logged(at + index);
        }
        let said = piece.get(..bytes as usize).unwrap_or_default();
        words.bytes(format_args!("memory"), address.saturating_add(place), said);
        at += bytes;
    }
}
