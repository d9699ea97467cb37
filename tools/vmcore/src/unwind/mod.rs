//! Walks a stack back from where the CPU was interrupted.
//!
//! Three ways, from the best to the worst, tried anew at every frame: the call frame
//! information of the debugger ([`cfi`]), the chain of frame pointers, and a search of
//! the stack for what looks like a return address. Every frame says by which it was
//! found, since a backtrace one cannot trust is worse than none.

pub mod cfi;

use handoff::{CpuRecord, Range};

use crate::dump::Memory;

/// How a frame was found, in falling order of trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The registers the CPU was interrupted with.
    Context,
    /// By the call frame information of the frame before.
    Cfi,
    /// By the frame pointer of the frame before.
    FramePointer,
    /// By a search of the stack: may be a left-over of an earlier call.
    Scan,
}

impl Trust {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Context => "context",
            Self::Cfi => "cfi",
            Self::FramePointer => "frame-pointer",
            Self::Scan => "scan",
        }
    }
}

/// Registers by their DWARF number (System V ABI AMD64, figure 3.36): 6 is `rbp`, 7 is
/// `rsp`, 16 is the return address, here `rip`. `None` is not known.
pub type Registers = [Option<u64>; 17];

/// DWARF number of `rbp`.
pub const RBP: usize = 6;
/// DWARF number of `rsp`.
pub const RSP: usize = 7;
/// DWARF number of the return address column.
pub const RIP: usize = 16;

/// Most frames of a stack: an endless recursion on a stack of some 64 KiB still shows how
/// it began.
pub const MAX_FRAMES: usize = 4096;
/// Words of the stack that a search looks at for the next frame.
const SCAN_WORDS: u64 = 1024;

/// Bytes at the bottom of a stack that entry code may have used before the first call.
const BOTTOM_BYTES: u64 = 64;

/// One real frame: inlined functions are not apart yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// Where it stands: for the first frame the next instruction, for the others the
    /// one behind the call.
    pub pc: u64,
    /// Whether `pc` is the very instruction that was interrupted, rather than one behind
    /// a call.
    pub exact: bool,
    /// How it was found.
    pub trust: Trust,
}

impl RawFrame {
    /// The address to look up: a call may be the last instruction of its function, and
    /// the address behind it then belongs to the next one.
    #[must_use]
    pub const fn lookup(&self) -> u64 {
        if self.exact { self.pc } else { self.pc.wrapping_sub(1) }
    }
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// At the function that nobody called.
    Outermost,
    /// At a return address of zero that is neither at the bottom of the CPU's stack nor in
    /// the outermost function: it was overwritten, and there were further frames.
    CutShort,
    /// No caller could be found any more.
    Lost,
    /// After [`MAX_FRAMES`] frames.
    TooDeep,
    /// Before it began: the dump has no registers of this CPU.
    NoRegisters,
}

/// The registers to start from; none known of a CPU that is not an x86_64.
#[must_use]
pub fn context(cpu: &CpuRecord) -> Registers {
    let Some(r) = cpu.x86() else { return Registers::default() };
    [
        Some(r.rax),
        Some(r.rdx),
        Some(r.rcx),
        Some(r.rbx),
        Some(r.rsi),
        Some(r.rdi),
        Some(r.rbp),
        Some(r.rsp),
        Some(r.r8),
        Some(r.r9),
        Some(r.r10),
        Some(r.r11),
        Some(r.r12),
        Some(r.r13),
        Some(r.r14),
        Some(r.r15),
        Some(r.rip),
    ]
}

/// What the walk asks about the program whose stack it is.
pub trait Program {
    /// Whether there is code at `address`.
    fn is_code(&self, address: u64) -> bool;
    /// Whether `address` is in code and stands behind a call.
    fn follows_call(&self, address: u64) -> bool;
    /// The caller of a frame that stands at `address`, by call frame information.
    fn caller(&self, address: u64, registers: &Registers, memory: &impl Memory) -> Outcome;
}

/// What the call frame information says about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and looked at at once")]
pub enum Outcome {
    /// It has a caller.
    Caller {
        /// The caller's registers.
        registers: Registers,
        /// The caller did not call but was interrupted.
        interrupted: bool,
    },
    /// Marked as having no caller.
    Outermost,
    /// Nothing is said, or what is said cannot be carried out.
    NoInformation,
}

/// Walks back from `registers`. `stack` are the bounds of the CPU's own stack, empty
/// when they are not known.
#[must_use]
pub fn walk(
    program: &impl Program,
    memory: &impl Memory,
    registers: Registers,
    stack: Range,
) -> (Vec<RawFrame>, End) {
    let walker = Walker { program, memory, stack };
    let mut registers = registers;
    let mut frame =
        RawFrame { pc: registers[RIP].unwrap_or(0), exact: true, trust: Trust::Context };
    let mut frames = vec![frame];
    loop {
        if frames.len() == MAX_FRAMES {
            return (frames, End::TooDeep);
        }
        match walker.step(&frame, &registers) {
            Ok((next, trust, exact)) => {
                registers = next;
                frame = RawFrame { pc: next[RIP].unwrap_or(0), exact, trust };
                frames.push(frame);
            }
            Err(end) => return (frames, end),
        }
    }
}

struct Walker<'a, P, M> {
    program: &'a P,
    memory: &'a M,
    stack: Range,
}

