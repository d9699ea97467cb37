//! Call frame information: `.debug_frame` of the image.

use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EvaluationResult, RegisterRule, UnwindContext,
    UnwindExpression, UnwindSection, UnwindTableRow, Value,
};

use super::{Outcome, RIP, RSP, Registers};
use crate::dump::Memory;
use crate::image::Bytes;

/// DWARF numbers of the registers that a function preserves (System V ABI AMD64,
/// figure 3.4): without a rule of their own they are unchanged.
const PRESERVED: [usize; 6] = [3, 6, 12, 13, 14, 15];
/// Steps of an expression before it is given up.
const EXPRESSION_STEPS: u32 = 1000;

/// All entries of `.debug_frame`, by address.
pub struct CfiTable {
    section: DebugFrame<Bytes>,
    /// `(first address, address behind, offset in the section)`.
    entries: Vec<(u64, u64, usize)>,
}

impl CfiTable {
    /// Reads the section; what is damaged in it is left out.
    pub(crate) fn new(bytes: Bytes) -> Self {
        let mut section = DebugFrame::from(bytes);
        section.set_address_size(8);
        let bases = BaseAddresses::default();
        let mut entries = Vec::new();
        let mut iterator = section.entries(&bases);
        while let Ok(Some(entry)) = iterator.next() {
            let gimli::CieOrFde::Fde(partial) = entry else { continue };
            let Ok(fde) = partial.parse(DebugFrame::cie_from_offset) else { continue };
            // A function the linker dropped is left behind at address 0.
            if fde.initial_address() != 0 && fde.len() > 0 {
                entries.push((fde.initial_address(), fde.end_address(), fde.offset()));
            }
        }
        entries.sort_unstable();
        Self { section, entries }
    }

    /// The caller of the frame with these registers, which stands at `address`.
    pub(crate) fn step(
        &self,
        address: u64,
        registers: &Registers,
        memory: &impl Memory,
    ) -> Outcome {
        self.try_step(address, registers, memory).unwrap_or(Outcome::NoInformation)
    }

    fn try_step(
        &self,
        address: u64,
        registers: &Registers,
        memory: &impl Memory,
    ) -> Option<Outcome> {
        let behind = self.entries.partition_point(|&(start, ..)| start <= address);
        let &(_, end, offset) = self.entries.get(behind.checked_sub(1)?)?;
        if address >= end {
            return None;
        }
        let bases = BaseAddresses::default();
        let fde = self
            .section
            .fde_from_offset(&bases, offset.into(), DebugFrame::cie_from_offset)
            .ok()?;
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(&self.section, &bases, &mut context, address).ok()?;
        let frame = Evaluator { table: self, encoding: fde.cie().encoding(), registers, memory };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => registers
                .get(usize::from(register.0))
                .copied()
                .flatten()?
                .wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => frame.evaluate(expression, None)?,
        };
        let return_rule = row.register(fde.cie().return_address_register());
        let Some(return_rule) = return_rule.filter(|rule| *rule != RegisterRule::Undefined) else {
            return Some(Outcome::Outermost);
        };
        let mut next = Registers::default();
        for number in PRESERVED {
            next[number] = registers[number];
        }
        // By definition the caller's stack pointer, unless a rule says otherwise.
        next[RSP] = Some(cfa);
        for (register, rule) in row.registers() {
            let number = usize::from(register.0);
            if number < next.len() {
                next[number] = frame.apply(rule, number, cfa);
            }
        }
        next[RIP] = frame.apply(&return_rule, RIP, cfa);
        next[RIP]?;
        Some(Outcome::Caller {
            registers: next,
            interrupted: fde.is_signal_trampoline() || stores_the_stack_pointer(row),
        })
    }
}

/// Whether the frame holds its caller's stack pointer. No call stores it, an interrupt
/// does; and `.cfi_signal_frame`, which would say so, leaves no trace in `.debug_frame`.
fn stores_the_stack_pointer(row: &UnwindTableRow<usize>) -> bool {
    row.registers().any(|(register, rule)| {
        usize::from(register.0) == RSP && matches!(rule, RegisterRule::Offset(_))
    })
}

/// Carries out rules for one frame.
struct Evaluator<'a, M> {
    table: &'a CfiTable,
    encoding: gimli::Encoding,
    registers: &'a Registers,
    memory: &'a M,
}

impl<M: Memory> Evaluator<'_, M> {
    fn apply(&self, rule: &RegisterRule<usize>, number: usize, cfa: u64) -> Option<u64> {
        match rule {
            RegisterRule::SameValue => self.registers[number],
            RegisterRule::Offset(offset) => self.memory.word(cfa.wrapping_add_signed(*offset)).ok(),
            RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(other) => {
                self.registers.get(usize::from(other.0)).copied().flatten()
            }
            RegisterRule::Expression(expression) => {
                self.memory.word(self.evaluate(expression, Some(cfa))?).ok()
            }
            RegisterRule::ValExpression(expression) => self.evaluate(expression, Some(cfa)),
            RegisterRule::Constant(value) => Some(*value),
            // Not known, or defined by something not known here.
            _ => None,
        }
    }

    fn evaluate(&self, expression: &UnwindExpression<usize>, cfa: Option<u64>) -> Option<u64> {
        let expression = expression.get(&self.table.section).ok()?;
        let mut evaluation = expression.evaluation(self.encoding);
        evaluation.set_max_iterations(EXPRESSION_STEPS);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut result = evaluation.evaluate().ok()?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size, .. } => {
                    let mut bytes = [0; 8];
                    self.memory.read(address, bytes.get_mut(..usize::from(size))?).ok()?;
                    evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(bytes))).ok()?
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = self.registers.get(usize::from(register.0)).copied().flatten()?;
                    evaluation.resume_with_register(Value::Generic(value)).ok()?
                }
                EvaluationResult::RequiresCallFrameCfa => {
                    evaluation.resume_with_call_frame_cfa(cfa?).ok()?
                }
                _ => return None,
            };
        }
        match evaluation.value_result()? {
            Value::Generic(value) | Value::U64(value) => Some(value),
            _ => None,
        }
    }
}
