//! Results of a long measurement, each written down as it comes, and how long the rest takes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::step::{short, step};

/// One measurement: which row it belongs to, which run it was, what it came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry<T> {
    /// The row's name.
    pub row: String,
    /// The run's number, from 1.
    pub run: u32,
    /// The result.
    pub sample: T,
}

/// One measurement that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The row's name.
    pub row: String,
    /// The run's number, from 1.
    pub run: u32,
    /// About how long it takes compared with the others.
    pub weight: f64,
}

impl Wanted {
    /// Run `run` of row `row`, which takes as long as any other.
    #[must_use]
    pub fn new(row: &str, run: u32) -> Self {
        Self { row: row.to_owned(), run, weight: 1.0 }
    }
}

/// The file the results go to.
pub struct Journal<T> {
    folder: PathBuf,
    entries: Vec<Entry<T>>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// The journal in `folder`: with what is there when `resume` says so, else empty. What was
    /// measured in another way than `settings` say is not gone on with.
    ///
    /// # Errors
    /// The folder cannot be made, or holds something else.
    pub fn open(folder: PathBuf, settings: &str, resume: bool) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let journal = Self { folder, entries: Vec::new() };
        let (results, noted) = (journal.path(), journal.folder.join("settings.txt"));
        if resume && results.is_file() {
            let before = std::fs::read_to_string(&noted).unwrap_or_default();
            if before != settings {
                bail!("--resume: {} was made with other options:\n{before}", short(&results));
            }
            return journal.read();
        }
        std::fs::write(&noted, settings).with_context(|| format!("write {}", noted.display()))?;
        File::create(&results).with_context(|| format!("create {}", results.display()))?;
        Ok(journal)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("results.jsonl")
    }

    fn read(mut self) -> Result<Self> {
        let file = File::open(self.path()).context("open the results so far")?;
        for line in BufReader::new(file).lines() {
            // An interrupted run may have left half a line: it is measured again.
            if let Ok(entry) = serde_json::from_str(&line.context("read the results so far")?) {
                self.entries.push(entry);
            }
        }
        Ok(self)
    }

    /// Measures what is wanted and not there yet, in that order, and says how long the rest
    /// will take.
    ///
    /// # Errors
    /// Those of `measure`; what was measured before stays.
    pub fn fill(
        &mut self,
        wanted: &[Wanted],
        mut measure: impl FnMut(&Wanted) -> Result<T>,
    ) -> Result<()> {
        let there =
            |one: &&Wanted| !self.entries.iter().any(|e| e.row == one.row && e.run == one.run);
        let missing: Vec<Wanted> = wanted.iter().filter(there).cloned().collect();
        let begun = Instant::now();
        let (mut done, mut left) = (0.0, missing.iter().map(|one| one.weight).sum::<f64>());
        for one in &missing {
            let minutes = begun.elapsed().as_secs_f64() / 60.0 * left / f64::max(done, 1e-9);
            let rest = if done > 0.0 { format!(" ({minutes:.0} min left)") } else { String::new() };
            let sample = step(&format!("run {}: {}{rest}", one.run, one.row), || measure(one))?;
            self.append(Entry { row: one.row.clone(), run: one.run, sample })?;
            done += one.weight;
            left -= one.weight;
        }
        Ok(())
    }

    fn append(&mut self, entry: Entry<T>) -> Result<()> {
        let mut file =
            File::options().append(true).open(self.path()).context("open the results")?;
        // The line break first: what an interrupted run left stays a line of its own.
        let line = serde_json::to_string(&entry).context("a result as JSON")?;
        write!(file, "\n{line}").context("write a result")?;
        self.entries.push(entry);
        Ok(())
    }

    /// What row `row` came to, in the order it was measured.
    pub fn of(&self, row: &str) -> Vec<&T> {
        self.entries.iter().filter(|entry| entry.row == row).map(|entry| &entry.sample).collect()
    }

    /// The folder of the results.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `text` beside the results, and says where everything is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn report(&self, text: &str, figures: &impl Serialize) -> Result<()> {
        let report = self.folder.join("report.md");
        std::fs::write(&report, text).with_context(|| format!("write {}", report.display()))?;
        let path = self.folder.join("figures.json");
        let json = serde_json::to_string_pretty(figures).context("the figures as JSON")?;
        std::fs::write(&path, json + "\n").with_context(|| format!("write {}", path.display()))?;
        print!("\n{text}");
        println!("\nthe same in {}, as JSON in {}", short(&report), short(&path));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_not_measured_again() {
        let folder = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
        let wanted = |run| Wanted::new("a", run);
        let all = [wanted(1), wanted(2), wanted(3)];
        let mut first = Journal::open(folder.clone(), "s", false).expect("a new journal");
        let stopped = first
            .fill(&all, |one| if one.run == 3 { bail!("interrupted") } else { Ok(one.run * 10) });
        assert!(stopped.is_err());
        // Half a line, as when the machine went down meanwhile.
        let mut file = File::options().append(true).open(first.path()).expect("the results");
        write!(file, "\n{{\"row\":\"a\",\"ru").expect("half a line");
        let mut again = Journal::open(folder.clone(), "s", true).expect("the same journal");
        assert_eq!(again.of("a"), [&10, &20]);
        again.fill(&all, |one| Ok(one.run)).expect("the rest");
        assert_eq!(again.of("a"), [&10, &20, &3]);
        let read = Journal::<u32>::open(folder.clone(), "s", true).expect("once more");
        assert_eq!(read.of("a"), [&10, &20, &3]);
        assert!(Journal::<u32>::open(folder.clone(), "t", true).is_err(), "other settings");
        std::fs::remove_dir_all(folder).expect("tidy up");
    }
}
