//! The lines of a last-words record that say what the records hold.
//!
//! Either image may have to say them, and whoever reads them should not have to know which
//! it was, so there is one wording: `word key=value …`, free text last.

use core::fmt;

use crate::{Cause, CpuRecord, X86Registers};

/// `cause kind=… cpu=… vector=… address=… time=… message=…`.
///
/// The vector is -1 when there is none. The time is that of the crash in seconds of Unix time;
/// a machine without a clock has none, and the line no `time=`.
#[derive(Clone, Copy, Debug)]
pub struct CauseLine<'a> {
    /// Why the machine stopped.
    pub cause: &'a Cause,
    /// Time of the crash in seconds of Unix time; 0 when it is not known.
    pub unix_time: u64,
}

impl fmt::Display for CauseLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.cause;
        write!(
            f,
            "cause kind={} cpu={} vector={} address={:#x}",
            cause.kind, cause.cpu, cause.vector as i32, cause.address,
        )?;
        if self.unix_time != 0 {
            write!(f, " time={}", self.unix_time)?;
        }
        write!(f, " message={}", cause.message())
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

/// `cpu index=… hardware_id=… stopped_by=… registers_from=… rip=… rsp=… rbp=…`.
///
/// The registers are those of x86_64; a CPU of another architecture has none in the line.
#[derive(Clone, Copy, Debug)]
pub struct CpuLine<'a>(pub &'a CpuRecord);

impl fmt::Display for CpuLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.0;
        write!(
            f,
            "cpu index={} hardware_id={} stopped_by={} registers_from={}",
            cpu.index, cpu.hardware_id, cpu.stopped_by, cpu.registers_from,
        )?;
        match cpu.x86() {
            Some(registers) => {
                let X86Registers { rip, rsp, rbp, .. } = registers;
                write!(f, " rip={rip:#x} rsp={rsp:#x} rbp={rbp:#x}")
            }
            None => Ok(()),
        }
    }
}
