//! `vmcore log`: the appliance's own log.

use serde::{Deserialize, Serialize};

use crate::dump::Memory;
use crate::json::Hex;
use crate::{Dump, Error, Result};

/// Largest ring believed.
const RING_LIMIT: u64 = 64 << 20;

/// The log; the JSON of `vmcore log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes ever written.
    pub written: Hex,
    /// Bytes at the start that later ones have overwritten.
    pub lost: Hex,
    /// What is left, oldest first.
    pub text: String,
}

/// Reads the log ring.
///
/// # Errors
/// When the dump does not hold it.
pub fn log(dump: &Dump) -> Result<Log> {
    let lacks = |what: &str| Error::NotInDump(format!("the dump has no log: {what}"));
    let handoff = dump
        .handoff
        .as_ref()
        .ok_or_else(|| lacks("the hand-off that says where it is was lost"))?;
    let ring = handoff.log;
    if ring.address == 0 || ring.capacity == 0 {
        return Err(lacks("the appliance kept none"));
    }
    if ring.capacity > RING_LIMIT {
        return Err(lacks("its size is not believable"));
    }
    let mut bytes = vec![0; ring.capacity as usize];
    dump.read(ring.address, &mut bytes)
        .map_err(|_| lacks("the memory it was in is not in this dump"))?;
    if ring.written > ring.capacity {
        // The oldest byte is the one that would be written next.
        bytes.rotate_left((ring.written % ring.capacity) as usize);
    } else {
        bytes.truncate(ring.written as usize);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lost = ring.written.saturating_sub(ring.capacity);
    Ok(Log { written: Hex(ring.written), lost: Hex(lost), text })
}

impl Log {
    /// The log for the terminal: lines as they are, other control characters made
    /// visible.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        if self.lost.0 > 0 {
            out += &format!("[{} older bytes were overwritten]\n", self.lost.0);
        }
        for line in self.text.lines() {
            out += &crate::text::clean(&line.replace('\t', "    "));
            out.push('\n');
        }
        out
    }
}
