//! `--power-loss`: dumps recorded write by write, and every state a power cut may leave;
//! and machines that are killed in the middle of a dump.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::harness::{self, Options, Verdict};
use e2e::power::{Images, Plan, Scene, kill, replay};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use vmcore::Dump;

use super::drive::{Common, Drive, Ended};
use super::random::any_seed;

/// Random subsets of the writes between two flushes, for each of them.
const SUBSETS: u32 = 100;

/// One dump, cut off in every way or killed once.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Cut {
    #[serde(flatten)]
    common: Common,
    /// States judged; 1 for a kill.
    states: u64,
    /// How many of them had which stage as the best; 0 is the dump of before.
    found: BTreeMap<usize, u64>,
    /// States in which every checksum of the best stage was computed.
    verified: u64,
    writes: usize,
    flushes: usize,
    /// Bytes of memory that were stored compressed.
    compressed: u64,
    /// CPUs that worked on the dump.
    working: u32,
}

impl Ended for Cut {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// What is tried.
enum Trial {
    Replay(usize, Scene),
    Kill(usize, Scene),
}

impl Trial {
    fn key(&self) -> String {
        match self {
            Self::Replay(number, scene) => format!("replay {number}: {}", scene.name()),
            Self::Kill(number, scene) => format!("kill {number}: {}", scene.name()),
        }
    }
}

/// Records and replays `dumps` dumps, kills `kills` machines; whether no disk lied.
pub fn main(drive: &Drive, dumps: usize, kills: usize, seed: Option<u64>) -> Result<bool> {
    let seed = seed.unwrap_or_else(any_seed);
    println!("seed {seed}: {dumps} dumps, {kills} kills");
    let images = Images::make(&drive.folder().join("before"))?;
    let longest = if kills > 0 { longest(&images, &drive.folder().join("longest"))? } else { None };
    let replays = Scene::list(dumps).into_iter().enumerate();
    let killed = Scene::list(kills).into_iter().enumerate();
    let trials: Vec<_> = replays
        .map(|(number, scene)| Trial::Replay(number, scene))
        .chain(killed.map(|(number, scene)| Trial::Kill(number, scene)))
        .collect();
    let done = drive.run(&trials, Trial::key, |trial, folder| match trial {
        Trial::Replay(number, scene) => {
            record(trial.key(), scene, &images, folder, seed + *number as u64)
        }
        Trial::Kill(number, scene) => {
            let mut random = Rng::with_seed(seed + *number as u64);
            let after = longest.unwrap_or_default().mul_f64(random.f64());
            Ok(end(trial.key(), &scene.options(&images, folder.to_owned()), after))
        }
    })?;
    let report = report(&done);
    print!("{report}");
    drive.report(&report)?;
    for folder in ["before", "longest"] {
        let folder = drive.folder().join(folder);
        if folder.is_dir() {
            std::fs::remove_dir_all(folder)?;
        }
    }
    Ok(done.iter().all(|cut| cut.wrong().is_none()))
}

/// How long a capture takes here, from its first word to its last.
fn longest(images: &Images, folder: &Path) -> Result<Option<Duration>> {
    let mut longest = None;
    for (number, scene) in Scene::list(3).iter().enumerate() {
        let options = scene.options(images, folder.join(number.to_string()));
        let (mut begun, mut ended) = (None, None);
        harness::run(&options, &mut |line| {
            if line.contains("capture: entered") {
                begun = Some(Instant::now());
            } else if line.contains("capture: policy") {
                ended = Some(Instant::now());
            }
        })?;
        longest = longest.max(ended.zip(begun).map(|(ended, begun)| ended - begun));
    }
    Ok(longest)
}

fn record(key: String, scene: &Scene, images: &Images, folder: &Path, seed: u64) -> Result<Cut> {
    let mut options = scene.options(images, folder.to_owned());
    options.disks[0].recorded = true;
    let begun = Instant::now();
    let mut cut = Cut {
        common: Common { key, verdict: "right".into(), problems: vec![], milliseconds: 0 },
        states: 0,
        found: BTreeMap::new(),
        verified: 0,
        writes: 0,
        flushes: 0,
        compressed: 0,
        working: 0,
    };
    let judged = (|| {
        let outcome = harness::run(&options, &mut |_| ())?;
        ensure!(outcome.report.verdict == Verdict::Captured, "{outcome}");
        let dump = Dump::open(outcome.out.join("disk.img"))?;
        let seals = dump.stored.iter().flat_map(|stored| &stored.seals);
        cut.compressed = seals.map(|(_, seal)| seal.compressed_bytes).sum();
        cut.working = dump.metrics.map_or(0, |metrics| metrics.cpus_working);
        ensure!(scene.storing != "lz4" || cut.compressed > 0, "nothing was compressed");
        let base = options.disk_image.as_deref().unwrap_or(folder);
        let log = outcome.out.join("disk.img.writes");
        let plan = Plan { seed, subsets: SUBSETS };
        replay(base, &log, &plan, &mut |report| {
            cut.states = report.states;
            cut.found.clone_from(&report.found);
            cut.verified = report.verified;
            (cut.writes, cut.flushes) = (report.writes, report.flushes);
        })
    })();
    if let Err(error) = judged {
        cut.common.verdict = "WRONG".into();
        cut.common.problems.push(format!("{error:#}"));
    }
    cut.common.milliseconds = begun.elapsed().as_millis() as u64;
    Ok(cut)
}

fn end(key: String, options: &Options, after: Duration) -> Cut {
    let image = options.disk_image.clone().unwrap_or_default();
    let begun = Instant::now();
    let (verdict, problems, stage) = match kill(options, &image, after) {
        Ok(killed) => (format!("killed behind stage {}", killed.stage), vec![], Some(killed.stage)),
        Err(error) => ("WRONG".into(), vec![format!("after {after:?}: {error:#}")], None),
    };
    let milliseconds = begun.elapsed().as_millis() as u64;
    let common = Common { key, verdict, problems, milliseconds };
    let found = stage.map(|stage| (stage, 1)).into_iter().collect();
    let (writes, flushes, compressed, working) = (0, 0, 0, 0);
    Cut { common, states: 1, found, verified: 1, writes, flushes, compressed, working }
}

fn report(done: &[Cut]) -> String {
    let mut text = String::from(
        "| dump | CPUs at work | MiB compressed | writes | flushes | states | before | stage 1 \
         | 2 | 3 | all checksums |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let found = |cut: &Cut, stage| cut.found.get(&stage).copied().unwrap_or(0);
    for cut in done {
        let stages: Vec<_> = (0..4).map(|stage| found(cut, stage).to_string()).collect();
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            cut.key(),
            cut.working,
            cut.compressed >> 20,
            cut.writes,
            cut.flushes,
            cut.states,
            stages.join(" | "),
            cut.verified
        ));
    }
    let (replays, kills): (Vec<_>, Vec<_>) = done.iter().partition(|cut| cut.writes > 0);
    let states: u64 = replays.iter().map(|cut| cut.states).sum();
    let wrong = done.iter().filter(|cut| cut.wrong().is_some()).count();
    text.push_str(&format!(
        "\n{} dumps, {} of them with compressed memory and {} with helpers, {states} states of the \
         disk; {} kills; {wrong} wrong.\n",
        replays.len(),
        replays.iter().filter(|cut| cut.compressed > 0).count(),
        replays.iter().filter(|cut| cut.working > 1).count(),
        kills.len()
    ));
    text
}
