//! Makes the states and judges them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use vmcore::{Dump, OpenOptions, Source};

use super::cut::{Blocks, Content};
use super::{BLOCK, Cut, SECTOR, Write, WriteLog};

/// How many states, and which.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What the random ones are drawn from: the same seed, the same states.
    pub seed: u64,
    /// Random subsets between two flushes.
    pub subsets: u32,
}

/// What was tried, and what stood on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Writes of the recording.
    pub writes: usize,
    /// Flushes of the recording.
    pub flushes: usize,
    /// States judged.
    pub states: u64,
    /// How many of them held which stage, from 1, as the best; 0 is the dump of before.
    pub found: BTreeMap<usize, u64>,
    /// States in which every checksum of the best stage was computed.
    pub verified: u64,
}

/// A recording on top of the image it began with.
struct Recording {
    cut: Cut,
    older: Older,
    /// First byte and byte behind the slot of the new dump.
    slot: (u64, u64),
    /// Its number.
    slot_number: u32,
    /// The write of its open record.
    open: usize,
    /// The stages' seals: stage from 0, and the write.
    seals: Vec<(usize, usize)>,
}

/// The dump that was there before.
struct Older {
    slot: u32,
    sequence: u64,
}

/// Replays the recording `log` on top of `base`, which has to hold a sealed dump, and
/// judges every state. `progress` sees the report now and then.
///
/// # Errors
/// A state that is not as it should be, with everything needed to make it again; or files
/// that are not what they should be.
pub fn replay(
    base: &Path,
    log: &Path,
    plan: &Plan,
    progress: &mut dyn FnMut(&Report),
) -> Result<Report> {
    let mut recording = Recording::open(base, log)?;
    let log = Arc::clone(&recording.cut.log);
    let mut report = Report { writes: log.writes.len(), flushes: log.flushes, ..Report::default() };
    let mut random = Rng::with_seed(plan.seed);
    for epoch in log.writes.chunk_by(|one, other| one.epoch == other.epoch) {
        let first = log.writes.iter().position(|write| write == epoch.first().unwrap_or(write));
        let first = first.unwrap_or(0);
        let name = |what: &str| {
            format!("seed {}, between flush {} and the next, {what}", plan.seed, epoch[0].epoch)
        };
        let mut judge = |cut: &Cut, what: String| {
            let thorough = report.states.is_multiple_of(THOROUGH);
            let best = recording
                .judge(cut, first, epoch, thorough)
                .with_context(|| name(&format!("{what}, state {}", report.states)))?;
            report.states += 1;
            *report.found.entry(best.map_or(0, |stage| stage + 1)).or_default() += 1;
            report.verified += u64::from(thorough);
            progress(&report);
            Ok::<_, anyhow::Error>(())
        };
        // As if the disk kept every write at once, in order.
        let mut all = Blocks::new();
        for (number, write) in epoch.iter().enumerate() {
            whole(write, &mut all);
            let cut = Cut { chance: Arc::new(all.clone()), ..recording.cut.clone() };
            judge(&cut, format!("after write {}", first + number))?;
        }
        // As if it kept them out of order: each but one, and any at all.
        for subset in 0..plan.subsets {
            let lost = (subset as usize) < epoch.len() && subset < plan.subsets / 4;
            let chance = if lost {
                let mut kept = Blocks::new();
                let rest = epoch.iter().enumerate().filter(|(n, _)| *n != subset as usize);
                rest.for_each(|(_, write)| whole(write, &mut kept));
                kept
            } else {
                any(&recording.cut, epoch, &mut random)?
            };
            let cut = Cut { chance: Arc::new(chance), ..recording.cut.clone() };
            judge(&cut, format!("subset {subset}"))?;
        }
        Arc::make_mut(&mut recording.cut.durable).extend(all);
    }
    Ok(report)
}

/// Every so many states all checksums of the best stage are computed.
const THOROUGH: u64 = 32;

/// Computes every checksum of a dump.
pub(super) fn check_dump(dump: &Dump) -> Result<()> {
    let verified = vmcore::verify(dump, &mut |_, _| ());
    ensure!(verified.is_good(), "what was sealed does not verify: {}", verified.bad.join("; "));
    Ok(())
}

/// Puts all of a write where it belongs.
fn whole(write: &Write, blocks: &mut Blocks) {
    for number in 0..write.bytes / BLOCK {
        let content = Content::Whole(write.at + number * BLOCK);
        blocks.insert(write.offset / BLOCK + number, content);
    }
}

/// Any blocks of the writes since the last flush, some of them torn.
fn any(cut: &Cut, epoch: &[Write], random: &mut Rng) -> Result<Blocks> {
    // Not every power cut is at half time.
    let kept = [0.02, 0.2, 0.5, 0.8, 0.98][random.usize(..5)];
    let mut blocks = Cut { chance: Arc::default(), ..cut.clone() };
    for write in epoch {
        for number in 0..write.bytes / BLOCK {
            let (block, at) = (write.offset / BLOCK + number, write.at + number * BLOCK);
            let content = match random.u8(..16) {
                0 => blocks.torn(block, at, random.u8(..))?,
                // The first sectors, as a head that writes them in turn leaves them.
                1 => blocks.torn(block, at, (1 << random.u8(..8)) - 1)?,
                _ if random.f64() < kept => Content::Whole(at),
                _ => continue,
            };
            Arc::make_mut(&mut blocks.chance).insert(block, content);
        }
    }
    Ok(Arc::unwrap_or_clone(blocks.chance))
}

