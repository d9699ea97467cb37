//! What is booted: how much memory, filled with what, stored how, on which medium.

use serde::Serialize;

/// Ways to store memory.
pub const WAYS: [&str; 3] = ["raw", "lz4", "auto"];
/// Virtual CPUs of the rows that say what one more is good for.
const FEWER_CPUS: [u32; 2] = [2, 1];
/// Limits of a disk, in bytes a second.
const SLOW: u64 = 100_000_000;
const FAST: u64 = 500_000_000;

/// One row of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Case {
    /// Bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// What the memory holds.
    pub fill: Fill,
    /// The word for `dump=`.
    pub storing: &'static str,
    /// What the disk takes.
    pub medium: Medium,
}

/// What 90 % of free memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fill {
    /// Pages of which LZ4 stores half.
    Half,
    /// Pages of which LZ4 stores all.
    Dense,
}

/// What the bytes are written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Medium {
    /// A file of the host, as fast as it takes them.
    Host,
    /// The same, and so many bytes a second.
    Fixed(u64),
    /// So many, and so many others from the first sign of progress on.
    Changed(u64, u64),
    /// Nothing that keeps them: what is left is the cost of the capture itself.
    Swallow,
    /// A file of the host, on a machine whose clock counts instructions, one a nanosecond: what
    /// there is to do, whoever does it and however fast.
    Counted,
}

impl Fill {
    /// The words for `workload=`.
    #[must_use]
    pub const fn workload(self) -> &'static str {
        match self {
            Self::Half => "memstamp,repeat=1",
            Self::Dense => "memstamp",
        }
    }

    /// How a table calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Half => "2:1",
            Self::Dense => "1:1",
        }
    }
}

impl Medium {
    /// How a table calls it.
    #[must_use]
    pub fn name(self) -> String {
        let mb = |bytes: u64| bytes / 1_000_000;
        match self {
            Self::Host => "file".into(),
            Self::Fixed(bytes) => format!("{} MB/s", mb(bytes)),
            Self::Changed(from, to) => format!("{} then {} MB/s", mb(from), mb(to)),
            Self::Swallow => "swallows".into(),
            Self::Counted => "counted".into(),
        }
    }
}

impl Case {
    /// Its row's name: another one for every case.
    #[must_use]
    pub fn name(&self) -> String {
        let Self { memory, cpus, fill, storing, medium } = self;
        let (fill, medium) = (fill.name(), medium.name());
        let plural = if *cpus == 1 { "" } else { "s" };
        format!("{} MiB, {cpus} CPU{plural}, fill {fill}, dump={storing}, {medium}", memory >> 20)
    }

    /// About how many seconds it takes on a host of today, for the time that is left.
    #[must_use]
    pub fn weight(&self) -> f64 {
        let gib = self.memory as f64 / f64::from(1 << 30);
        let passes = if self.storing == "raw" { 4.0 } else { 1.0 };
        let at = |rate: u64| passes * self.memory as f64 / rate as f64;
        4.0 + match self.medium {
            Medium::Host => gib * (12.0 + passes),
            Medium::Fixed(rate) | Medium::Changed(_, rate) => gib * 4.0 + at(rate),
            Medium::Swallow => gib * 2.0,
            Medium::Counted => gib * 10.0,
        }
    }
}

/// All of them: `mem` on the host's file, the first of `mem` on limited disks and filled with
/// what does not compress, `swallow` into nothing.
#[must_use]
pub fn all(mem: &[u64], swallow: &[u64], cpus: u32) -> Vec<Case> {
    let mut cases = Vec::new();
    let fewer = || FEWER_CPUS.into_iter().filter(|fewer| *fewer < cpus);
    let case = |memory, storing, medium| Case { memory, cpus, fill: Fill::Half, storing, medium };
    for &memory in mem {
        cases.extend(WAYS.map(|storing| case(memory, storing, Medium::Host)));
        // What the other CPUs are good for.
        cases.extend(fewer().map(|cpus| Case { cpus, ..case(memory, "lz4", Medium::Host) }));
        cases.push(case(memory, "raw", Medium::Counted));
    }
    if let Some(&memory) = mem.first() {
        let dense = |storing| Case { fill: Fill::Dense, ..case(memory, storing, Medium::Host) };
        cases.extend(WAYS.map(dense));
        for medium in [Medium::Fixed(SLOW), Medium::Fixed(FAST), Medium::Changed(SLOW, FAST)] {
            cases.extend(WAYS.map(|storing| case(memory, storing, medium)));
        }
    }
    cases.extend(swallow.iter().map(|&memory| case(memory, "raw", Medium::Swallow)));
    if let Some(&memory) = swallow.first() {
        // The codec alone, with nothing of the host beside it.
        let alone = case(memory, "lz4", Medium::Swallow);
        cases.push(alone);
        cases.extend(fewer().map(|cpus| Case { cpus, ..alone }));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let cases = all(&[1 << 30, 4 << 30], &[1 << 30, 16 << 30], 4);
        let mut names: Vec<_> = cases.iter().map(Case::name).collect();
        assert_eq!(names.len(), 12 + 3 + 9 + 5);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cases.len());
        // Nothing twice where there are no fewer.
        assert_eq!(all(&[1 << 30], &[1 << 30], 2).len(), 5 + 3 + 9 + 3);
    }
}
