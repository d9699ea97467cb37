//! What can be damaged: the variables of the appliance, the writable pages of its image, and the
//! parts of the reserved region.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use e2e::harness::Images;
use fastrand::Rng;
use object::{Object, ObjectSymbol, SymbolKind};

use super::damage::{Damage, PAGE, Value, WORD};
use super::state::State;
use crate::crashpath;

/// Of a variable of more bytes than this, `--all` damages the words at its start and those that
/// are not zero: the rest are entries for CPUs and requests that this machine does not have.
const LARGE: u64 = 512;

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A variable that crash code uses.
    Used,
    /// Another variable of the kernel or of the crate `machine`.
    Other,
    /// All of the image's data.
    Image,
    /// A part of the reserved region.
    Region,
}

/// A variable or an area.
#[derive(Debug)]
struct Place {
    name: String,
    start: u64,
    bytes: u64,
    kind: Kind,
}

/// Everything that can be damaged.
#[derive(Debug)]
pub struct Places {
    places: Vec<Place>,
}

impl Places {
    /// Finds them in the image as it was linked and in the saved machine.
    ///
    /// # Errors
    /// The image or the machine is not as expected.
    pub fn find(state: &State) -> Result<Self> {
        let bytes = std::fs::read(Images::find()?.appliance).context("read the appliance")?;
        let file = object::File::parse(&*bytes).context("the appliance")?;
        let used = crashpath::addresses_in_crash_code()?;
        let mut places = Vec::new();
        let mut names: BTreeMap<String, u32> = BTreeMap::new();
        let mut ends = [None; 2];
        for symbol in file.symbols() {
            let Ok(mangled) = symbol.name() else { continue };
            match mangled {
                "data_start" => ends[0] = Some(symbol.address()),
                "data_end" => ends[1] = Some(symbol.address()),
                _ => {}
            }
            let mut name = format!("{:#}", rustc_demangle::demangle(mangled));
            let ours = name.starts_with("kernel::") || name.starts_with("machine::");
            if symbol.kind() != SymbolKind::Data || !ours || symbol.size() == 0 {
                continue;
            }
            let (start, bytes) = (symbol.address(), symbol.size());
            if !state.writable(start) {
                continue;
            }
            let number = names.entry(name.clone()).or_default();
            *number += 1;
            if *number > 1 {
                name = format!("{name}#{number}");
            }
            let is_used = used.range(start..start + bytes).next().is_some();
            let kind = if is_used { Kind::Used } else { Kind::Other };
            places.push(Place { name, start, bytes, kind });
        }
        let [Some(start), Some(end)] = ends else {
            anyhow::bail!("the appliance has no data_start and data_end")
        };
        places.push(Place { name: "data".into(), start, bytes: end - start, kind: Kind::Image });
        for (name, start, bytes) in state.region() {
            places.push(Place { name: name.into(), start, bytes, kind: Kind::Region });
        }
        places.sort_by_key(|place| (place.start, place.bytes));
        let count = places.iter().filter(|place| place.kind == Kind::Used).count();
        ensure!(count > 20, "only {count} variables of crash code were found");
        Ok(Self { places })
    }

    /// Returns the first address of `damage`.
    ///
    /// # Errors
    /// There is no such place.
    pub fn address(&self, damage: &Damage) -> Result<u64> {
        let place = self.places.iter().find(|place| place.name == damage.name);
        let place = place.with_context(|| format!("there is no variable '{}'", damage.name))?;
        let length = if damage.page { PAGE } else { WORD };
        // The last word of a variable may reach behind it, where the linker has left room.
        let room = place.bytes.next_multiple_of(length);
        ensure!(damage.offset < room, "{damage}: '{}' has {} bytes", place.name, place.bytes);
        Ok((place.start & !7) + damage.offset)
    }

