//! One image walked through: calls resolved, faults collected, figures added up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use iced_x86::{FlowControl, Instruction, Mnemonic};
use vmcore::Image;
use vmcore::image::Place;

use super::binary::Binary;
use super::graph::{Call, Graph, Reached, way};
use super::tables::{AGAIN, Declared, FORBIDDEN};
use super::{SPARE_PERCENT, frame, pointer, stacks};

/// What was found in one image.
#[derive(Debug)]
pub struct Report {
    /// What is wrong, each over several lines.
    pub faults: Vec<String>,
    /// How much there is.
    pub summary: String,
}

/// A call through a pointer.
#[derive(Debug)]
struct Site {
    from: usize,
    at: u64,
}

/// An image on its way to a report.
pub struct Walk<'a> {
    path: &'a Path,
    declared: &'a Declared,
    binary: Binary,
    image: Image,
    graph: Graph,
    sites: Vec<Site>,
    faults: Vec<String>,
    /// Declared lines that nothing has matched yet.
    unused: BTreeSet<&'static str>,
}

impl<'a> Walk<'a> {
    /// Reads the image at `path` and finds every call in it.
    ///
    /// # Errors
    /// When it cannot be read, or its code not be followed.
    pub fn new(path: &'a Path, declared: &'a Declared) -> Result<Self> {
        let binary = Binary::open(path)?;
        let mut walk = Self {
            path,
            declared,
            binary,
            image: Image::open(path)?,
            graph: Graph::default(),
            sites: Vec::new(),
            faults: Vec::new(),
            unused: declared.boundaries.iter().map(|(name, _)| *name).collect(),
        };
        walk.unused.extend(declared.indirect.iter().map(|(name, _)| *name));
        walk.unused.extend(declared.waits.iter().map(|(name, _)| *name));
        walk.unused.extend(declared.allowed.iter().map(|(name, _)| *name));
        for index in 0..walk.binary.functions.len() {
            walk.add_function(index)?;
        }
        Ok(walk)
    }

    fn add_function(&mut self, index: usize) -> Result<()> {
        let function = &self.binary.functions[index];
        let depths = frame::depths(function)?;
        let mut calls = Vec::new();
        for (number, (instruction, depth)) in function.code.iter().zip(&depths).enumerate() {
            let is_call =
                matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
            let depth = if is_call { depth + 8 } else { *depth };
            let at = instruction.ip();
            match self.leads_to(index, number, instruction) {
                Leads::Inside => {}
                Leads::To(to) => calls.extend(to.into_iter().map(|to| Call { at, to, depth })),
                Leads::Anywhere => self.sites.push(Site { from: index, at }),
            }
        }
        let own = depths.iter().copied().max().unwrap_or(0);
        self.graph.calls.push(calls);
        self.graph.own.push(own);
        Ok(())
    }

    fn leads_to(&self, index: usize, number: usize, instruction: &Instruction) -> Leads {
        let function = &self.binary.functions[index];
        match instruction.flow_control() {
            FlowControl::Call
            | FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch => {
                let target = instruction.near_branch_target();
                match self.binary.holding(target) {
                    Some(to) if to == index && instruction.flow_control() != FlowControl::Call => {
                        Leads::Inside
                    }
                    Some(to) => Leads::To(vec![to]),
                    None => Leads::Anywhere,
                }
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                if instruction.is_ip_rel_memory_operand()
                    && let Some(to) = self.binary.constant(instruction.memory_displacement64())
                {
                    return Leads::To(vec![to]);
                }
                let is_jump = instruction.flow_control() == FlowControl::IndirectBranch;
                if is_jump && pointer::through_table(&function.code, number) {
                    return Leads::Inside;
                }
                let load = |at| self.binary.constant(at).map(|to| self.binary.functions[to].start);
                let constants = pointer::constants(&function.code, number, load);
                let known: Option<Vec<_>> = constants
                    .and_then(|all| all.iter().map(|at| self.binary.starting_at(*at)).collect());
                known.map_or(Leads::Anywhere, Leads::To)
            }
            _ => Leads::Inside,
        }
    }

    /// Follows everything from the entries and says what it found.
    ///
    /// # Errors
    /// When the debug information does not say how large the stacks are.
    pub fn report(mut self) -> Result<Report> {
        let entries = self.entries();
        let stop = self.boundaries();
        let reached = self.follow(&entries, &stop);
        self.look_inside(&reached, &stop);
        let (bytes, room, path) = self.measure(&stop)?;
        let (ours, others) = self.lines(&reached, &stop);
        for line in std::mem::take(&mut self.unused) {
            self.faults.push(format!("declared, but nothing matches it any more: {line}"));
        }
        let functions = reached.len();
        let names: Vec<_> = path.iter().map(|index| &*self.binary.functions[*index].name).collect();
        let summary = format!(
            "crash code is {functions} functions, {ours} lines of source here and {others} in \
             libraries\n    deepest stack {bytes} of {room} bytes: {}",
            names.join("\n      → ")
        );
        Ok(Report { faults: self.faults, summary })
    }

