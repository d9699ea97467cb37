//! Many runs, two at a time, each written down as it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::harness::Verdict;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::step::short;

/// Machines at a time, unless a soak asks for fewer. Each has several virtual CPUs; more of
/// them on two cores would only measure the host's scheduler.
const MACHINES: usize = 2;
/// How often progress is shown while nothing goes wrong.
const PROGRESS: Duration = Duration::from_secs(10);

/// The folder of a soak, and when it ends.
pub struct Drive {
    folder: PathBuf,
    resume: bool,
    /// Machines at a time.
    machines: usize,
    /// No run begins later.
    until: Option<Instant>,
}

/// What a run came to, whatever else is known of it.
pub trait Ended: Serialize + DeserializeOwned + Send {
    /// What every run's result has.
    fn common(&self) -> &Common;

    /// Its name: the same for the same run.
    fn key(&self) -> &str {
        &self.common().key
    }

    /// One word for the count.
    fn word(&self) -> &str {
        &self.common().verdict
    }

    /// What is wrong with it, if anything is.
    fn wrong(&self) -> Option<String> {
        self.common().wrong()
    }
}

/// A verdict as a soak counts it: a crash that left nothing is silent.
#[must_use]
pub fn counted(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unknown => "silent",
        other => other.name(),
    }
}

/// Everything that is shared between the machines.
struct Shared<T> {
    done: Vec<T>,
    counts: BTreeMap<String, usize>,
    log: File,
    shown: Instant,
    error: Option<anyhow::Error>,
}

