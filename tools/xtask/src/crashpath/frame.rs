//! How much stack a function uses at each of its instructions.
//!
//! The stack pointer is followed along every path inside the function. What changes it in a
//! way not known here is an error, not a guess.

use anyhow::{Result, bail};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::binary::Function;

/// More stack than any function may have: the stack pointer goes down in a loop.
const LIMIT: u64 = 1 << 20;

/// Stack in use before each instruction of `function`, in bytes, without its own return
/// address.
///
/// # Errors
/// When the stack pointer is changed in a way that cannot be followed.
pub fn depths(function: &Function) -> Result<Vec<u64>> {
    let code = &function.code;
    let index_of = |address: u64| code.binary_search_by_key(&address, Instruction::ip).ok();
    let mut depths: Vec<Option<u64>> = vec![None; code.len()];
    // Where the frame pointer points, as a depth. One value is enough: it is set once.
    let mut frame = None;
    let mut work = vec![(0, 0)];
    let mut at_table_jumps = None;
    loop {
        while let Some((index, depth)) = work.pop() {
            if index >= code.len() || depths[index].is_some_and(|known| known >= depth) {
                continue;
            }
            if depth > LIMIT {
                bail!("{}: the stack pointer goes down in a loop", function.name);
            }
            depths[index] = Some(depth);
            let instruction = &code[index];
            let Some(after) = after(code, index, depth, &mut frame) else {
                bail!(
                    "{}: cannot follow the stack pointer through {:?} at {:#x}",
                    function.name,
                    instruction.code(),
                    instruction.ip()
                );
            };
            let branch = index_of(instruction.near_branch_target());
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                    work.push((index + 1, after));
                }
                FlowControl::UnconditionalBranch => {
                    work.extend(branch.map(|target| (target, after)));
                }
                // A probe's way back is not taken: `after` has all its rounds in it.
                FlowControl::ConditionalBranch if probe(code, index).is_some() => {
                    work.push((index + 1, after));
                }
                FlowControl::ConditionalBranch => {
                    work.extend(branch.map(|target| (target, after)));
                    work.push((index + 1, after));
                }
                FlowControl::IndirectBranch => {
                    at_table_jumps = at_table_jumps.max(Some(after));
                }
                _ => {}
            }
        }
        // What nothing leads to is the target of a jump through a table.
        let unreached = depths.iter().position(Option::is_none);
        match (unreached, at_table_jumps) {
            (Some(index), Some(depth)) => work.push((index, depth)),
            _ => break,
        }
    }
    Ok(depths.into_iter().map(Option::unwrap_or_default).collect())
}

/// The depth behind `code[index]`, before which it is `depth`.
fn after(code: &[Instruction], index: usize, depth: u64, frame: &mut Option<u64>) -> Option<u64> {
    let instruction = &code[index];
    if let Some(bytes) = probe(code, index) {
        // One round of the loop is in `depth` already.
        return Some(depth + bytes - PROBE_STRIDE);
    }
    let target = instruction.op0_register();
    let immediate = || match instruction.op_kind(1) {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(instruction.immediate(1)),
        _ => None,
    };
    match instruction.mnemonic() {
        Mnemonic::Call => Some(depth),
        Mnemonic::Ret | Mnemonic::Iretq | Mnemonic::Retf => Some(0),
        Mnemonic::Leave => Some((*frame)?.saturating_sub(8)),
        Mnemonic::Mov if target == Register::RBP && instruction.op1_register() == Register::RSP => {
            *frame = Some(depth);
            Some(depth)
        }
        // Only what is read: a comparison changes nothing.
        Mnemonic::Cmp | Mnemonic::Test => Some(depth),
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq | Mnemonic::Popfq => {
            let change = i64::from(instruction.stack_pointer_increment());
            (target != Register::RSP || instruction.mnemonic() == Mnemonic::Push)
                .then(|| depth.saturating_add_signed(-change))
        }
        _ if target != Register::RSP || instruction.op_count() == 0 => Some(depth),
        Mnemonic::Sub => Some(depth.wrapping_add(immediate()?)),
        Mnemonic::Add => Some(depth.saturating_sub(immediate()?)),
        // Rounding down costs at most one less than the alignment.
        Mnemonic::And => Some(depth.checked_add(immediate()?.wrapping_neg())?.checked_sub(1)?),
        Mnemonic::Lea if instruction.memory_base() == Register::RSP => {
            let offset = instruction.memory_displacement64() as i64;
            Some(depth.saturating_add_signed(-offset))
        }
        Mnemonic::Lea if instruction.memory_base() == Register::RBP => {
            let offset = instruction.memory_displacement64() as i64;
            Some((*frame)?.saturating_add_signed(-offset))
        }
        Mnemonic::Mov if instruction.op1_register() == Register::RBP => *frame,
        // Another stack, at its top.
        Mnemonic::Lea | Mnemonic::Mov => Some(0),
        _ => None,
    }
}

