//! `vmcore stamps`: holds every stamped page against what it must be.
//!
//! The memstamp workload fills pages in address order, epoch after epoch, and publishes
//! which page it is writing. So at any moment every page has exactly one right content:
//! below `next` that of this epoch, above it that of the one before. Only the page that
//! was being written is exempt.

use memstamp::{NO_WRITER, PAGE_WORDS, StampFault, StampSlice};
use serde::{Deserialize, Serialize};
use vmcore_format::PAGE_BYTES;
use zerocopy::FromBytes;

use crate::dump::{Memory, MemoryFault};
use crate::json::Hex;
use crate::text::{bytes, count};
use crate::{Dump, Error, Result};

/// Damaged pages listed; more are only counted.
const LISTED: usize = 1000;
/// Most runs of stamped pages: a CPU has one.
const MOST_SLICES: usize = 1 << 16;
/// Pages read at a time.
const BATCH: u64 = 256;

/// The outcome; the JSON of `vmcore stamps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampReport {
    /// Runs of stamped pages, one per writing CPU.
    pub slices: u64,
    /// Pages in them.
    pub pages: u64,
    /// Pages that are what they must be.
    pub verified: u64,
    /// Pages that were being written.
    pub exempt: u64,
    /// Pages not stamped yet, in the first epoch.
    pub unstamped: u64,
    /// Pages that are not in this dump.
    pub absent: u64,
    /// Pages that are not what they must be.
    pub damaged: u64,
    /// The first thousand of these.
    pub damage: Vec<Damage>,
}

/// A page that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Its physical address.
    pub address: Hex,
    /// `not-stamped`, `wrong-address`, `wrong-epoch`, `damaged`, or `unreadable`: what the dump
    /// has of it is not what was captured.
    pub kind: String,
    /// The address or epoch found instead; `null` for the other kinds.
    pub found: Option<Hex>,
    /// The epoch expected.
    pub epoch: u32,
}

impl StampReport {
    /// Whether no page is damaged.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.damaged == 0
    }
}

/// Verifies every stamped page.
///
/// # Errors
/// When the dump has no table of stamped memory, or a table that makes no sense.
pub fn stamps(dump: &Dump) -> Result<StampReport> {
    if dump.stamps.is_empty() {
        let what = "the dump has no stamped memory: the memstamp workload was not running";
        return Err(Error::NotInDump(what.into()));
    }
    check_disjoint(dump)?;
    let mut report = StampReport::default();
    for slice in &dump.stamps {
        let end = u64::from(slice.pages)
            .checked_mul(PAGE_BYTES)
            .and_then(|bytes| bytes.checked_add(slice.start));
        if end.is_none() || !slice.start.is_multiple_of(PAGE_BYTES) || slice.next > slice.pages {
            let what = format!("the table of stamped memory is wrong at {:#x}", slice.start);
            return Err(Error::damaged(dump.path(), what));
        }
        report.slices += 1;
        report.pages += u64::from(slice.pages);
        verify(dump, slice, &mut report);
    }
    Ok(report)
}

/// Refuses a table whose slices share pages, or that has more of them than a machine has
/// CPUs many times over: the work would not be bounded by the size of the dump.
fn check_disjoint(dump: &Dump) -> Result<()> {
    let mut runs: Vec<(u64, u64)> = dump
        .stamps
        .iter()
        .map(|slice| (slice.start, u64::from(slice.pages) * PAGE_BYTES))
        .collect();
    runs.sort_unstable();
    let shared = runs.windows(2).find(|pair| pair[1].0 - pair[0].0 < pair[0].1);
    let what = match shared {
        Some(pair) => format!("has runs that share pages at {:#x}", pair[1].0),
        None if runs.len() > MOST_SLICES => format!("has more than {MOST_SLICES} runs"),
        None => return Ok(()),
    };
    Err(Error::damaged(dump.path(), format!("the table of stamped memory {what}")))
}

/// Returns where a run of whole pages ends that are zero because the file has nothing of
/// them; `None` when the page at `address` is none.
fn zeros_end(dump: &Dump, address: u64) -> Option<u64> {
    let segments = dump.segments();
    let behind = segments.partition_point(|segment| segment.load.physical_address <= address);
    let load = segments.get(behind.checked_sub(1)?)?.load;
    let inside = address - load.physical_address;
    let next = segments.get(behind).map_or(u64::MAX, |next| next.load.physical_address);
    let end = load.physical_address.saturating_add(load.memory_bytes).min(next);
    let end = end / PAGE_BYTES * PAGE_BYTES;
    (inside >= load.file_bytes && end > address).then_some(end)
}

/// Judges pages that are all zero, without a look at each.
fn judge_zeros(slice: &StampSlice, (from, to): (u64, u64), report: &mut StampReport) {
    let page = |number: u64| slice.start + number * PAGE_BYTES;
    let number = |address: u64| (address - slice.start) / PAGE_BYTES;
    let (first, behind) = (number(from), number(to));
    let next = u64::from(slice.next).clamp(first, behind);
    // The page that is being written may hold anything.
    let exempt = slice.writer != NO_WRITER && u64::from(slice.next) == next && next < behind;
    report.exempt += u64::from(exempt);
    let parts = [
        (first, next, slice.epoch),
        (next + u64::from(exempt), behind, slice.epoch.saturating_sub(1)),
    ];
    for (first, behind, epoch) in parts {
        let pages = behind.saturating_sub(first);
        if epoch == 0 {
            report.unstamped += pages;
            continue;
        }
        report.damaged += pages;
        let room = LISTED.saturating_sub(report.damage.len()) as u64;
        report.damage.extend((first..behind.min(first.saturating_add(room))).map(|number| {
            Damage { address: Hex(page(number)), kind: "not-stamped".into(), found: None, epoch }
        }));
    }
}

