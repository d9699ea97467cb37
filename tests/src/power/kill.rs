//! A machine that is gone in the middle of its dump.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmcore::{OpenOptions, Source};

use super::replay::check_dump;
use crate::harness::{self, Event, Options};

/// What a killed machine left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Killed {
    /// The best stage of the new dump, from 1; 0 when the dump of before is the newest.
    pub stage: usize,
    /// How far it came, by its console.
    pub last_line: String,
}

/// Boots `options`, whose disk is a copy of `image`, kills QEMU `after` the capture image has
/// said its first word, and judges the disk: the dump of before is bit by bit what it was,
/// and a newer one is whole up to its last seal.
///
/// # Errors
/// The disk is not as it should be, or no machine could be run.
pub fn kill(options: &Options, image: &Path, after: Duration) -> Result<Killed> {
    let mut running = harness::start(options)?;
    running.machine.wait_for_line("capture: entered").context("no capture to be killed")?;
    // The moment is what is tried, so nothing that the machine does is waited for.
    let moment = Instant::now() + after;
    while let Some(left) = moment.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(Duration::from_millis(1)));
    }
    running.machine.kill();
    while !matches!(running.machine.next_event(), None | Some(Event::Exited(_))) {}
    let console = running.machine.console().clone();
    let last_line = console.all_after("capture: ").last().unwrap_or_default().to_owned();
    let disk: PathBuf = options.out.join("disk.img");

    let before = Source::open(image)?;
    let area = before.disk().context("no dump area")?.area;
    let older = before.dump(OpenOptions::default())?.stored.context("no slot")?;
    let start = area.slot_offset(older.slot).context("its slot")?;
    same_bytes(image, &disk, start, area.slot_bytes)?;

    let after = Source::open(&disk)?;
    let dump = after.dump(OpenOptions::default())?;
    let found = dump.stored.as_ref().context("no slot")?;
    let stage = if found.slot == older.slot { 0 } else { found.stage + 1 };
    check_dump(&dump)?;
    Ok(Killed { stage, last_line })
}

fn same_bytes(one: &Path, other: &Path, start: u64, bytes: u64) -> Result<()> {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    let (one, other) = (File::open(one)?, File::open(other)?);
    let (mut first, mut second) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (start..start + bytes).step_by(1 << 20) {
        one.read_exact_at(&mut first, at)?;
        other.read_exact_at(&mut second, at)?;
        ensure!(first == second, "the dump of before was changed behind byte {at}");
    }
    Ok(())
}