impl Drive {
    /// Results go to `folder`; those that are there already count when `resume` is set.
    pub fn new(folder: PathBuf, resume: bool) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let folder = folder.canonicalize().context("the folder of the soak")?;
        if !resume {
            for name in ["bad", "runs"] {
                let path = folder.join(name);
                if path.exists() {
                    std::fs::remove_dir_all(&path)
                        .with_context(|| format!("remove {}", path.display()))?;
                }
            }
        }
        Ok(Self { folder, resume, machines: MACHINES, until: None })
    }

    /// The same, with no run that begins later than `until`.
    pub fn until(&self, until: Instant) -> Self {
        Self { folder: self.folder.clone(), until: Some(until), ..*self }
    }

    /// The same, with one machine at a time: for those that take all of the host.
    pub fn one_by_one(&self) -> Self {
        Self { folder: self.folder.clone(), machines: 1, ..*self }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the report, and says where.
    pub fn report(&self, text: &str) -> Result<()> {
        let path = self.folder.join("report.md");
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("the report is {}", short(&path));
        Ok(())
    }

    /// Runs `work` for every one of `plans` that has no result yet, each in a folder of its
    /// own, and returns all results in the order of the plans.
    pub fn run<P: Sync, T: Ended>(
        &self,
        plans: &[P],
        key: impl Fn(&P) -> String,
        work: impl Fn(&P, &Path) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let keys: Vec<String> = plans.iter().map(&key).collect();
        let mut earlier = self.earlier::<T>()?;
        earlier.retain(|ended| keys.iter().any(|key| key == ended.key()));
        let waiting: Vec<usize> = (0..plans.len())
            .filter(|&index| earlier.iter().all(|ended| ended.key() != keys[index]))
            .collect();
        if !earlier.is_empty() {
            println!("{} of {} runs are there already", earlier.len(), plans.len());
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("results.jsonl"))
            .context("open results.jsonl")?;
        let mut counts = BTreeMap::new();
        for ended in &earlier {
            *counts.entry(ended.word().to_owned()).or_default() += 1;
        }
        let start = Instant::now();
        let shared = Mutex::new(Shared { done: vec![], counts, log, shown: start, error: None });
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.machines {
                scope.spawn(|| {
                    while let Some(&index) = waiting.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if self.until.is_some_and(|until| Instant::now() > until) {
                            return;
                        }
                        let folder = self.folder.join("runs").join(index.to_string());
                        let ended = work(&plans[index], &folder);
                        let note = self.note(&shared, ended, &folder, waiting.len(), start);
                        if !note {
                            next.store(waiting.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let shared = shared.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = shared.error {
            return Err(error);
        }
        let mut all = earlier;
        all.extend(shared.done);
        let place = |ended: &T| keys.iter().position(|key| key == ended.key());
        all.sort_by_key(place);
        println!("{}: {}", plural(all.len(), "run"), list(&shared.counts));
        Ok(all)
    }

    /// Writes a result down, keeps or removes the folder, shows progress. False: stop.
    fn note<T: Ended>(
        &self,
        shared: &Mutex<Shared<T>>,
        ended: Result<T>,
        folder: &Path,
        planned: usize,
        start: Instant,
    ) -> bool {
        let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let kept = ended.and_then(|ended| {
            let line = serde_json::to_string(&ended).context("a result as JSON")?;
            writeln!(shared.log, "{line}").context("write results.jsonl")?;
            *shared.counts.entry(ended.word().to_owned()).or_default() += 1;
            match ended.wrong() {
                None => {
                    // It may be one that made none.
                    let _ = std::fs::remove_dir_all(folder);
                }
                Some(wrong) => {
                    println!("WRONG {}: {wrong}", ended.key());
                    self.keep(folder, ended.key())?;
                }
            }
            shared.done.push(ended);
            Ok(())
        });
        if let Err(error) = kept {
            shared.error.get_or_insert(error);
            return false;
        }
        if shared.shown.elapsed() > PROGRESS {
            shared.shown = Instant::now();
            let done = shared.done.len();
            let rate = done as f64 / start.elapsed().as_secs_f64();
            let left = (planned - done) as f64 / rate;
            println!(
                "{done} of {planned}, {rate:.2} per second, {:.0} min to go; {}",
                (left / 60.0).ceil(),
                list(&shared.counts)
            );
        }
        true
    }

    /// The results of an earlier soak, if it is to go on; otherwise they are put aside.
    fn earlier<T: Ended>(&self) -> Result<Vec<T>> {
        let path = self.folder.join("results.jsonl");
        if !path.is_file() {
            return Ok(vec![]);
        }
        if !self.resume {
            std::fs::rename(&path, path.with_extension("jsonl.old")).context("put aside")?;
            return Ok(vec![]);
        }
        let text = std::fs::read_to_string(&path).context("read results.jsonl")?;
        // The last line may be torn: its run is made again.
        let mut seen: Vec<T> = Vec::new();
        for ended in text.lines().filter_map(|line| serde_json::from_str::<T>(line).ok()) {
            seen.retain(|other| other.key() != ended.key());
            seen.push(ended);
        }
        // What went wrong is tried again as well: a resumed soak may run a better image.
        seen.retain(|ended| ended.wrong().is_none());
        Ok(seen)
    }

    /// Moves the folder of a bad run where it can be found by its name.
    fn keep(&self, folder: &Path, key: &str) -> Result<()> {
        if !folder.is_dir() {
            return Ok(());
        }
        let name: String =
            key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let bad = self.folder.join("bad");
        let kept = bad.join(name);
        if kept.is_dir() {
            std::fs::remove_dir_all(&kept).context("remove an earlier bad run")?;
        }
        std::fs::create_dir_all(&bad).context("a folder for bad runs")?;
        std::fs::rename(folder, &kept).context("keep a bad run")?;
        // A disk is as large as the memory it was to take; the dump beside it says the same.
        for entry in kept.read_dir().context("a bad run")?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "img") {
                std::fs::remove_file(&path).context("remove a disk")?;
            }
        }
        Ok(())
    }
}

/// `3 captured, 1 hung`.
fn list(counts: &BTreeMap<String, usize>) -> String {
    let words: Vec<_> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
    words.join(", ")
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What every run's result has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Common {
    /// What it is called.
    pub key: String,
    /// How it ended, in a soak's words.
    pub verdict: String,
    /// What was wrong.
    pub problems: Vec<String>,
    /// How long it took.
    pub milliseconds: u64,
}

impl Common {
    /// All problems in one line, if there are any.
    pub fn wrong(&self) -> Option<String> {
        (!self.problems.is_empty()).then(|| self.problems.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Number(Common);

    impl Number {
        fn new(plan: u32, good: bool) -> Self {
            Self(Common {
                key: plan.to_string(),
                verdict: if good { "good" } else { "bad" }.to_owned(),
                problems: if good { vec![] } else { vec!["odd".to_owned()] },
                milliseconds: 0,
            })
        }
    }

    impl Ended for Number {
        fn common(&self) -> &Common {
            &self.0
        }
    }

    #[test]
    fn results_survive_an_interruption_and_bad_ones_are_run_again() {
        let folder = std::env::temp_dir().join(format!("epitaph-drive-{}", std::process::id()));
        let plans: Vec<u32> = (0..10).collect();
        let run = |resume, odd_is_good: bool| {
            let ran = AtomicUsize::new(0);
            let drive = Drive::new(folder.clone(), resume).expect("a folder");
            let all = drive
                .run(&plans, u32::to_string, |plan, _| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    Ok(Number::new(*plan, odd_is_good || plan % 2 == 0))
                })
                .expect("a soak");
            let keys: Vec<_> = all.iter().map(|ended| ended.key().to_owned()).collect();
            assert_eq!(keys, plans.iter().map(u32::to_string).collect::<Vec<_>>());
            ran.into_inner()
        };
        assert_eq!(run(false, false), 10);
        assert_eq!(run(true, true), 5, "only what was bad");
        assert_eq!(run(true, true), 0);
        assert_eq!(run(false, true), 10, "everything anew");
        std::fs::remove_dir_all(&folder).expect("a folder");
    }
}
