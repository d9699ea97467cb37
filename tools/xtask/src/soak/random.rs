//! `--runs N`: random machines with random faults, each from a seed of its own.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::catalogue::{CRASHES, Finding, Scenario, WEDGES};
use e2e::harness::{self, Boot, Bus, Disk, Options, Policy, Verdict};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use vmcore::Dump;

use super::drive::{Common, Drive, Ended, counted};

/// One machine's end.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    #[serde(flatten)]
    common: Common,
    /// What it was.
    what: String,
    /// Per CPU, how it was stopped.
    stopped: Vec<String>,
}

impl Ended for Run {
    fn common(&self) -> &Common {
        &self.common
    }

    fn wrong(&self) -> Option<String> {
        self.common.wrong().map(|wrong| format!("({}) {wrong}", self.what))
    }
}

/// Runs `count` machines; whether all ended as their faults promise.
pub fn main(drive: &Drive, count: u64, seed: Option<u64>) -> Result<bool> {
    let first = seed.unwrap_or_else(any_seed);
    println!("seeds {first} to {}", first + count.saturating_sub(1));
    let seeds: Vec<u64> = (first..first + count).collect();
    let done = drive.run(&seeds, key, |seed, folder| run(*seed, folder))?;
    let mut report = format!("{} runs, seeds from {first}.\n\n", done.len());
    for word in ["captured", "last-words", "no-dump", "incomplete", "hung", "silent"] {
        let count = done.iter().filter(|run| run.common.verdict == word).count();
        report.push_str(&format!("- {word}: {count}\n"));
    }
    let wrong: Vec<_> = done.iter().filter(|run| run.wrong().is_some()).collect();
    report.push_str(&format!("\n{} not as promised.\n", wrong.len()));
    for run in &wrong {
        report.push_str(&format!("- {}: {}\n", run.key(), run.wrong().unwrap_or_default()));
    }
    print!("{report}");
    drive.report(&report)?;
    Ok(wrong.is_empty())
}

/// A seed that is not the last soak's: small enough to be typed.
pub fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() % 1_000_000 * 1000
}

fn key(seed: &u64) -> String {
    format!("seed {seed}")
}

/// A number with the weight of its place.
fn weighted<T: Copy>(rng: &mut Rng, choices: &[(u32, T)]) -> T {
    let total: u32 = choices.iter().map(|(weight, _)| weight).sum();
    let mut at = rng.u32(..total);
    for &(weight, choice) in choices {
        if at < weight {
            return choice;
        }
        at -= weight;
    }
    choices[0].1
}

/// A crash, up to three wedges, up to eight CPUs, as the seed has it: the first that means
/// something.
fn scenario(rng: &mut Rng) -> Scenario {
    loop {
        let cpus = rng.u32(1..=8);
        let crash = &CRASHES[rng.usize(..CRASHES.len())];
        let on = rng.u32(..cpus);
        let wedges = (0..weighted(rng, &[(3, 0), (4, 1), (2, 2), (1, 3)]))
            .map(|_| {
                let wedge = &WEDGES[rng.usize(..WEDGES.len())];
                (wedge, if wedge.on_boot_processor { 0 } else { rng.u32(..cpus) })
            })
            .collect();
        let scenario = Scenario { crash, on, wedges, cpus };
        if scenario.senseless().is_none() {
            return scenario;
        }
    }
}

/// The machine of a seed.
fn machine(seed: u64, out: &Path) -> (Scenario, Options) {
    let mut rng = Rng::with_seed(seed);
    let scenario = scenario(&mut rng);
    let mut options = scenario.options(out.to_owned());
    options.boot = weighted(&mut rng, &[(8, Boot::Pvh), (2, Boot::Bios)]);
    options.memory = rng.u64(96..=256) << 20;
    let bus = weighted(
        &mut rng,
        &[(5, Some(Bus::Virtio)), (2, Some(Bus::Nvme)), (2, Some(Bus::Ahci)), (1, None)],
    );
    options.disks = bus.map(Disk::new).into_iter().collect();
    if bus.is_none() {
        options.expect = Some(Verdict::LastWords);
    }
    options.policy =
        weighted(&mut rng, &[(6, Policy::Poweroff), (2, Policy::Halt), (2, Policy::Reboot)]);
    for (word, chance) in [
        ("memstamp", 0.4),
        ("ring,numbers=16384", 0.4),
        ("bank,transfers=200", 0.4),
        ("hashtree,leaves=256", 0.3),
        ("queens,n=9", 0.3),
    ] {
        // Beside work on the disk, nothing that a CPU could stay in and never come to the disk.
        if rng.f64() < chance && !scenario.on_disk() {
            options.command_line.push_str(&format!(" workload={word}"));
        }
    }
    // A machine check at every CPU takes a processor model of its own.
    if rng.f64() < 0.15 && !scenario.crash.reaches_all {
        // The last processor named is the one QEMU takes.
        options.qemu_args.extend(["-cpu", "max,-x2apic"].map(str::to_owned));
    }
    (scenario, options)
}

fn run(seed: u64, folder: &Path) -> Result<Run> {
    let (scenario, options) = machine(seed, folder);
    let what = format!(
        "{scenario}, {}, {} MiB, disks {:?}, {}{}",
        options.boot.name(),
        options.memory >> 20,
        options.disks.iter().map(|disk| disk.bus).collect::<Vec<_>>(),
        options.kernel_command_line(),
        if options.qemu_args.is_empty() { "" } else { ", no x2APIC" }
    );
    let outcome = harness::run(&options, &mut |_| ())?;
    let mut found = Finding::read(&scenario, &outcome);
    if let Some(vmcore) = &outcome.vmcore
        && options.command_line.contains("memstamp")
    {
        let dump = Dump::open(vmcore).context("the vmcore again")?;
        match vmcore::stamps(&dump) {
            Ok(report) if report.is_good() => {}
            Ok(report) => found.problems.push(format!("stamps: {report:?}")),
            Err(error) => found.problems.push(format!("stamps: {error}")),
        }
    }
    let common = Common {
        key: key(&seed),
        verdict: counted(found.verdict).to_owned(),
        problems: found.problems,
        milliseconds: outcome.report.duration_ms,
    };
    Ok(Run { common, what, stopped: found.stopped.into_iter().map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_machine_and_all_of_them_can_be_run() {
        let words = |seed| {
            let (scenario, options) = machine(seed, Path::new("x"));
            assert_eq!(options.check(), Ok(()), "seed {seed}");
            assert!(scenario.senseless().is_none(), "seed {seed}");
            format!("{scenario} {options:?}")
        };
        for seed in 0..500 {
            assert_eq!(words(seed), words(seed));
        }
        assert_ne!(words(1), words(2));
    }
}
