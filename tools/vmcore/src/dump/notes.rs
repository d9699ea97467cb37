//! What the notes of a dump say, as far as it can be believed.

use handoff::crash::{RegistersFrom, StoppedBy};
use handoff::{BootFacts, CpuRecord, Handoff, RecordError, Table, X86Registers};
use vmcore_format::notes::{self, CaptureMetrics, EPITAPH_OWNER};
use vmcore_format::reader::{CoreReader, Note};
use zerocopy::{FromBytes, IntoBytes};

use super::Dump;
use crate::{Error, Result};

/// A word for [`handoff::crash::stopped_by`] and its like that means "not recorded".
const UNKNOWN: u32 = u32::MAX;

impl Dump {
    pub(super) fn take_notes(&mut self, reader: &CoreReader<'_>, partial: bool) -> Result<()> {
        let mut all = Vec::new();
        for note in reader.notes() {
            match note {
                Ok(note) => all.push(note),
                Err(error) => {
                    self.complain(partial, error.to_string())?;
                    break;
                }
            }
        }
        let own: Vec<&Note<'_>> = all.iter().filter(|note| note.owner == EPITAPH_OWNER).collect();
        if own.is_empty() {
            let owners = if all.is_empty() { "no notes at all" } else { "no EPITAPH note" };
            let what = format!("an ELF core, but not of an Epitaph appliance: it has {owners}");
            return Err(Error::foreign(&self.path, what));
        }
        let mut records = None;
        for note in own {
            let outcome = match note.kind {
                notes::NT_EPITAPH_HANDOFF => {
                    let lifted = Handoff::lift(note.desc).map_err(Trouble::from);
                    lifted.map(|found| self.handoff = Some(Box::new(found)))
                }
                notes::NT_EPITAPH_FACTS => {
                    let lifted = BootFacts::lift(note.desc).map_err(Trouble::from);
                    lifted.map(|found| self.facts = Some(Box::new(found)))
                }
                notes::NT_EPITAPH_CPUS => {
                    records = Some(note.desc);
                    Ok(())
                }
                notes::NT_EPITAPH_STAMPS => array(note.desc).map(|found| self.stamps = found),
                notes::NT_EPITAPH_LOCKS => array(note.desc).map(|found| self.locks = found),
                notes::NT_EPITAPH_WORDS => array(note.desc).map(|found| self.words = found),
                notes::NT_EPITAPH_EXCLUDED => array(note.desc).map(|found| self.excluded = found),
                notes::NT_EPITAPH_ZERO => array(note.desc).map(|found| self.zero = found),
                notes::NT_EPITAPH_BUILD_ID => {
                    self.build_id = note.desc.to_vec();
                    Ok(())
                }
                notes::NT_EPITAPH_CAPTURE => {
                    capture_metrics(note.desc).map(|found| self.metrics = Some(found))
                }
                // Read before all others.
                notes::NT_EPITAPH_CHECKSUMS => Ok(()),
                notes::NT_EPITAPH_FAULT => {
                    let text = String::from_utf8_lossy(note.desc);
                    self.capture_fault = Some(text.trim_end_matches('\0').to_owned());
                    Ok(())
                }
                // A later version may say more; what it says in known notes still counts.
                _ => Ok(()),
            };
            if let Err(why) = outcome {
                if let Trouble::Newer(version) = why {
                    let what = format!("{} is of version {version}", note_name(note.kind));
                    return Err(Error::Newer { path: self.path.clone(), what });
                }
                self.complain(partial, format!("{}: {why}", note_name(note.kind)))?;
            }
        }
        self.check_tables(partial)?;
        self.take_cpus(records, &all, partial)?;
        if self.build_id.is_empty()
            && let Some(facts) = &self.facts
        {
            self.build_id = facts.build_id().to_vec();
        }
        for (missing, name) in [
            (self.handoff.is_none(), "the hand-off: the cause is not known"),
            (self.facts.is_none(), "the boot facts: memory map and command line are not known"),
            (self.metrics.is_none(), "the capture's own account"),
        ] {
            if missing {
                self.warnings.push(format!("the dump lacks {name}"));
            }
        }
        Ok(())
    }

    /// Holds the tables that the hand-off has a checksum of against it.
    fn check_tables(&mut self, partial: bool) -> Result<()> {
        let Some(handoff) = &self.handoff else { return Ok(()) };
        let wrong = |table: Table, bytes: &[u8]| match bytes {
            [] => None,
            bytes => table.check(bytes).err(),
        };
        let locks = wrong(handoff.locks, self.locks.as_bytes());
        let words = wrong(handoff.words, self.words.as_bytes());
        if let Some(why) = locks {
            self.locks.clear();
            self.complain(partial, format!("table of locks: {why}"))?;
        }
        if let Some(why) = words {
            self.words.clear();
            self.complain(partial, format!("workloads' words: {why}"))?;
        }
        Ok(())
    }

