//! `vmcore watch`: waits for a machine to crash, and takes its dump.
//!
//! The capture image tells QEMU's pvpanic device that it has taken over; QEMU passes that on
//! as `GUEST_CRASHLOADED`. From then on the machine's disks are looked at until every
//! planned stage is sealed, the capture says that no more will come, or the machine ends. A
//! dump can be read while the machine still runs; it is marked as collected when the
//! machine has let go of the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::collect::{Mark, Progress, Taken, Waiting, mark, marks, take, unknown, waiting};
use crate::json::Versioned;
use crate::output::{Folder, all_steps};
use crate::qmp::{Heard, Qmp};
use crate::source::Source;
use crate::text::clean;
use crate::{Error, Result, lock};

/// How often the disks are looked at while a dump is written: there is no event for it.
const LOOK: Duration = Duration::from_millis(50);

/// What to watch, and what to do.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The machine's QMP socket.
    pub qmp: PathBuf,
    /// Its disks; when empty, those that QEMU names.
    pub disks: Vec<PathBuf>,
    /// Where cores go.
    pub folder: PathBuf,
    /// A shell command to run for each: `EPITAPH_CORE` is the core's path, `EPITAPH_SUMMARY`
    /// the JSON of what is known of it.
    pub hook: Option<String>,
    /// Ends after the first crash; otherwise with the machine.
    pub once: bool,
    /// How long a dump may take from the crash on, before what there is of it is taken.
    pub patience: Duration,
}

/// What a watch came to; the JSON of `vmcore watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Crashes seen.
    pub crashes: u64,
    /// Dumps taken.
    pub dumps: Vec<Taken>,
    /// What went wrong beside them: no dump after a crash, a hook that failed.
    pub warnings: Vec<String>,
}

/// A dump that is in safety and not marked yet.
struct Unmarked {
    disk: PathBuf,
    base: u64,
    waiting: Waiting,
    marks: Vec<Mark>,
    /// Its place in [`Watched::dumps`].
    dump: usize,
}

/// Watches until the machine ends. `said` hears of each crash and each dump as it comes.
///
/// # Errors
/// The machine cannot be reached, has no disk with a dump area, or a core cannot be written.
pub fn watch(
    watch: &Watch,
    said: &mut dyn FnMut(&str),
    progress: &mut Progress<'_>,
) -> Result<Watched> {
    let mut qmp = Qmp::connect(&watch.qmp)?;
    let disks = if watch.disks.is_empty() { qmp.disks()? } else { watch.disks.clone() };
    let disks: Vec<_> = disks.into_iter().filter(|disk| Source::every(disk).is_ok()).collect();
    if disks.is_empty() {
        return Err(Error::foreign(&watch.qmp, "the machine has no disk with a dump area"));
    }
    let names: Vec<_> = disks.iter().map(|disk| disk.display().to_string()).collect();
    said(&format!("watching, dumps expected on {}", names.join(", ")));
    let mut state = State {
        watch,
        folder: Folder::create(&watch.folder)?,
        disks,
        watched: Watched { crashes: 0, dumps: Vec::new(), warnings: Vec::new() },
        unmarked: Vec::new(),
    };
    loop {
        match qmp.event(Duration::from_secs(3600)) {
            Heard::Event(name) if name == "GUEST_CRASHLOADED" => {
                state.watched.crashes += 1;
                said("crashed; the capture image has taken over");
                let gone = state.crashed(&mut qmp, said, progress)?;
                if gone || watch.once {
                    break;
                }
            }
            Heard::Closed => break,
            Heard::Event(_) | Heard::Nothing => {}
        }
    }
    state.mark();
    Ok(state.watched)
}

struct State<'a> {
    watch: &'a Watch,
    folder: Folder,
    disks: Vec<PathBuf>,
    watched: Watched,
    unmarked: Vec<Unmarked>,
}