fn verify(dump: &Dump, slice: &StampSlice, report: &mut StampReport) {
    let end = slice.start + u64::from(slice.pages) * PAGE_BYTES;
    let mut buffer = vec![0; (BATCH * PAGE_BYTES) as usize];
    let mut address = slice.start;
    while address < end {
        if let Some(behind) = zeros_end(dump, address) {
            let behind = behind.min(end);
            judge_zeros(slice, (address, behind), report);
            address = behind;
            continue;
        }
        let batch = (end - address).min(buffer.len() as u64);
        match dump.read(address, &mut buffer[..batch as usize]) {
            Ok(()) => {
                for page in buffer[..batch as usize].chunks_exact(PAGE_BYTES as usize) {
                    judge(slice, address, page, report);
                    address += PAGE_BYTES;
                }
            }
            // A gap in the dump, or damage, begins somewhere in the batch: page by page up to
            // it, and then on behind it.
            Err(_) => {
                let page = &mut buffer[..PAGE_BYTES as usize];
                while address < end {
                    if let Err(fault) = dump.read(address, page) {
                        address = pass_over(dump, slice, (address, end), fault, report);
                        break;
                    }
                    judge(slice, address, page, report);
                    address += PAGE_BYTES;
                }
            }
        }
    }
}

/// Counts the pages from `from` on that could not be read because of `fault`, up to `end` at
/// most; returns where to go on.
fn pass_over(
    dump: &Dump,
    slice: &StampSlice,
    (from, end): (u64, u64),
    fault: MemoryFault,
    report: &mut StampReport,
) -> u64 {
    let behind = match fault {
        MemoryFault::NotInDump(_) => {
            dump.next_segment(from).map_or(end, |next| next / PAGE_BYTES * PAGE_BYTES)
        }
        MemoryFault::Damaged(chunk) => {
            let chunk_end = chunk.address.saturating_add(chunk.bytes);
            chunk_end.checked_next_multiple_of(PAGE_BYTES).unwrap_or(end)
        }
        MemoryFault::Unreadable(_) => dump.behind_end_of_file(from).unwrap_or(0),
    };
    let behind = behind.clamp(from.saturating_add(PAGE_BYTES).min(end), end);
    let pages = (behind - from) / PAGE_BYTES;
    if matches!(fault, MemoryFault::NotInDump(_)) {
        report.absent += pages;
        return behind;
    }
    report.damaged += pages;
    for address in (from..behind).step_by(PAGE_BYTES as usize) {
        if report.damage.len() == LISTED {
            break;
        }
        let number = ((address - slice.start) / PAGE_BYTES) as u32;
        let before = slice.epoch.saturating_sub(1);
        report.damage.push(Damage {
            address: Hex(address),
            kind: "unreadable".into(),
            found: None,
            epoch: if number < slice.next { slice.epoch } else { before },
        });
    }
    behind
}

fn judge(slice: &StampSlice, address: u64, bytes: &[u8], report: &mut StampReport) {
    // A slice has no more pages than 32 bits can count.
    let number = ((address - slice.start) / PAGE_BYTES) as u32;
    // The caller cuts memory into whole pages.
    let words = <[u64; PAGE_WORDS]>::read_from_bytes(bytes).unwrap_or([0; PAGE_WORDS]);
    let is = |epoch: u32| memstamp::check(&words, address, u64::from(epoch));
    let before = slice.epoch.saturating_sub(1);
    let at_next = number == slice.next;
    if at_next && slice.writer != NO_WRITER {
        report.exempt += 1;
        return;
    }
    // Between two pages nobody writes, and the page at `next` may be either.
    if at_next && is(slice.epoch).is_ok() {
        report.verified += 1;
        return;
    }
    let epoch = if number < slice.next { slice.epoch } else { before };
    if epoch == 0 {
        report.unstamped += 1;
        return;
    }
    match is(epoch) {
        Ok(()) => report.verified += 1,
        Err(fault) => {
            report.damaged += 1;
            if report.damage.len() < LISTED {
                let (kind, found) = match fault {
                    StampFault::NotStamped => ("not-stamped", None),
                    StampFault::WrongAddress(found) => ("wrong-address", Some(Hex(found))),
                    StampFault::WrongEpoch(found) => ("wrong-epoch", Some(Hex(found))),
                    StampFault::Damaged => ("damaged", None),
                };
                report.damage.push(Damage {
                    address: Hex(address),
                    kind: kind.into(),
                    found,
                    epoch,
                });
            }
        }
    }
}

impl StampReport {
    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let verdict = if self.is_good() {
            "Every stamped page is what it must be.".into()
        } else {
            format!("{} DAMAGED.", count(self.damaged, "stamped page"))
        };
        let size = bytes(self.pages.saturating_mul(PAGE_BYTES));
        let mut out = format!("{verdict}\n\n");
        let mut line = |label: &str, number: u64, rest: &str| {
            out += &format!("{label:<10} {number:>10}{rest}\n");
        };
        line("pages", self.pages, &format!("  {size} in {}", count(self.slices, "slice")));
        line("verified", self.verified, "");
        line("exempt", self.exempt, "  being written at the crash");
        line("unstamped", self.unstamped, "  not written yet, in the first epoch");
        line("absent", self.absent, "  not in this dump");
        line("damaged", self.damaged, "");
        for damage in &self.damage {
            let found =
                damage.found.map_or(String::new(), |found| format!(", found {:#x}", found.0));
            out += &format!(
                "  {:#018x}  {}, epoch {} expected{found}\n",
                damage.address.0, damage.kind, damage.epoch
            );
        }
        let listed = self.damage.len() as u64;
        if self.damaged > listed {
            out += &format!("  … and {} more\n", self.damaged - listed);
        }
        out
    }
}
