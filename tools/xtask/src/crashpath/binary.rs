//! A linked image as the proof sees it: functions, the addresses of functions that lie in
//! data, and the sizes of the stacks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// A function of the symbol table.
#[derive(Debug)]
pub struct Function {
    /// Its demangled name.
    pub name: String,
    /// Its first address.
    pub start: u64,
    /// Its instructions, one after the other.
    pub code: Vec<Instruction>,
}

/// A linked image.
#[derive(Debug)]
pub struct Binary {
    /// In the order of their addresses.
    pub functions: Vec<Function>,
    /// Functions whose address is taken, in code or data: what an indirect call may reach.
    pub taken: BTreeSet<usize>,
    /// Words in constant data that hold the address of a function.
    constants: BTreeMap<u64, usize>,
}

/// Bytes of an `Elf64_Rela`, and its type for "load address plus addend" (x86-64 psABI 1.0,
/// table 4.9).
const RELA_BYTES: usize = 24;
const RELATIVE: u64 = 8;

impl Binary {
    /// Reads and disassembles an ELF image.
    ///
    /// # Errors
    /// When it is no image, or has code that cannot be decoded.
    pub fn open(path: &Path) -> Result<Self> {
        let data = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let file = object::File::parse(&*data).with_context(|| path.display().to_string())?;
        let mut binary = Self {
            functions: functions(&file)?,
            taken: BTreeSet::new(),
            constants: BTreeMap::new(),
        };
        if binary.functions.is_empty() {
            bail!("{} has no symbols", path.display());
        }
        binary.find_constants(&file)?;
        binary.find_taken();
        Ok(binary)
    }

    /// The function that starts at `address`.
    #[must_use]
    pub fn starting_at(&self, address: u64) -> Option<usize> {
        self.functions.binary_search_by_key(&address, |function| function.start).ok()
    }

    /// The function that `address` lies in.
    #[must_use]
    pub fn holding(&self, address: u64) -> Option<usize> {
        let behind = self.functions.partition_point(|function| function.start <= address);
        let index = behind.checked_sub(1)?;
        let last = self.functions[index].code.last()?;
        (address < last.next_ip()).then_some(index)
    }

    /// The functions with this name; instances of one generic function share it.
    pub fn named(&self, name: &str) -> impl Iterator<Item = usize> {
        let named = self.functions.iter().enumerate().filter(move |(_, f)| f.name == name);
        named.map(|(index, _)| index)
    }

    /// The function whose address lies in constant data at `address`.
    #[must_use]
    pub fn constant(&self, address: u64) -> Option<usize> {
        self.constants.get(&address).copied()
    }

    /// Addresses of functions in data: words of an image with a fixed address, relocations
    /// of one without.
    fn find_constants(&mut self, file: &object::File<'_>) -> Result<()> {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        for section in file.sections() {
            let data = section.data().context("a section's content")?;
            let mut found = Vec::new();
            if section.name() == Ok(".rela.dyn") {
                for entry in data.chunks_exact(RELA_BYTES) {
                    if word(&entry[8..16]) == RELATIVE {
                        found.push((word(&entry[..8]), word(&entry[16..])));
                    }
                }
            } else if matches!(section.kind(), SectionKind::Data | SectionKind::ReadOnlyData)
                && section.address() != 0
            {
                let words = (section.address()..).step_by(8).zip(data.chunks_exact(8));
                found.extend(words.map(|(at, bytes)| (at, word(bytes))));
            }
            for (at, value) in found {
                if let Some(function) = self.starting_at(value) {
                    self.taken.insert(function);
                    self.constants.insert(at, function);
                }
            }
        }
        // What is not constant is taken, but says nothing about where a call goes.
        let variable: Vec<_> = file
            .sections()
            .filter(|section| section.name() == Ok(".data"))
            .map(|section| section.address()..section.address() + section.size())
            .collect();
        self.constants.retain(|at, _| !variable.iter().any(|range| range.contains(at)));
        Ok(())
    }

    /// Addresses of functions that code computes.
    fn find_taken(&mut self) {
        let mut taken = Vec::new();
        for function in &self.functions {
            for instruction in &function.code {
                let branch = instruction.is_call_near() || instruction.is_jmp_short_or_near();
                if !branch && !instruction.is_jcc_short_or_near() {
                    taken.extend(values(instruction).filter_map(|at| self.starting_at(at)));
                }
            }
        }
        self.taken.extend(taken);
    }
}

/// Constant values that may be addresses in an instruction's operands.
pub fn values(instruction: &Instruction) -> impl Iterator<Item = u64> {
    let memory = (instruction.memory_base() == Register::RIP
        || (instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None))
        .then(|| instruction.memory_displacement64());
    let immediate = (0..instruction.op_count()).find_map(|operand| {
        matches!(
            instruction.op_kind(operand),
            OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64
        )
        .then(|| instruction.immediate(operand))
    });
    memory.into_iter().chain(immediate)
}

fn functions(file: &object::File<'_>) -> Result<Vec<Function>> {
    let mut symbols: Vec<(u64, u64, String)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter(|symbol| symbol.size() > 0)
        .filter_map(|symbol| {
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
            Some((symbol.address(), symbol.size(), name))
        })
        .collect();
    symbols.sort();
    symbols.dedup_by_key(|(start, ..)| *start);
    let mut functions = Vec::new();
    for (start, size, name) in symbols {
        let section = file.sections().find(|section| {
            section.kind() == SectionKind::Text
                && (section.address()..section.address() + section.size()).contains(&start)
        });
        // Code that is only copied elsewhere lies in data, and is no function of this image.
        let Some(section) = section else { continue };
        let bytes = section
            .data_range(start, size)
            .ok()
            .flatten()
            .with_context(|| format!("{name} reaches beyond its section"))?;
        let code: Vec<_> =
            Decoder::with_ip(64, bytes, start, DecoderOptions::NONE).iter().collect();
        if let Some(bad) = code.iter().find(|instruction| instruction.is_invalid()) {
            bail!("{name}: cannot decode the instruction at {:#x}", bad.ip());
        }
        functions.push(Function { name, start, code });
    }
    Ok(functions)
}
