//! The lines of a last-words record that say what the records hold.
//!
//! Either image may have to say them, and whoever reads them should not have to know which
//! it was, so there is one wording: `word key=value …`, free text last.

use core::fmt;

use crate::crash::{cause_kind, registers_from, stopped_by};
use crate::{Cause, CpuRecord};

/// `cause kind=… cpu=… vector=… address=… message=…`; the vector is -1 when there is none.
#[derive(Clone, Copy, Debug)]
pub struct CauseLine<'a>(pub &'a Cause);

impl fmt::Display for CauseLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.0;
        write!(
            f,
            "cause kind={} cpu={} vector={} address={:#x} message={}",
            cause_kind::name(cause.kind),
            cause.cpu,
            cause.vector as i32,
            cause.address,
            cause.message(),
        )
    }
}

/// `panic file=… line=…`, for a cause that has a line.
#[derive(Clone, Copy, Debug)]
pub struct PanicLine<'a>(pub &'a Cause);

impl fmt::Display for PanicLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panic file={} line={}", self.0.file(), self.0.line)
    }
}

/// `build-id …`, in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct BuildIdLine<'a>(pub &'a [u8]);

impl fmt::Display for BuildIdLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("build-id ")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// `cpu index=… apic_id=… stopped_by=… registers_from=… rip=… rsp=… rbp=…`.
#[derive(Clone, Copy, Debug)]
pub struct CpuLine<'a>(pub &'a CpuRecord);

impl fmt::Display for CpuLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.0;
        let registers = &cpu.registers;
        write!(
            f,
            "cpu index={} apic_id={} stopped_by={} registers_from={} rip={:#x} rsp={:#x} \
             rbp={:#x}",
            cpu.index,
            cpu.apic_id,
            stopped_by::name(cpu.stopped_by),
            registers_from::name(cpu.registers_from),
            registers.rip,
            registers.rsp,
            registers.rbp,
        )
    }
}
