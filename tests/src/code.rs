//! The machine code of a linked image, function by function.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// One function.
#[derive(Debug)]
pub struct Function {
    /// Its name, readable.
    pub name: String,
    /// Where it begins.
    pub address: u64,
    /// Every instruction, in order.
    pub instructions: Vec<Instruction>,
    /// Where it calls or jumps to outside of itself, as far as that is written in the
    /// instruction or in the table of addresses that the linker made: the address of the
    /// instruction, and of the target.
    pub leads_to: Vec<(u64, u64)>,
}

impl Function {
    /// Decodes `bytes`, linked at `address`; `word` reads eight bytes of the image.
    #[must_use]
    pub fn decode(
        name: String,
        address: u64,
        bytes: &[u8],
        word: impl Fn(u64) -> Option<u64>,
    ) -> Self {
        let decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let instructions: Vec<Instruction> = decoder.into_iter().collect();
        let inside = address..address + bytes.len() as u64;
        let target = |instruction: &Instruction| match instruction.op0_kind() {
            OpKind::NearBranch64 => Some(instruction.near_branch64()),
            OpKind::Memory
                if matches!(instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp)
                    && instruction.is_ip_rel_memory_operand() =>
            {
                word(instruction.ip_rel_memory_address())
            }
            _ => None,
        };
        let leads_to = instructions
            .iter()
            .filter_map(|instruction| Some((instruction.ip(), target(instruction)?)))
            .filter(|(_, to)| !inside.contains(to))
            .collect();
        Self { name, address, instructions, leads_to }
    }
}

/// Every function of the image at `path`.
///
/// # Errors
/// It is no ELF file with symbols.
pub fn functions(path: &Path) -> Result<Vec<Function>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let file = object::File::parse(&*bytes).context("the image is no ELF file")?;
    let word = |address: u64| {
        let section = file.sections().find(|section| {
            (section.address()..section.address() + section.size()).contains(&address)
        })?;
        let bytes = section.data_range(address, 8).ok()??;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let mut found = Vec::new();
    for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index).context("a function's section")?;
        let code = section
            .data_range(symbol.address(), symbol.size())
            .context("a function's code")?
            .context("a function outside of its section")?;
        let name = format!("{:#}", rustc_demangle::demangle(symbol.name().unwrap_or_default()));
        found.push(Function::decode(name, symbol.address(), code, word));
    }
    ensure!(!found.is_empty(), "{} has no functions: was it stripped?", path.display());
    Ok(found)
}

/// x2APIC's interrupt command register (Intel SDM vol. 3, table 11-6).
pub const MSR_ICR: u64 = 0x830;
/// The same in xAPIC mode, where it is memory (Intel SDM vol. 3, 11.4.1): the low half, whose
/// write sends.
pub const XAPIC_ICR: u64 = 0xfee0_0300;

/// How an instruction sends an inter-processor interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    /// WRMSR to a register whose number is known to be the ICR's.
    ByMsr,
    /// A store to the ICR in memory.
    ByMemory,
}

/// Every instruction of `function` that sends an interrupt, and whether the barrier is there:
/// `mfence` then `lfence` behind the last store to memory that is not the APIC's own.
#[must_use]
pub fn sends(function: &Function) -> Vec<(u64, Sends, bool)> {
    let mut found = Vec::new();
    for (index, instruction) in function.instructions.iter().enumerate() {
        let before = &function.instructions[..index];
        let how = match instruction.mnemonic() {
            Mnemonic::Wrmsr if selected(before) == Some(MSR_ICR) => Sends::ByMsr,
            _ if stored_to(instruction, before) == Some(XAPIC_ICR) => Sends::ByMemory,
            _ => continue,
        };
        found.push((instruction.ip(), how, is_fenced(before)));
    }
    found
}

/// The number in ECX where the next instruction is WRMSR, when it was put there as a constant.
#[must_use]
pub fn selected(before: &[Instruction]) -> Option<u64> {
    constant(before, Register::ECX)
}

/// The constant last put into `register` (32 bits, or the 64 around them).
fn constant(before: &[Instruction], register: Register) -> Option<u64> {
    let whole = register.full_register();
    let last = before.iter().rev().find(|instruction| {
        instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == whole
            && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push)
    })?;
    let known = matches!(
        last.code(),
        Code::Mov_r32_imm32 | Code::Mov_r64_imm64 | Code::Mov_rm64_imm32 | Code::Mov_rm32_imm32
    );
    known.then(|| last.immediate(1))
}

