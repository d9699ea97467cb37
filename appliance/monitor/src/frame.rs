//! What EL3 saves of the exception level below it, and the processor states it enters that
//! level with.

use crate::abi::sdei;

/// The exception level that the client runs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// EL1: the processor has no EL2.
    El1,
    /// EL2: the processor has it, so the client starts there.
    El2,
}

/// PSTATE.M for AArch64 at ELx with its own stack pointer.
const EL1H: u64 = 0x5;
const EL2H: u64 = 0x9;
/// Bits of PSTATE.M that hold the exception level.
const LEVEL_MASK: u64 = 0xc;
/// PSTATE.D, A, I and F: debug exceptions, SError, IRQ and FIQ are masked.
const DAIF: u64 = 0xf << 6;
/// PSTATE.ALLINT: interrupts with superpriority are masked as well (FEAT_NMI).
const ALLINT: u64 = 1 << 13;
/// PSTATE.PAN, DIT, SSBS and TCO, which an event handler inherits: SDEI 1.0 has the client set
/// what its handler needs.
const INHERITED: u64 = 1 << 22 | 1 << 24 | 1 << 12 | 1 << 25;

impl Client {
    /// Returns the processor state that a CPU starts with: all interrupts masked.
    #[must_use]
    pub fn start_pstate(self) -> u64 {
        DAIF | if self == Self::El1 { EL1H } else { EL2H }
    }

    /// Returns the processor state of an event handler that interrupts `interrupted`. `nmi`
    /// says that the processor has FEAT_NMI.
    pub(crate) fn handler_pstate(self, interrupted: u64, nmi: bool) -> u64 {
        self.start_pstate() | interrupted & INHERITED | if nmi { ALLINT } else { 0 }
    }

    /// Returns true if code with the processor state `pstate` runs at the client's level.
    pub(crate) fn is_level_of(self, pstate: u64) -> bool {
        pstate & LEVEL_MASK == self.start_pstate() & LEVEL_MASK
    }
}

/// Registers of the exception level that an exception to EL3 interrupted. The image's
/// assembly saves them here and returns with what is left here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// x0–x30.
    pub x: [u64; 31],
    /// Where the lower level goes on.
    pub pc: u64,
    /// Its processor state, as in SPSR_EL3.
    pub pstate: u64,
    /// Keeps the size a multiple of 16 bytes, as the stack pointer has to be.
    pub reserved: u64,
}

const _: () = assert!(size_of::<Frame>() == 272);

impl Frame {
    /// Returns the frame of a call from EL1, for tests and examples: `function` in x0, then
    /// `arguments`.
    #[must_use]
    pub fn calling(function: u32, arguments: [u64; 3]) -> Self {
        let mut frame = Self { pstate: EL1H, ..Self::default() };
        frame.x[0] = u64::from(function);
        frame.x[1..4].copy_from_slice(&arguments);
        frame
    }

    /// Returns the frame that a CPU starts with at `entry`, with `argument` in x0.
    #[must_use]
    pub fn starting(client: Client, entry: u64, argument: u64) -> Self {
        let mut frame = Self { pc: entry, pstate: client.start_pstate(), ..Self::default() };
        frame.x[0] = argument;
        frame
    }

    /// Returns what `SDEI_EVENT_CONTEXT` hands out and a completed handler gets back.
    pub(crate) fn context(&self) -> [u64; sdei::CONTEXT_REGISTERS] {
        let mut context = [0; sdei::CONTEXT_REGISTERS];
        context.iter_mut().zip(self.x).for_each(|(kept, register)| *kept = register);
        context
    }

    /// Puts x0–x17 back.
    pub(crate) fn restore(&mut self, context: &[u64; sdei::CONTEXT_REGISTERS]) {
        self.x.iter_mut().zip(context).for_each(|(register, kept)| *register = *kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_inherits_what_it_may_and_masks_the_rest() {
        let interrupted = 0x4 | 1 << 22 | 1 << 31;
        assert_eq!(Client::El1.handler_pstate(interrupted, false), 0x3c5 | 1 << 22);
        assert_eq!(Client::El2.handler_pstate(0, true), 0x3c9 | 1 << 13);
        assert!(Client::El1.is_level_of(0x3c4) && !Client::El1.is_level_of(0));
        assert!(Client::El2.is_level_of(0x9) && !Client::El2.is_level_of(0x5));
    }
}