/// What one round of a stack probe goes down.
const PROBE_STRIDE: u64 = 4096;

/// Whether `code[index]` ends the loop with which a function touches each page of a large
/// frame; if so, how many bytes all rounds go down.
///
/// ```text
/// mov r11, rsp; sub r11, bytes
/// again: sub rsp, 4096; mov qword ptr [rsp], 0; cmp rsp, r11; jne again
/// ```
fn probe(code: &[Instruction], index: usize) -> Option<u64> {
    let [start, end, sub, _, compare, back] = code.get(index.checked_sub(5)?..=index)? else {
        return None;
    };
    let both = |instruction: &Instruction, mnemonic, first, second| {
        instruction.mnemonic() == mnemonic
            && instruction.op0_register() == first
            && instruction.op1_register() == second
    };
    let shape = both(start, Mnemonic::Mov, Register::R11, Register::RSP)
        && both(end, Mnemonic::Sub, Register::R11, Register::None)
        && both(sub, Mnemonic::Sub, Register::RSP, Register::None)
        && both(compare, Mnemonic::Cmp, Register::RSP, Register::R11)
        && back.mnemonic() == Mnemonic::Jne
        && back.near_branch_target() == sub.ip();
    shape.then(|| end.immediate(1))
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn function(bytes: &[u8]) -> Function {
        let code = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).iter().collect();
        Function { name: "example".into(), start: 0x1000, code }
    }

    #[test]
    fn pushes_and_the_frame_are_added_up() {
        // push rbp; mov rbp, rsp; push rbx; sub rsp, 0x28; call; add rsp, 0x28; pop rbx;
        // pop rbp; ret
        let bytes = b"\x55\x48\x89\xe5\x53\x48\x83\xec\x28\xe8\0\0\0\0\x48\x83\xc4\x28\x5b\x5d\xc3";
        let depths = depths(&function(bytes)).unwrap();
        assert_eq!(depths, [0, 8, 8, 16, 56, 56, 16, 8, 0]);
    }

    #[test]
    fn a_large_frame_is_probed_page_by_page() {
        // mov r11, rsp; sub r11, 0x3000; sub rsp, 0x1000; mov qword [rsp], 0; cmp rsp, r11;
        // jne -0x14; sub rsp, 0x10; ret
        let bytes = b"\x49\x89\xe3\x49\x81\xeb\x00\x30\0\0\x48\x81\xec\x00\x10\0\0\
                      \x48\xc7\x04\x24\0\0\0\0\x4c\x39\xdc\x75\xec\x48\x83\xec\x10\xc3";
        let depths = depths(&function(bytes)).unwrap();
        assert_eq!(depths.last(), Some(&0x3010));
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        // xchg rsp, rax; ret
        assert!(depths(&function(b"\x48\x94\xc3")).is_err());
        // push rax; jmp back: deeper with each round.
        assert!(depths(&function(b"\x50\xeb\xfd")).is_err());
    }
}
