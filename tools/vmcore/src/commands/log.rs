//! `vmcore log`: the appliance's own log.

use serde::{Deserialize, Serialize};

use crate::dump::Memory;
use crate::json::Hex;
use crate::{Dump, Error, Result};

/// Bytes read at a time: what a small dump has of the log may begin anywhere.
const STEP: usize = 64;
/// Largest ring believed.
const RING_LIMIT: u64 = 64 << 20;

/// The log; the JSON of `vmcore log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes ever written.
    pub written: Hex,
    /// Bytes at the start that later ones have overwritten, or that the dump does not hold.
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
    let mut bytes = vec![0; ring.capacity.min(ring.written) as usize];
    // From the newest byte back to where the dump, or the ring, has no more.
    let mut first = bytes.len();
    while first > 0 {
        let before = ring.written - (bytes.len() - first) as u64;
        let end = (before - 1) % ring.capacity + 1;
        let start = first.saturating_sub(STEP.min(end as usize));
        // `end` is at least the step: a ring that goes round begins anew at its start.
        let offset = end - (first - start) as u64;
        let read = |offset: u64, part: &mut [u8]| {
            ring.address.checked_add(offset).is_some_and(|at| dump.read(at, part).is_ok())
        };
        if read(offset, &mut bytes[start..first]) {
            first = start;
        } else if read(end - 1, &mut bytes[first - 1..first]) {
            first -= 1;
        } else {
            break;
        }
    }
    if first == bytes.len() && first > 0 {
        return Err(lacks("the memory it was in is not in this dump"));
    }
    let text = String::from_utf8_lossy(&bytes[first..]).into_owned();
    let lost = ring.written - (bytes.len() - first) as u64;
    Ok(Log { written: Hex(ring.written), lost: Hex(lost), text })
}

impl Log {
    /// The log for the terminal: lines as they are, other control characters made
    /// visible.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        if self.lost.0 > 0 {
            out += &format!("[{} older bytes are not there]\n", self.lost.0);
        }
        for line in self.text.lines() {
            out += &crate::text::clean(&line.replace('\t', "    "));
            out.push('\n');
        }
        out
    }
}
