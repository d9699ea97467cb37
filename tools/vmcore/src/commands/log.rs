//! `vmcore log`: the appliance's own log.

use serde::{Deserialize, Serialize};

use crate::dump::{Memory, MemoryFault};
use crate::{Dump, Error, Result};

/// Bytes read at a time: what a small dump has of the log may begin anywhere.
const STEP: usize = 64;
/// Largest ring believed.
const RING_LIMIT: u64 = 64 << 20;

/// The log; the JSON of `vmcore log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes ever written.
    pub written_bytes: u64,
    /// Bytes at the start that later ones have overwritten, or that the dump does not hold.
    pub lost_bytes: u64,
    /// Bytes of the rest whose memory is damaged.
    pub damaged_bytes: u64,
    /// What is left, oldest first. Damaged bytes in a row are a line `[N damaged bytes]`.
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
    // From the newest byte back to where the dump, or the ring, has no more; over damage.
    let mut first = bytes.len();
    let mut gaps: Vec<(usize, usize)> = Vec::new();
    while first > 0 {
        let before = ring.written - (bytes.len() - first) as u64;
        let end = (before - 1) % ring.capacity + 1;
        let start = first.saturating_sub(STEP.min(end as usize));
        // `end` is at least the step: a ring that goes round begins anew at its start.
        let address = ring.address.saturating_add(end - (first - start) as u64);
        match dump.read(address, &mut bytes[start..first]) {
            Ok(()) => first = start,
            Err(MemoryFault::Damaged(_) | MemoryFault::Unreadable(_)) => {
                match gaps.last_mut() {
                    Some((gap, _)) if *gap == first => *gap = start,
                    _ => gaps.push((start, first)),
                }
                first = start;
            }
            Err(MemoryFault::NotInDump(_)) => {
                let last = address.saturating_add((first - start) as u64 - 1);
                if dump.read(last, &mut bytes[first - 1..first]).is_err() {
                    break;
                }
                first -= 1;
            }
        }
    }
    if first == bytes.len() && first > 0 {
        return Err(lacks("the memory it was in is not in this dump"));
    }
    let (mut text, mut from) = (String::new(), first);
    for (start, end) in gaps.iter().rev() {
        text += &String::from_utf8_lossy(&bytes[from..*start]);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &format!("[{} damaged bytes]\n", end - start);
        from = *end;
    }
    text += &String::from_utf8_lossy(&bytes[from..]);
    let damaged = gaps.iter().map(|(start, end)| (end - start) as u64).sum();
    let lost = ring.written - (bytes.len() - first) as u64;
    Ok(Log { written_bytes: ring.written, lost_bytes: lost, damaged_bytes: damaged, text })
}

impl Log {
    /// The log for the terminal: lines as they are, other control characters made
    /// visible.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        if self.lost_bytes > 0 {
            out += &format!("[{} older bytes are not there]\n", self.lost_bytes);
        }
        for line in self.text.lines() {
            out += &crate::text::clean(&line.replace('\t', "    "));
            out.push('\n');
        }
        out
    }
}