impl<P: Program, M: Memory> Walker<'_, P, M> {
    /// One step back: the caller's registers, how they were found, and whether its
    /// program counter is exact. Otherwise where the walk ends.
    fn step(
        &self,
        frame: &RawFrame,
        registers: &Registers,
    ) -> Result<(Registers, Trust, bool), End> {
        match self.program.caller(frame.lookup(), registers, self.memory) {
            Outcome::Caller { registers: next, .. } if next[RIP] == Some(0) => {
                return Err(self.end_at_zero(&next));
            }
            Outcome::Caller { registers: next, interrupted } => {
                let code = next[RIP].is_some_and(|pc| self.program.is_code(pc));
                let believable = self.goes_up(registers, &next)
                    || (frame.exact && self.is_frame_below(registers, &next));
                if code && believable {
                    return Ok((next, Trust::Cfi, interrupted));
                }
            }
            Outcome::Outermost => return Err(End::Outermost),
            Outcome::NoInformation => {}
        }
        if !self.program.is_code(frame.pc)
            && frame.trust == Trust::Context
            && let Some(next) = self.jumped_away(registers)
        {
            return Ok((next, Trust::Scan, false));
        }
        match self.by_frame_pointer(registers, frame.exact) {
            Some(next) if next[RIP] == Some(0) => Err(self.end_at_zero(&next)),
            Some(next) => Ok((next, Trust::FramePointer, false)),
            None => match self.by_scan(registers) {
                Some(next) => Ok((next, Trust::Scan, false)),
                None => Err(End::Lost),
            },
        }
    }

    /// Whether `to` is a frame further up the same stack, or on another one: a walk that
    /// does not go up goes in circles.
    fn goes_up(&self, from: &Registers, to: &Registers) -> bool {
        match (from[RSP], to[RSP]) {
            (Some(from), Some(to)) => {
                let inside = |address| self.on_stack(address);
                to > from || (!inside(from) && inside(to))
            }
            (_, to) => to.is_some(),
        }
    }

    /// Returns true if `to` is a frame below the stack pointer of `from`, and plausible: RSP
    /// was overwritten upwards while RBP is good. Of an interrupted CPU only; a called function
    /// has its stack pointer from its own frame.
    fn is_frame_below(&self, from: &Registers, to: &Registers) -> bool {
        let (Some(rsp), Some(frame_end), Some(pc)) = (from[RSP], to[RSP], to[RIP]) else {
            return false;
        };
        // A rule that is relative to RSP only ever goes up.
        let below = frame_end <= rsp && frame_end.is_multiple_of(8);
        let bounded = self.stack.bytes == 0 || self.on_stack(frame_end);
        below && bounded && self.program.follows_call(pc)
    }

    /// Returns what a return address of zero means for the walk. `next` are the registers of
    /// the caller that it denies.
    ///
    /// The entry functions of the image are marked as outermost in its call frame information,
    /// so a zero elsewhere was written over a return address; only at the bottom of the stack
    /// it may be what the entry code left.
    fn end_at_zero(&self, next: &Registers) -> End {
        let bottom = next[RSP].is_some_and(|rsp| {
            self.on_stack(rsp) && self.stack.end().saturating_sub(rsp) <= BOTTOM_BYTES
        });
        if bottom { End::Outermost } else { End::CutShort }
    }

    fn on_stack(&self, address: u64) -> bool {
        // The stack pointer of an empty stack is its upper end.
        self.stack.bytes > 0 && address >= self.stack.start && address <= self.stack.end()
    }

    /// After a call of a wild pointer: the return address is what was pushed last.
    fn jumped_away(&self, registers: &Registers) -> Option<Registers> {
        let rsp = registers[RSP]?;
        let pc = self.memory.word(rsp).ok()?;
        if !self.program.follows_call(pc) {
            return None;
        }
        let mut next = *registers;
        next[RIP] = Some(pc);
        next[RSP] = Some(rsp.wrapping_add(8));
        Some(next)
    }

    /// The caller by the chain of frame pointers. A frame below the stack pointer is believed
    /// of an `interrupted` CPU alone, and only when all of it fits: RSP may have been
    /// overwritten while RBP is good.
    fn by_frame_pointer(&self, registers: &Registers, interrupted: bool) -> Option<Registers> {
        let (rsp, rbp) = (registers[RSP]?, registers[RBP]?);
        let below = rbp < rsp;
        let bounded = if below {
            self.stack.bytes == 0 || self.on_stack(rbp)
        } else {
            !self.on_stack(rsp) || self.on_stack(rbp)
        };
        if !rbp.is_multiple_of(8) || !bounded || (below && !interrupted) {
            return None;
        }
        let caller_rbp = self.memory.word(rbp).ok()?;
        let pc = self.memory.word(rbp.checked_add(8)?).ok()?;
        if pc != 0 && !self.program.is_code(pc) {
            return None;
        }
        let chained = caller_rbp == 0 || caller_rbp > rbp;
        if below && !(chained && self.program.follows_call(pc)) {
            return None;
        }
        // Only what the frame holds is known of the caller.
        let mut next = Registers::default();
        next[RBP] = Some(caller_rbp);
        next[RSP] = rbp.checked_add(16);
        next[RIP] = Some(pc);
        Some(next)
    }

    fn by_scan(&self, registers: &Registers) -> Option<Registers> {
        let rsp = registers[RSP]?.checked_next_multiple_of(8)?;
        let limit = rsp.saturating_add(SCAN_WORDS * 8);
        let end = if self.on_stack(rsp) { limit.min(self.stack.end()) } else { limit };
        let slots = (rsp..end).step_by(8);
        let (slot, pc) = slots
            .map_while(|slot| Some((slot, self.memory.word(slot).ok()?)))
            .find(|&(_, pc)| self.program.follows_call(pc))?;
        let mut next = Registers::default();
        next[RIP] = Some(pc);
        next[RSP] = slot.checked_add(8);
        // One that points further up may still be good; it is checked before it is used.
        next[RBP] = registers[RBP].filter(|&rbp| rbp > slot);
        Some(next)
    }
}

#[cfg(test)]
mod tests;
