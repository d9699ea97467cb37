//! Where a call through a register leads, when the compiler only put a constant there.
//!
//! The compiler loads the address of a function that it calls often into a register, or into
//! a slot of the frame. The value is followed backwards along every path to where it was
//! loaded; when all of them are constants, the call is an ordinary one.

use std::collections::BTreeSet;

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

/// Registers that a called function may change (System V ABI, 3.2.1).
const CHANGED_BY_CALLS: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Where a pointer is kept: a register, or a slot at an offset from the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Register(Register),
    Slot(u64),
}

/// The constants that may be in the operand of the call or jump `code[site]`; `None` when
/// something else may be in it. `load` says what a load from constant data gives.
pub fn constants(
    code: &[Instruction],
    site: usize,
    load: impl Fn(u64) -> Option<u64>,
) -> Option<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut work = vec![(site, read(&code[site], 0)?)];
    while let Some((index, place)) = work.pop() {
        for before in predecessors(code, index) {
            if !seen.insert((before, place)) {
                continue;
            }
            let instruction = &code[before];
            if !writes(instruction, place) {
                if before == 0 {
                    return None;
                }
                work.push((before, place));
                continue;
            }
            match instruction.mnemonic() {
                Mnemonic::Mov | Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
                    let at = instruction.memory_displacement64();
                    let is_load = instruction.mnemonic() == Mnemonic::Mov;
                    found.insert(if is_load { load(at)? } else { at });
                }
                Mnemonic::Mov => work.push((before, read(instruction, 1)?)),
                _ => return None,
            }
        }
    }
    (!found.is_empty()).then_some(found)
}

/// The place that an operand is read from.
fn read(instruction: &Instruction, operand: u32) -> Option<Place> {
    match instruction.op_kind(operand) {
        OpKind::Register => Some(Place::Register(instruction.op_register(operand))),
        OpKind::Memory => slot(instruction).map(Place::Slot),
        _ => None,
    }
}

fn slot(instruction: &Instruction) -> Option<u64> {
    let plain =
        instruction.memory_base() == Register::RBP && instruction.memory_index() == Register::None;
    plain.then(|| instruction.memory_displacement64())
}

fn writes(instruction: &Instruction, place: Place) -> bool {
    let is_call =
        matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    match place {
        Place::Register(register) => {
            if is_call {
                return CHANGED_BY_CALLS.contains(&register);
            }
            let mut factory = InstructionInfoFactory::new();
            factory.info(instruction).used_registers().iter().any(|used| {
                used.register().full_register() == register.full_register()
                    && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
            })
        }
        // The frame's own slots are written by name; nobody takes the address of a spilled
        // register.
        Place::Slot(offset) => {
            !is_call
                && instruction.op0_kind() == OpKind::Memory
                && slot(instruction) == Some(offset)
                && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test)
                && !matches!(instruction.mnemonic(), Mnemonic::Push)
        }
    }
}

/// The instructions that control comes from to `index`.
fn predecessors(code: &[Instruction], index: usize) -> impl Iterator<Item = usize> {
    let here = code[index].ip();
    let falls = index.checked_sub(1).filter(|before| {
        !matches!(
            code[*before].flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
        )
    });
    let jumps = code.iter().enumerate().filter(move |(_, instruction)| {
        (instruction.is_jmp_short_or_near() || instruction.is_jcc_short_or_near())
            && instruction.near_branch_target() == here
    });
    falls.into_iter().chain(jumps.map(|(index, _)| index))
}

/// Whether the jump `code[site]` goes through a table of distances, as a `match` does: the
/// register it jumps to was just added up from one.
pub fn through_table(code: &[Instruction], site: usize) -> bool {
    let Some(Place::Register(target)) = read(&code[site], 0) else { return false };
    let last = code[..site].iter().rev().find(|before| writes(before, Place::Register(target)));
    last.is_some_and(|last| last.mnemonic() == Mnemonic::Add)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    /// Address 0x2000 holds the constant 0x5000, and nothing else does.
    fn find(bytes: &[u8]) -> Option<Vec<u64>> {
        let code: Vec<_> =
            Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).iter().collect();
        let site = code
            .iter()
            .position(|instruction| instruction.flow_control() == FlowControl::IndirectCall);
        let load = |at| (at == 0x2000).then_some(0x5000);
        constants(&code, site?, load).map(|found| found.into_iter().collect())
    }

    #[test]
    fn a_constant_is_found_in_a_register_and_in_a_slot() {
        // mov rbx, [rip+0xff9]; nop; call rbx
        assert_eq!(find(b"\x48\x8b\x1d\xf9\x0f\0\0\x90\xff\xd3"), Some(vec![0x5000]));
        // mov rax, [rip+0xff9]; mov [rbp-8], rax; call [rbp-8]
        assert_eq!(
            find(b"\x48\x8b\x05\xf9\x0f\0\0\x48\x89\x45\xf8\xff\x55\xf8"),
            Some(vec![0x5000])
        );
        // lea rbx, [rip+1]; call rbx
        assert_eq!(find(b"\x48\x8d\x1d\x01\0\0\0\xff\xd3"), Some(vec![0x1008]));
    }

    #[test]
    fn what_may_be_something_else_is_not_guessed() {
        // call rdi: an argument
        assert_eq!(find(b"\x90\xff\xd7"), None);
        // mov rbx, [rip+0xff9]; je +3; mov rbx, rdi; call rbx
        assert_eq!(find(b"\x48\x8b\x1d\xf9\x0f\0\0\x74\x03\x48\x89\xfb\xff\xd3"), None);
        // mov rax, [rip+0xff9]; call +0; call rax: the first call may have changed it
        assert_eq!(find(b"\x48\x8b\x05\xf9\x0f\0\0\xe8\0\0\0\0\xff\xd0"), None);
    }
}
