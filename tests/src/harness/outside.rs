//! Faults that only the outside can cause: the machine asks for one on its console, and
//! QEMU is told to bring it about.

use anyhow::{Result, bail};

use super::qmp::Qmp;

/// What the console line of a request holds, in front of `NAME wanted on cpu K`.
const MARKER: &str = "outside: ";

/// A machine check in bank 5 that has lost the processor's state: valid, uncorrected,
/// enabled, with address, context corrupt, a failed data read (Intel SDM vol. 3, figure 16-6
/// and table 16-10); the interrupted program cannot go on.
const BANK: u32 = 5;
const STATUS: u64 = 0xbe00_0000_0000_0134;
/// Global status: being handled, and the address of the instruction is known.
const GLOBAL: u64 = 6;
const ADDRESS: u64 = 0x123_4000;

/// QEMU's processor for a run that injects `crash`: it broadcasts a machine check only to
/// processors known to do so.
pub(super) fn processor(crash: Option<&str>) -> &'static str {
    match crash.is_some_and(|crash| crash.starts_with("mce-broadcast")) {
        true => "max,vendor=GenuineIntel,family=6,model=94",
        false => "max",
    }
}

/// Brings about what `line` asks for, if it asks for anything.
///
/// # Errors
/// QEMU refuses, or does not know the fault.
pub(super) fn answer(line: &str, qmp: &mut Qmp) -> Result<()> {
    let Some((_, request)) = line.split_once(MARKER) else { return Ok(()) };
    let mut words = request.split_whitespace();
    let (Some(name), Some(cpu)) = (words.next(), words.last()) else {
        bail!("no request: {line}");
    };
    match name {
        "mce" => machine_check(qmp, "", cpu),
        "mce-broadcast" => machine_check(qmp, "-b ", cpu),
        "external-nmi" => qmp.execute("inject-nmi", serde_json::json!({})).map(|_| ()),
        _ => bail!("the machine asks for '{name}', which nobody here knows"),
    }
}

fn machine_check(qmp: &mut Qmp, how: &str, cpu: &str) -> Result<()> {
    let command = format!("mce {how}{cpu} {BANK} {STATUS:#x} {GLOBAL:#x} {ADDRESS:#x} 0");
    let said = qmp.human(&command)?;
    // The monitor prints what went wrong, and nothing otherwise.
    if said.trim().is_empty() { Ok(()) } else { bail!("{command}: {}", said.trim()) }
}