/// The address that `instruction` stores to, when it is known.
fn stored_to(instruction: &Instruction, before: &[Instruction]) -> Option<u64> {
    if instruction.mnemonic() != Mnemonic::Mov || instruction.op0_kind() != OpKind::Memory {
        return None;
    }
    // Addresses are zero-extended here: the APIC lies below 4 GiB.
    let displacement = instruction.memory_displacement64() & 0xffff_ffff;
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => Some(displacement),
        (base, Register::None) if base != Register::RSP && base != Register::RBP => {
            Some(constant(before, base)?.wrapping_add(displacement) & 0xffff_ffff)
        }
        _ => None,
    }
}

/// Whether both fences stand behind the last store, in their order.
fn is_fenced(before: &[Instruction]) -> bool {
    let mut order = Vec::new();
    for (index, instruction) in before.iter().enumerate().rev() {
        match instruction.mnemonic() {
            Mnemonic::Mfence | Mnemonic::Lfence => order.push(instruction.mnemonic()),
            // The other half of the command goes to the APIC as well.
            _ if stored_to(instruction, &before[..index]).is_some_and(is_apic) => {}
            Mnemonic::Push | Mnemonic::Call => break,
            _ if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory => break,
            _ => {}
        }
    }
    order.starts_with(&[Mnemonic::Lfence, Mnemonic::Mfence])
}

const fn is_apic(address: u64) -> bool {
    address >> 12 == XAPIC_ICR >> 12
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: &[u8] = &[0x89, 0x07]; // mov [rdi], eax
    const SELECT: &[u8] = &[0xb9, 0x30, 0x08, 0, 0]; // mov ecx, 0x830
    const SELECT_EOI: &[u8] = &[0xb9, 0x0b, 0x08, 0, 0]; // mov ecx, 0x80b
    const MFENCE: &[u8] = &[0x0f, 0xae, 0xf0];
    const LFENCE: &[u8] = &[0x0f, 0xae, 0xe8];
    const WRMSR: &[u8] = &[0x0f, 0x30];
    const BASE: &[u8] = &[0xb8, 0x00, 0x00, 0xe0, 0xfe]; // mov eax, 0xfee00000
    const HIGH: &[u8] = &[0x89, 0x88, 0x10, 0x03, 0, 0]; // mov [rax + 0x310], ecx
    const LOW: &[u8] = &[0x89, 0x90, 0x00, 0x03, 0, 0]; // mov [rax + 0x300], edx

    fn fenced(parts: &[&[u8]]) -> Vec<(Sends, bool)> {
        let function = Function::decode("f".into(), 0x1000, &parts.concat(), |_| None);
        sends(&function).into_iter().map(|(_, how, fenced)| (how, fenced)).collect()
    }

    #[test]
    fn a_send_without_its_barrier_is_found() {
        use Sends::{ByMemory, ByMsr};
        assert_eq!(fenced(&[STORE, SELECT, MFENCE, LFENCE, WRMSR]), [(ByMsr, true)]);
        assert_eq!(fenced(&[STORE, MFENCE, LFENCE, SELECT, WRMSR]), [(ByMsr, true)]);
        assert_eq!(fenced(&[STORE, SELECT, WRMSR]), [(ByMsr, false)]);
        assert_eq!(fenced(&[STORE, SELECT, MFENCE, WRMSR]), [(ByMsr, false)]);
        assert_eq!(fenced(&[STORE, SELECT, LFENCE, MFENCE, WRMSR]), [(ByMsr, false)]);
        assert_eq!(fenced(&[SELECT, MFENCE, LFENCE, STORE, WRMSR]), [(ByMsr, false)]);
        assert_eq!(fenced(&[STORE, SELECT_EOI, WRMSR]), []);
        assert_eq!(fenced(&[STORE, MFENCE, LFENCE, BASE, HIGH, LOW]), [(ByMemory, true)]);
        assert_eq!(fenced(&[MFENCE, LFENCE, STORE, BASE, HIGH, LOW]), [(ByMemory, false)]);
        assert_eq!(fenced(&[STORE, BASE, HIGH, LOW]), [(ByMemory, false)]);
    }
}
