//! The dumps that power cuts are tried on: small machines, over disks that hold older
//! dumps already.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::harness::{self, Boot, Bus, Disk, Options, Verdict};

/// A disk before the dump: two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// One holds a dump, the other is free.
    OneFree,
    /// Both hold dumps; the older one may be overwritten.
    NoneFree,
}

/// One dump to be cut off.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// What the disk is attached to.
    pub bus: Bus,
    /// What is on it.
    pub before: Before,
    /// How memory is stored: a value of `dump=`.
    pub storing: &'static str,
    /// The fault.
    pub crash: &'static str,
    /// CPUs.
    pub cpus: u32,
}

impl Scene {
    /// `count` scenes, no two alike among the first 36.
    #[must_use]
    pub fn list(count: usize) -> Vec<Self> {
        const BUSES: [Bus; 3] = [Bus::Virtio, Bus::Nvme, Bus::Ahci];
        const STORING: [&str; 3] = ["raw", "lz4", "auto"];
        const CRASHES: [&str; 4] = ["panic", "page-fault", "stack-overflow", "panic-in-irq"];
        let scene = |number: usize| Self {
            bus: BUSES[number % 3],
            before: if number.is_multiple_of(2) { Before::OneFree } else { Before::NoneFree },
            storing: STORING[number / 2 % 3],
            crash: CRASHES[number / 3 % 4],
            cpus: [2, 1, 4][number / 4 % 3],
        };
        (0..count).map(scene).collect()
    }

    /// What it is, in a line.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "{:?}, {:?}, dump={}, {} with {} CPUs",
            self.bus, self.before, self.storing, self.crash, self.cpus
        )
    }

    /// The machine, over a copy of the right one of `images`.
    #[must_use]
    pub fn options(&self, images: &Images, out: PathBuf) -> Options {
        let image = match self.before {
            Before::OneFree => &images.one_free,
            Before::NoneFree => &images.none_free,
        };
        Options {
            cpus: self.cpus,
            disks: vec![Disk { slots: 2, ..Disk::new(self.bus) }],
            disk_image: Some(image.clone()),
            crash: Some(self.crash.into()),
            command_line: format!("{} slots=overwrite-oldest dump={}", WORK, self.storing),
            ..machine(out)
        }
    }
}

/// Every stage, and memory that a stage of its own has to bring; compressed it takes less.
const WORK: &str = "workload=memstamp,repeat=1 pages=all";

fn machine(out: PathBuf) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        disks: vec![Disk { slots: 2, ..Disk::new(Bus::Virtio) }],
        crash: Some("panic".into()),
        command_line: WORK.into(),
        timeout: Duration::from_secs(60),
        ..Options::new(Boot::Pvh, out)
    }
}

/// Disks that hold dumps already.
#[derive(Clone, Debug)]
pub struct Images {
    /// See [`Before::OneFree`].
    pub one_free: PathBuf,
    /// See [`Before::NoneFree`].
    pub none_free: PathBuf,
}

impl Images {
    /// Makes them in `folder`, by crashing two machines.
    ///
    /// # Errors
    /// A machine cannot be run, or left no dump.
    pub fn make(folder: &Path) -> Result<Self> {
        let dump = |options: &Options| {
            let outcome = harness::run(options, &mut |_| ()).context("a dump to begin with")?;
            ensure!(outcome.report.verdict == Verdict::Captured, "{outcome}");
            Ok::<_, anyhow::Error>(outcome.out.join("disk.img"))
        };
        let one_free = dump(&machine(folder.join("one")))?;
        let second = Options { disk_image: Some(one_free.clone()), ..machine(folder.join("two")) };
        Ok(Self { none_free: dump(&second)?, one_free })
    }
}