    /// Returns all instructions of crash code.
    pub fn code(mut self) -> Vec<Instruction> {
        let entries = self.entries();
        let stop = self.boundaries();
        let reached = self.follow(&entries, &stop);
        let inside = reached.keys().filter(|index| !stop.contains(index));
        inside.flat_map(|&index| self.binary.functions[index].code.iter().copied()).collect()
    }

    fn entries(&mut self) -> Vec<usize> {
        let mut entries = Vec::new();
        for (name, ..) in self.declared.entries {
            let found: Vec<_> = self.binary.named(name).collect();
            if found.is_empty() {
                self.faults.push(format!("the entry {name} is not there, or was inlined"));
            }
            entries.extend(found);
        }
        entries
    }

    fn boundaries(&mut self) -> BTreeSet<usize> {
        let mut stop = BTreeSet::new();
        for (index, function) in self.binary.functions.iter().enumerate() {
            for (pattern, _) in self.declared.boundaries {
                if matches(pattern, &function.name) {
                    stop.insert(index);
                }
            }
            if FORBIDDEN.iter().any(|(pattern, _)| matches(pattern, &function.name)) {
                stop.insert(index);
            }
        }
        for (name, ..) in self.declared.entries {
            for index in self.binary.named(name) {
                stop.remove(&index);
            }
        }
        stop
    }

    /// Follows calls through pointers where they lead, until nothing new is reached.
    fn follow(&mut self, entries: &[usize], stop: &BTreeSet<usize>) -> Reached {
        loop {
            let reached = self.graph.reach(entries, stop);
            let inside =
                |site: &Site| reached.contains_key(&site.from) && !stop.contains(&site.from);
            let (here, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.sites).into_iter().partition(inside);
            self.sites = later;
            if here.is_empty() {
                return reached;
            }
            for site in here {
                self.resolve(&site, &reached);
            }
        }
    }

    fn resolve(&mut self, site: &Site, reached: &Reached) {
        let places = self.image.places(site.at);
        let caller = places.first().and_then(|place| place.function.clone()).unwrap_or_default();
        let row = self.declared.indirect.iter().find(|(pattern, _)| matches(pattern, &caller));
        let Some((pattern, targets)) = row else {
            let what = format!("calls through a pointer, and where to is not declared: {caller}");
            self.fault(&what, site.from, site.at, reached);
            return;
        };
        self.unused.remove(pattern);
        let function = &self.binary.functions[site.from];
        let depths = frame::depths(function).unwrap_or_default();
        let number = function.code.iter().position(|instruction| instruction.ip() == site.at);
        let depth = number.and_then(|number| depths.get(number)).copied().unwrap_or(0) + 8;
        let may = |name: &str| targets.iter().any(|pattern| matches(pattern, name));
        for to in &self.binary.taken {
            if may(&self.binary.functions[*to].name) {
                self.graph.calls[site.from].push(Call { at: site.at, to: *to, depth });
            }
        }
    }

    /// Looks at each reached function for what must not be there.
    fn look_inside(&mut self, reached: &Reached, stop: &BTreeSet<usize>) {
        for &index in reached.keys() {
            let function = &self.binary.functions[index];
            if stop.contains(&index) {
                for (pattern, _) in self.declared.boundaries {
                    if matches(pattern, &function.name) {
                        self.unused.remove(pattern);
                    }
                }
                continue;
            }
            let mut found = Vec::new();
            for call in &self.graph.calls[index] {
                let callee = &self.binary.functions[call.to].name;
                let Some((_, what)) = FORBIDDEN.iter().find(|(name, _)| matches(name, callee))
                else {
                    continue;
                };
                let places = self.image.places(call.at);
                let names = || places.iter().filter_map(|place| place.function.as_deref());
                let mut rows = self.declared.allowed.iter();
                match rows.find(|(pattern, _)| names().any(|name| matches(pattern, name))) {
                    Some((pattern, _)) => {
                        self.unused.remove(pattern);
                    }
                    None => found.push((format!("{what}: {callee}"), call.at)),
                }
            }
            let mut inlined = BTreeSet::new();
            for instruction in &function.code {
                let places = self.image.places(instruction.ip());
                for place in places.iter().filter(|place| place.inlined) {
                    let name = place.function.as_deref().unwrap_or_default();
                    let forbidden = FORBIDDEN.iter().find(|(pattern, _)| matches(pattern, name));
                    if let Some((_, what)) = forbidden
                        && inlined.insert(name.to_owned())
                    {
                        found.push((format!("{what}: {name}, inlined"), instruction.ip()));
                    }
                }
                if waits(instruction) {
                    let names = places.iter().filter_map(|place| place.function.as_deref());
                    let row = self
                        .declared
                        .waits
                        .iter()
                        .find(|(pattern, _)| names.clone().any(|name| matches(pattern, name)));
                    match row {
                        Some((pattern, _)) => {
                            self.unused.remove(pattern);
                        }
                        None => found.push((
                            format!(
                                "waits ({:?}), and what ends it is not declared",
                                instruction.mnemonic()
                            ),
                            instruction.ip(),
                        )),
                    }
                }
            }
            for (what, at) in found {
                self.fault(&what, index, at, reached);
            }
        }
    }

