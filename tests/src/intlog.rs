//! QEMU's own log of interrupts (`-d int`): the registers of a CPU in the moment one was
//! delivered, written down by somebody who is neither of the two images.
//!
//! An entry is a line that names the vector, then the registers, a few on each line:
//!
//! ```text
//!    184: v=f0 e=0000 i=0 cpl=0 IP=0008:0000000001024410 pc=… SP=0010:… env->regs[R_EAX]=…
//! RAX=0000000000000003 RBX=0000000000000200 RCX=0000000000000001 RDX=0000000000000620
//! R8 =0000000001039000 R9 =fffffffffffffffc R10=0000000000000001 R11=0000000000004000
//! RIP=0000000001024410 RFL=00000297 [--S-APC] CPL=0 II=0 A20=1 SMM=0 HLT=0
//! CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
//! GDT=     000000000107e000 00000027
//! CR0=80010031 CR2=0000000000000000 CR3=0000000000161000 CR4=00000060
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

/// One delivered interrupt, exception or NMI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The vector.
    pub vector: u8,
    /// What QEMU shows, by QEMU's names. A segment register is its selector, `FS.base` and
    /// `GS.base` are bases, `GDT`, `IDT` are bases and `GDT.limit`, `IDT.limit` limits.
    pub registers: BTreeMap<String, u64>,
}

/// QEMU arguments that write the log to one file per thread in `folder`: with one file for
/// all, entries of two CPUs can be torn apart.
#[must_use]
pub fn wanted_in(folder: &Path) -> Vec<String> {
    let pattern = folder.join("interrupts-%d.log");
    vec!["-d".into(), "int,tid".into(), "-D".into(), pattern.display().to_string()]
}

/// Every entry of every log in `folder`.
///
/// # Errors
/// There is none, or one cannot be read.
pub fn read_all(folder: &Path) -> Result<Vec<Delivered>> {
    let mut found = Vec::new();
    for file in folder.read_dir().with_context(|| format!("read {}", folder.display()))? {
        let path = file.context("a file of the run")?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("interrupts-") {
            let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            found.extend(parse(&String::from_utf8_lossy(&text)));
        }
    }
    Ok(found)
}

/// The entries of one log.
#[must_use]
pub fn parse(text: &str) -> Vec<Delivered> {
    let mut found: Vec<Delivered> = Vec::new();
    // Registers stand behind the line of their entry; other things QEMU logs have some too.
    let mut inside = false;
    for line in text.lines() {
        if let Some(vector) = header(line) {
            found.push(Delivered { vector, registers: BTreeMap::new() });
            inside = true;
        } else if let Some(entry) = found.last_mut().filter(|_| inside) {
            inside = registers(line, &mut entry.registers);
        }
    }
    found
}

/// The vector in `  184: v=f0 e=0000 …`.
fn header(line: &str) -> Option<u8> {
    let (number, rest) = line.trim_start().split_once(": v=")?;
    number.parse::<u64>().ok()?;
    u8::from_str_radix(rest.split(' ').next()?, 16).ok()
}

/// Adds what `line` shows. False: it shows no registers.
fn registers(line: &str, into: &mut BTreeMap<String, u64>) -> bool {
    // Names are padded to three characters: `R8 =`, `CS =`.
    let line = line.replace(" =", "=");
    let Some((name, rest)) = line.split_once('=') else { return false };
    let mut put = |name: &str, digits: Option<&str>| {
        let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        if let Some(value) = value {
            into.insert(name.to_owned(), value);
        }
    };
    let mut words = rest.split_whitespace();
    match name {
        "GDT" | "IDT" => {
            put(name, words.next());
            put(&format!("{name}.limit"), words.next());
        }
        "ES" | "CS" | "SS" | "DS" | "FS" | "GS" | "LDT" | "TR" => {
            put(name, words.next());
            put(&format!("{name}.base"), words.next());
        }
        _ => {
            for word in line.split_whitespace() {
                if let Some((name, digits)) = word.split_once('=') {
                    put(name, Some(digits));
                }
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
Servicing hardware INT=0xf0
   184: v=f0 e=0000 i=0 cpl=0 IP=0008:0000000001024410 pc=0000000001024410 SP=0010:0000000001150998 env->regs[R_EAX]=0000000000000003
RAX=0000000000000003 RBX=0000000000000200 RCX=0000000000000001 RDX=0000000000000620
R8 =0000000001039000 R9 =fffffffffffffffc R10=0000000000000001 R11=0000000000004000
RIP=0000000001024410 RFL=00000297 [--S-APC] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GS =0000 00000000deadb000 00000000 00000000
GDT=     000000000107e000 00000027
CR0=80010031 CR2=0000000000000000 CR3=0000000000161000 CR4=00000060
EFER=0000000000000d00
check_exception old: 0xffffffff new 0xe
RAX=0000000000000001
   185: v=02 e=0000 i=0 cpl=0 IP=0008:00000000010243c6 pc=00000000010243c6 SP=0010:000000000014dd90 env->regs[R_EAX]=0000000000000000
RIP=00000000010243c6 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
";

    #[test]
    fn entries_have_the_registers_behind_them_and_no_others() {
        let found = parse(LOG);
        assert_eq!(found.iter().map(|entry| entry.vector).collect::<Vec<_>>(), [0xf0, 2]);
        let value = |name: &str| found[0].registers.get(name).copied();
        assert_eq!(value("RAX"), Some(3));
        assert_eq!(value("R9"), Some(0xffff_ffff_ffff_fffc));
        assert_eq!(value("RFL"), Some(0x297));
        assert_eq!(value("CS"), Some(8));
        assert_eq!(value("GS.base"), Some(0xdead_b000));
        assert_eq!(value("GDT"), Some(0x107_e000));
        assert_eq!(value("GDT.limit"), Some(0x27));
        assert_eq!(value("CR4"), Some(0x60));
        assert_eq!(value("EFER"), Some(0xd00));
        assert_eq!(found[1].registers.get("RAX"), None);
    }
}