impl State<'_> {
    /// Waits for the dump and takes it; whether the machine is gone.
    fn crashed(
        &mut self,
        qmp: &mut Qmp,
        said: &mut dyn FnMut(&str),
        progress: &mut Progress<'_>,
    ) -> Result<bool> {
        let deadline = Instant::now() + self.watch.patience;
        let before = self.watched.dumps.len();
        let mut gone = false;
        loop {
            // A machine that was reset or switched off writes nothing more of this dump.
            let over = match qmp.event(LOOK) {
                Heard::Closed => {
                    gone = true;
                    true
                }
                Heard::Event(name) => ["RESET", "SHUTDOWN", "STOP"].contains(&name.as_str()),
                Heard::Nothing => Instant::now() >= deadline,
            };
            self.take_sealed(over, said, progress)?;
            if over || self.watched.dumps.len() > before {
                break;
            }
        }
        let unknown: Vec<_> = Source::together(&self.disks)?.iter().flat_map(unknown).collect();
        for unknown in &unknown {
            self.warn(&unknown.render(), said);
        }
        if self.watched.dumps.len() == before && unknown.is_empty() {
            self.warn("a crash, and no sealed dump: its console may hold last words", said);
        }
        Ok(gone)
    }

    /// Takes every dump that is as complete as it will be; `over`: whatever is sealed.
    fn take_sealed(
        &mut self,
        over: bool,
        said: &mut dyn FnMut(&str),
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        for source in Source::together(&self.disks)? {
            let (disk, base) = (source.path().to_owned(), source.base());
            for waiting in waiting(&source, &mut 0) {
                let known = self.unmarked.iter().any(|known| {
                    let (one, other) = (&known.waiting.open, &waiting.open);
                    known.disk == disk
                        && known.base == base
                        && (one.sequence, one.nonce) == (other.sequence, other.nonce)
                });
                let whole = waiting.sealed == waiting.open.stages as usize || waiting.closed;
                if known || !(whole || over) {
                    continue;
                }
                let folder = &self.folder;
                let taken = take(&source, &waiting, folder, false, &mut all_steps, progress)?;
                said(taken.render().trim_end());
                self.hook(&taken, said);
                let dump = self.watched.dumps.len();
                self.watched.dumps.push(taken);
                let marks = marks(&source, &waiting)?;
                let disk = disk.clone();
                self.unmarked.push(Unmarked { disk, base, waiting, marks, dump });
            }
        }
        Ok(())
    }

    fn hook(&mut self, taken: &Taken, said: &mut dyn FnMut(&str)) {
        let (Some(hook), Some(core)) = (&self.watch.hook, &taken.core) else { return };
        let summary = serde_json::to_string(&Versioned::new(taken)).unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", hook]).env("EPITAPH_CORE", absolute(core));
        match command.env("EPITAPH_SUMMARY", summary).status() {
            Ok(status) if status.success() => {}
            Ok(status) => self.warn(&format!("the hook ended with {status}"), said),
            Err(error) => self.warn(&format!("the hook could not be started: {error}"), said),
        }
    }

    fn warn(&mut self, what: &str, said: &mut dyn FnMut(&str)) {
        said(&format!("warning: {what}"));
        self.watched.warnings.push(what.to_owned());
    }

    /// Marks what was taken, on every disk that is free by now.
    fn mark(&mut self) {
        for unmarked in &self.unmarked {
            let taken = &mut self.watched.dumps[unmarked.dump];
            if !taken.is_safe() {
                continue;
            }
            // Two areas may be on one disk, which is opened once.
            let mut disks: Vec<&Path> = unmarked.marks.iter().map(Mark::disk).collect();
            disks.dedup();
            let open = |disk| Ok((disk, lock::open_when_free(disk)?));
            let writers: Result<Vec<_>> = disks.into_iter().map(open).collect();
            let marked =
                writers.and_then(|writers| mark(&writers, &unmarked.marks, &mut all_steps));
            match marked {
                Ok(()) => taken.marked = true,
                Err(error) => taken.warnings.push(format!("not marked as collected: {error}")),
            }
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Watched {
    /// Whether every crash left a dump that verified, and every hook went well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.warnings.is_empty() && self.dumps.iter().all(|dump| dump.verified)
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out =
            format!("Crashes seen: {}; dumps taken: {}.\n", self.crashes, self.dumps.len());
        out.extend(self.dumps.iter().map(Taken::render));
        for warning in &self.warnings {
            out += &format!("warning: {}\n", clean(warning));
        }
        out
    }
}