    /// Takes the CPU records, or makes up for them from the standard notes.
    fn take_cpus(&mut self, records: Option<&[u8]>, all: &[Note<'_>], partial: bool) -> Result<()> {
        let in_order =
            |records: &[CpuRecord]| (0..).zip(records).all(|(index, record)| record.index == index);
        let lifted = match (&self.handoff, records) {
            // How long a record is stands in the hand-off.
            (Some(handoff), Some(bytes)) => Some(match handoff.check_cpus(bytes) {
                Ok(records) => Ok(records.iter().collect::<Vec<_>>()),
                Err(why) => Err(why.to_string()),
            }),
            (None, Some(_)) => Some(Err("no hand-off says how long they are".to_owned())),
            (_, None) => None,
        };
        match lifted {
            Some(Ok(records)) if in_order(&records) => {
                self.cpus = records;
                return Ok(());
            }
            Some(outcome) => {
                let why = outcome.err().unwrap_or_else(|| "not in index order".into());
                self.complain(partial, format!("CPU records: {why}"))?;
            }
            None => {}
        }
        self.warnings.push(
            "the dump lacks the CPU records: registers are those of the standard notes".into(),
        );
        let standard = all.iter().filter(|note| note.kind == notes::NT_PRSTATUS);
        for note in standard.filter(|note| note.owner == notes::CORE_OWNER) {
            if let Some(record) = standard_record(note.desc) {
                self.cpus.push(record);
            }
        }
        self.cpus.sort_by_key(|record| record.index);
        self.cpus.dedup_by_key(|record| record.index);
        Ok(())
    }

    /// Notes what is damaged and was passed over.
    pub(crate) fn note_damage(&mut self, what: String) {
        self.warnings.push(format!("damaged: {what}"));
        self.met.record(what);
    }

    /// An error, or a warning when the caller wants what can be had.
    pub(super) fn complain(&mut self, partial: bool, what: String) -> Result<()> {
        if partial {
            self.note_damage(what);
            Ok(())
        } else {
            Err(Error::damaged(&self.path, what))
        }
    }
}

/// Why a note was not believed.
enum Trouble {
    Newer(u32),
    Other(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newer(version) => write!(f, "version {version}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl From<RecordError> for Trouble {
    fn from(why: RecordError) -> Self {
        match why {
            RecordError::Version(found) => Self::Newer(found),
            why => Self::Other(why.to_string()),
        }
    }
}

/// The records of an array note.
fn array<T: FromBytes>(desc: &[u8]) -> Result<Vec<T>, Trouble> {
    let records = desc.chunks_exact(size_of::<T>());
    if !records.remainder().is_empty() {
        return Err(Trouble::Other("not a whole number of records".into()));
    }
    records
        .map(|bytes| T::read_from_bytes(bytes).map_err(|_| Trouble::Other("wrong size".into())))
        .collect()
}

fn capture_metrics(desc: &[u8]) -> Result<CaptureMetrics, Trouble> {
    let (metrics, _) =
        CaptureMetrics::read_from_prefix(desc).map_err(|_| Trouble::Other("cut short".into()))?;
    if !(1..=notes::CAPTURE_VERSION).contains(&metrics.version) {
        return Err(Trouble::Other(format!("unknown version {}", metrics.version)));
    }
    Ok(metrics)
}

/// A CPU record out of NT_PRSTATUS, for a dump without the real ones.
fn standard_record(desc: &[u8]) -> Option<CpuRecord> {
    let pid = desc.get(notes::PRSTATUS_PID..notes::PRSTATUS_PID + 4)?;
    let pid = i32::from_le_bytes(pid.try_into().ok()?);
    let words = desc.get(notes::PRSTATUS_REGISTERS..notes::PRSTATUS_REGISTERS + 27 * 8)?;
    let mut record = CpuRecord::new();
    record.index = u32::try_from(pid.checked_sub(1)?).ok()?;
    record.stopped_by = StoppedBy(UNKNOWN);
    record.registers_from = RegistersFrom(UNKNOWN);
    let mut registers = X86Registers::default();
    registers.as_mut_bytes()[..27 * 8].copy_from_slice(words);
    record.set_x86(&registers);
    Some(record)
}

const fn note_name(kind: u32) -> &'static str {
    match kind {
        notes::NT_EPITAPH_HANDOFF => "hand-off",
        notes::NT_EPITAPH_CPUS => "CPU records",
        notes::NT_EPITAPH_FACTS => "boot facts",
        notes::NT_EPITAPH_STAMPS => "table of stamped memory",
        notes::NT_EPITAPH_LOCKS => "table of locks",
        notes::NT_EPITAPH_WORDS => "workloads' words",
        notes::NT_EPITAPH_EXCLUDED => "table of excluded memory",
        notes::NT_EPITAPH_ZERO => "table of zero memory",
        notes::NT_EPITAPH_CAPTURE => "the capture's account",
        notes::NT_EPITAPH_FAULT => "the capture's fault",
        notes::NT_EPITAPH_CHECKSUMS => "table of checksums",
        _ => "note",
    }
}