impl Recording {
    fn open(base: &Path, log: &Path) -> Result<Self> {
        let source = Source::open(base)?;
        let area = source.disk().context("the image has no dump area")?.area;
        let stored = source.dump(OpenOptions::default())?.stored.context("no slot")?;
        let older = Older { slot: stored.slot, sequence: stored.open.sequence };
        let file = File::open(base).context("open the image")?;
        let log = WriteLog::open(log)?;
        let start = |slot: u32| area.slot_offset(slot).context("a slot of the area");
        let kept = start(older.slot)?;
        let mut slots = Vec::new();
        for (number, write) in log.writes.iter().enumerate() {
            let end = write.offset + write.bytes;
            ensure!(
                (write.offset | write.bytes).is_multiple_of(BLOCK),
                "write {number}: {} bytes at {}, no whole blocks",
                write.bytes,
                write.offset
            );
            ensure!(
                end <= kept || write.offset >= kept + area.slot_bytes,
                "write {number} at byte {} reaches into the dump of before",
                write.offset
            );
            if write.offset >= area.first_slot {
                slots.push((write.offset - area.first_slot) / area.slot_bytes);
            }
        }
        let slot_number = u32::try_from(*slots.first().context("nothing was written")?)?;
        ensure!(slots.iter().all(|&slot| slot == u64::from(slot_number)), "slots {slots:?}");
        let slot = (start(slot_number)?, start(slot_number)? + area.slot_bytes);
        let record = |offset: u64, magic: &[u8]| {
            let mut first = [0; 7];
            log.writes
                .iter()
                .enumerate()
                .filter(move |(_, write)| write.offset == offset)
                .rev()
                .find(|(_, write)| log.read(write.at, &mut first).is_ok() && first == magic)
        };
        let (open, _) = record(slot.0, b"EPIOPEN").context("no slot was opened")?;
        let seals = (0..15).filter_map(|stage| {
            let (write, _) = record(slot.0 + (stage as u64 + 1) * BLOCK, b"EPISEAL")?;
            Some((stage, write))
        });
        let seals: Vec<_> = seals.collect();
        ensure!(!seals.is_empty(), "nothing was sealed");
        let cut = Cut {
            base: Arc::new(file),
            bytes: std::fs::metadata(base)?.len(),
            log: Arc::new(log),
            durable: Arc::default(),
            chance: Arc::default(),
        };
        Ok(Self { cut, older, slot, slot_number, open, seals })
    }

    /// Judges one state and returns the best stage of the new dump, from 0.
    fn judge(
        &self,
        cut: &Cut,
        first: usize,
        epoch: &[Write],
        thorough: bool,
    ) -> Result<Option<usize>> {
        let mut best = None;
        for &(stage, number) in &self.seals {
            if !(self.is_there(cut, number)? && self.is_there(cut, self.open)?) {
                continue;
            }
            best = best.max(Some(stage));
            // What was written before it and not flushed has to be there by chance.
            for (at, write) in (first..number).zip(epoch) {
                if let Some(block) = self.missing(cut, write)? {
                    bail!(
                        "FALSE SEAL: stage {} is sealed, block {block} of write {at} before \
                         it is not on the disk",
                        stage + 1
                    );
                }
            }
        }
        let name = format!("the disk of state {first}");
        let source = Source::from_storage(name, Arc::new(cut.clone()))?;
        let dump = source.dump(OpenOptions::default()).context("nothing is found")?;
        self.is_right(&dump, best)?;
        if thorough {
            check_dump(&dump)?;
        }
        Ok(best)
    }

    /// Whether the reader found what is there.
    fn is_right(&self, dump: &Dump, best: Option<usize>) -> Result<()> {
        let found = dump.stored.as_ref().context("no slot")?;
        match best {
            None => ensure!(
                (found.slot, found.open.sequence) == (self.older.slot, self.older.sequence),
                "the dump of before is there, found is dump {} in slot {}, stage {}",
                found.open.sequence,
                found.slot,
                found.stage + 1
            ),
            Some(stage) => ensure!(
                (found.slot, found.stage) == (self.slot_number, stage),
                "stage {} is there, found is stage {} of slot {}",
                stage + 1,
                found.stage + 1,
                found.slot
            ),
        }
        Ok(())
    }

    /// Whether the record of write `number` is there: it fits into its first sector.
    fn is_there(&self, cut: &Cut, number: usize) -> Result<bool> {
        let write = &self.cut.log.writes[number];
        let (mut wanted, mut found) = ([0; SECTOR as usize], [0; SECTOR as usize]);
        self.cut.log.read(write.at, &mut wanted)?;
        cut.block(write.offset / BLOCK, &mut found)?;
        Ok(wanted == found)
    }

    /// The first block of a write, inside the slot, that does not hold what was written.
    fn missing(&self, cut: &Cut, write: &Write) -> Result<Option<u64>> {
        if write.offset < self.slot.0 || write.offset >= self.slot.1 {
            return Ok(None);
        }
        let (mut wanted, mut found) = ([0; BLOCK as usize], [0; BLOCK as usize]);
        for number in 0..write.bytes / BLOCK {
            let (block, at) = (write.offset / BLOCK + number, write.at + number * BLOCK);
            if matches!(cut.chance.get(&block), Some(Content::Whole(place)) if *place == at) {
                continue;
            }
            self.cut.log.read(at, &mut wanted)?;
            cut.block(block, &mut found)?;
            if wanted != found {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }
}
