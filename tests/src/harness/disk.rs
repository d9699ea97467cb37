//! The disks of a run: prepared before it, read after it.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Disk, Options};

/// Room for records, ELF headers and notes beside the memory itself.
const SLACK: u64 = 16 << 20;

/// Makes every disk of the run, sparse; the first is `disk.img`.
pub(super) fn create_all(options: &Options) -> Result<Vec<PathBuf>> {
    let create = |(index, _): (usize, &Disk)| {
        let name = if index == 0 { "disk.img".to_owned() } else { format!("disk{index}.img") };
        let path = options.out.join(name);
        // Truncated first: no block of an earlier run may shine through.
        File::create(&path)
            .and_then(|file| file.set_len(options.memory + SLACK))
            .with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    };
    options.disks.iter().enumerate().map(create).collect()
}
