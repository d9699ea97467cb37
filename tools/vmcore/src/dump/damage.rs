//! Damage that a reader of a dump has met.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::json::Hex;
use crate::stage::BadChunk;

/// Most places that are kept; more are only counted.
const KEPT: usize = 1000;

/// A part of a dump that cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Physical address of the memory; `null` for what is no memory, such as a record.
    pub address: Option<Hex>,
    /// Bytes of memory; `null` for what is no memory.
    pub bytes: Option<u64>,
    /// What is damaged, and in what way.
    pub what: String,
}

/// The damage met so far.
#[derive(Debug, Default)]
pub(super) struct Met {
    places: Mutex<Vec<Damage>>,
}

impl Met {
    /// Notes a record, or a stage, that does not verify.
    pub(super) fn record(&self, what: String) {
        self.add(Damage { address: None, bytes: None, what });
    }

    /// Notes a chunk.
    pub(super) fn chunk(&self, bad: &BadChunk) {
        let (address, bytes) = (Some(Hex(bad.address)), Some(bad.bytes));
        self.add(Damage { address, bytes, what: bad.to_string() });
    }

    /// Notes memory that is in a segment and cannot be read from the file.
    pub(super) fn unreadable(&self, address: u64, bytes: u64) {
        let mut places = self.lock();
        let near = |place: &&mut Damage| {
            place.address.zip(place.bytes).is_some_and(|(start, length)| {
                let end = start.0.saturating_add(length);
                place.what.ends_with(UNREADABLE) && address >= start.0 && address <= end
            })
        };
        if let Some(place) = places.iter_mut().find(near) {
            let start = place.address.map_or(0, |start| start.0);
            let length = place.bytes.unwrap_or(0);
            let end = (start + length).max(address.saturating_add(bytes));
            place.bytes = Some(end - start);
            place.what = unreadable(start, end - start);
            return;
        }
        drop(places);
        let what = unreadable(address, bytes);
        self.add(Damage { address: Some(Hex(address)), bytes: Some(bytes), what });
    }

    fn add(&self, damage: Damage) {
        let mut places = self.lock();
        if places.len() < KEPT && !places.contains(&damage) {
            places.push(damage);
        }
    }

    /// All of it, by address; what is no memory first.
    pub(super) fn all(&self) -> Vec<Damage> {
        let mut all = self.lock().clone();
        all.sort_by_key(|damage| damage.address);
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Damage>> {
        // Nothing is left half done under the lock.
        self.places.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How the description of memory that cannot be read ends.
const UNREADABLE: &str = "cannot be read from the file";

fn unreadable(address: u64, bytes: u64) -> String {
    format!("{bytes} bytes of memory at {address:#x}: {UNREADABLE}")
}