    fn fault(&mut self, what: &str, from: usize, at: u64, reached: &Reached) {
        let mut text = what.to_owned();
        for place in self.image.places(at) {
            text.push_str(&format!("\n    at {}", show(&place)));
        }
        let names: Vec<_> = way(reached, from)
            .into_iter()
            .map(|index| self.binary.functions[index].name.clone())
            .collect();
        text.push_str(&format!("\n    reached by {}", names.join("\n      → ")));
        self.faults.push(text);
    }

    /// The deepest stack of all entries, in relation to what it has to fit into.
    fn measure(&mut self, stop: &BTreeSet<usize>) -> Result<(u64, u64, Vec<usize>)> {
        let sizes = stacks::sizes(self.path)?;
        let functions = self.binary.functions.iter().enumerate();
        let again: BTreeMap<usize, usize> = functions
            .filter_map(|(index, function)| {
                let group = AGAIN.iter().position(|(name, ..)| matches(name, &function.name))?;
                Some((index, group))
            })
            .collect();
        let rounds: Vec<usize> = AGAIN.iter().map(|(_, rounds, _)| *rounds).collect();
        let mut tightest = (0, 1, Vec::new());
        for (name, before, stack) in self.declared.entries {
            let room = *sizes.get(*stack).with_context(|| format!("no stack named {stack}"))?;
            for entry in self.binary.named(name).collect::<Vec<_>>() {
                match self.graph.deepest(entry, stop, &again, &rounds) {
                    Ok(deepest) => {
                        let bytes = before + deepest.bytes;
                        if bytes > room - room * SPARE_PERCENT / 100 {
                            self.faults.push(format!(
                                "{name}: {bytes} bytes of stack, and {room} are there"
                            ));
                        }
                        if bytes * tightest.1 > tightest.0 * room {
                            tightest = (bytes, room, deepest.path);
                        }
                    }
                    Err(circle) => {
                        let names: Vec<_> = circle
                            .iter()
                            .map(|index| &*self.binary.functions[*index].name)
                            .collect();
                        self.faults.push(format!("calls itself: {}", names.join("\n      → ")));
                    }
                }
            }
        }
        Ok(tightest)
    }

    /// Distinct lines of source: ours, and those of libraries.
    fn lines(&self, reached: &Reached, stop: &BTreeSet<usize>) -> (usize, usize) {
        let mut files: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for index in reached.keys().filter(|index| !stop.contains(index)) {
            for instruction in &self.binary.functions[*index].code {
                for place in self.image.places(instruction.ip()) {
                    if let (Some(file), Some(line)) = (place.file, place.line) {
                        files.entry(file).or_default().insert(line);
                    }
                }
            }
        }
        let count = |ours: bool| {
            let of = files.iter().filter(|(file, _)| is_ours(file) == ours);
            of.map(|(_, lines)| lines.len()).sum()
        };
        (count(true), count(false))
    }
}

/// Where control goes from an instruction.
enum Leads {
    /// To the next instruction, or elsewhere in the same function.
    Inside,
    /// To another function.
    To(Vec<usize>),
    /// Through a pointer.
    Anywhere,
}

/// Whether an instruction is one that code executes only to wait.
fn waits(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Pause | Mnemonic::Hlt)
}

fn is_ours(file: &str) -> bool {
    ["appliance/", "capture/"].iter().any(|folder| file.starts_with(folder))
}

fn show(place: &Place) -> String {
    let function = place.function.as_deref().unwrap_or("?");
    match (&place.file, place.line) {
        (Some(file), Some(line)) => format!("{function} ({file}:{line})"),
        _ => function.to_owned(),
    }
}

/// Whether `name` is what `pattern` describes; `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    let mut starts = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    starts.any(|at| matches(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("core::panicking::*", "core::panicking::panic_fmt"));
        assert!(matches("* as core::fmt::*>::fmt", "<u64 as core::fmt::Display>::fmt"));
        assert!(matches("machine::lock::Lock<*>::lock", "machine::lock::Lock<T>::lock"));
        assert!(!matches("machine::lock::Lock<*>::lock", "machine::lock::Lock<T>::locked"));
        assert!(!matches("core::panicking::*", "kernel::panicking"));
        assert!(matches("*", ""));
    }
}