    /// Returns a line that says what there is.
    pub fn summary(&self, state: &State) -> String {
        let count = |kind| self.places.iter().filter(|place| place.kind == kind).count();
        let words: u64 = self.of(Kind::Used).map(|place| place.bytes.div_ceil(WORD)).sum();
        let pages = self.pages(state).count();
        format!(
            "{} variables of crash code ({words} words), {} others, {pages} pages",
            count(Kind::Used),
            count(Kind::Other)
        )
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(move |place| place.kind == kind)
    }

    /// Returns every page that is damaged as a whole, as area and offset.
    fn pages<'a>(&'a self, state: &'a State) -> impl Iterator<Item = (&'a Place, u64)> {
        let areas = self.of(Kind::Image).chain(self.of(Kind::Region));
        areas.flat_map(move |place| {
            let offsets = (0..place.bytes).step_by(PAGE as usize);
            let ours = move |offset: &u64| {
                place.kind == Kind::Region || state.writable(place.start + offset)
            };
            offsets.filter(ours).map(move |offset| (place, offset))
        })
    }

    /// Returns every damage there is: four for each word of a variable that crash code uses, and
    /// for each page.
    pub fn all(&self, state: &State) -> Vec<Damage> {
        let mut rng = Rng::with_seed(0);
        let mut all = Vec::new();
        let mut add = |place: &Place, offset, page| {
            for value in Value::all(rng.u32(..64)) {
                all.push(Damage { name: place.name.clone(), offset, page, value });
            }
        };
        for place in self.of(Kind::Used) {
            for offset in (0..place.bytes).step_by(WORD as usize) {
                if offset < LARGE || state.word((place.start & !7) + offset) != 0 {
                    add(place, offset, false);
                }
            }
        }
        for (place, offset) in self.pages(state) {
            add(place, offset, true);
        }
        all.retain(|damage| self.changes(damage, state));
        all
    }

    /// Returns the damage of a seed.
    pub fn random(&self, seed: u64, state: &State) -> Damage {
        let mut rng = Rng::with_seed(seed);
        loop {
            let damage = self.any(&mut rng, state);
            if self.changes(&damage, state) {
                return damage;
            }
        }
    }

    fn any(&self, rng: &mut Rng, state: &State) -> Damage {
        let (kind, page) = match rng.u32(..10) {
            0..6 => (Kind::Used, false),
            6 => (Kind::Other, false),
            7 => (Kind::Image, true),
            8 => (Kind::Region, false),
            _ => (Kind::Region, true),
        };
        let places: Vec<_> = self.of(kind).collect();
        // Each variable as often as the others, but for those of one word or two.
        let weight = |place: &&Place| place.bytes.div_ceil(WORD).min(4);
        let total: u64 = places.iter().map(weight).sum();
        let mut at = rng.u64(..total);
        let found = places.iter().find(|place| {
            let here = at < weight(place);
            at = at.saturating_sub(weight(place));
            here
        });
        let place = found.unwrap_or(&places[0]);
        let length = if page { PAGE } else { WORD };
        let mut offset = || rng.u64(..place.bytes.div_ceil(length)) * length;
        let mut chosen = offset();
        // Large tables are mostly zeros: what is in use is looked for a few times.
        for _ in 0..8 {
            let address = (place.start & !7) + chosen;
            if state.word(address) != 0 || place.bytes <= 64 {
                break;
            }
            chosen = offset();
        }
        let value = Value::all(rng.u32(..64))[rng.usize(..4)];
        Damage { name: place.name.clone(), offset: chosen, page, value }
    }

    /// Returns true if `damage` makes a difference and, in the image, lies where the processor
    /// would let a wild write through.
    fn changes(&self, damage: &Damage, state: &State) -> bool {
        let Ok(address) = self.address(damage) else { return false };
        let in_region = self.of(Kind::Region).any(|place| place.name == damage.name);
        let length = if damage.page { PAGE } else { WORD };
        let changed: BTreeSet<bool> = (address..address + length)
            .step_by(WORD as usize)
            .map(|at| damage.value.of(state.word(at)) != state.word(at))
            .collect();
        changed.contains(&true) && (in_region || state.writable(address))
    }
}
