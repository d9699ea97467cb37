//! Last words: what is said when there will be no dump.

use handoff::words::{BuildIdLine, CauseLine, CpuLine, PanicLine};
use vmcore_format::last_words::LastWords;

use super::record;
use crate::console::Sink;
use crate::{arm, workload};

/// Prints the last-words record: cause, build-id, what the workload said, and a line for
/// each CPU.
pub fn say_them() {
    let mut words = LastWords::begin(Sink);
    if let Some(cause) = record::cause() {
        words.line(format_args!("{}", CauseLine(cause)));
        if cause.line != 0 {
            words.line(format_args!("{}", PanicLine(cause)));
        }
    }
    words.line(format_args!("{}", BuildIdLine(arm::build_id())));
    if let Some((name, said)) = workload::words::kept() {
        words.line(format_args!("workload name={name} message={said}"));
    }
    for cpu in record::cpu_records() {
        words.line(format_args!("{}", CpuLine(cpu)));
    }
    words.end();
}
