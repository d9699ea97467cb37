//! Who calls whom: what is reached from an entry, by which way, and how deep the stack gets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A call, or a jump that ends one function in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Address of the instruction.
    pub at: u64,
    /// The function called.
    pub to: usize,
    /// Stack in use when that begins, in bytes, its return address included.
    pub depth: u64,
}

/// The calls of each function, by its number.
#[derive(Debug, Default)]
pub struct Graph {
    /// Calls of each function.
    pub calls: Vec<Vec<Call>>,
    /// Most stack that each function uses itself.
    pub own: Vec<u64>,
}

/// What was reached, and from where each function was reached first.
pub type Reached = BTreeMap<usize, Option<usize>>;

/// The deepest stack, and the functions along it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deepest {
    /// Bytes.
    pub bytes: u64,
    /// From the entry to the innermost function.
    pub path: Vec<usize>,
}

impl Graph {
    /// Everything that is reached from `entries`; `stop` is reached, but not looked into.
    pub fn reach(&self, entries: &[usize], stop: &BTreeSet<usize>) -> Reached {
        let mut reached: Reached = entries.iter().map(|entry| (*entry, None)).collect();
        let mut queue: VecDeque<usize> = entries.iter().copied().collect();
        while let Some(from) = queue.pop_front() {
            if stop.contains(&from) {
                continue;
            }
            for call in &self.calls[from] {
                reached.entry(call.to).or_insert_with(|| {
                    queue.push_back(call.to);
                    Some(from)
                });
            }
        }
        reached
    }

    /// The deepest stack below `entry`. `again` puts functions that are entered more than once
    /// along one path into groups; `rounds` is how often each group is entered at most.
    ///
    /// # Errors
    /// The functions of a circle without one of those: nobody knows how often it is gone
    /// round.
    pub fn deepest(
        &self,
        entry: usize,
        stop: &BTreeSet<usize>,
        again: &BTreeMap<usize, usize>,
        rounds: &[usize],
    ) -> Result<Deepest, Vec<usize>> {
        let mut search = Search { graph: self, stop, again, known: BTreeMap::new(), open: vec![] };
        search.below(entry, rounds)
    }
}

/// A function, and how often each group may still be entered.
type State = (usize, Vec<usize>);

struct Search<'a> {
    graph: &'a Graph,
    stop: &'a BTreeSet<usize>,
    again: &'a BTreeMap<usize, usize>,
    known: BTreeMap<State, Deepest>,
    /// Where the search stands, from the entry on.
    open: Vec<State>,
}

impl Search<'_> {
    fn below(&mut self, function: usize, left: &[usize]) -> Result<Deepest, Vec<usize>> {
        let here = (function, left.to_vec());
        if let Some(known) = self.known.get(&here) {
            return Ok(known.clone());
        }
        if let Some(from) = self.open.iter().position(|open| *open == here) {
            return Err(self.open[from..].iter().map(|(function, _)| *function).collect());
        }
        self.open.push(here.clone());
        let mut deepest = Deepest { bytes: self.graph.own[function], path: vec![function] };
        if !self.stop.contains(&function) {
            for call in &self.graph.calls[function] {
                let mut left = left.to_vec();
                match self.again.get(&call.to).and_then(|group| left.get_mut(*group)) {
                    Some(0) => continue,
                    Some(rounds) => *rounds -= 1,
                    None => {}
                }
                let below = self.below(call.to, &left)?;
                if call.depth + below.bytes > deepest.bytes {
                    deepest.bytes = call.depth + below.bytes;
                    deepest.path = [&[function], &below.path[..]].concat();
                }
            }
        }
        self.open.pop();
        self.known.insert(here, deepest.clone());
        Ok(deepest)
    }
}

/// The way from an entry to `function`, both included.
pub fn way(reached: &Reached, function: usize) -> Vec<usize> {
    let mut way = vec![function];
    while let Some(Some(from)) = reached.get(&way[way.len() - 1]) {
        way.push(*from);
    }
    way.reverse();
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each function uses 10 bytes, each call leaves 18 behind.
    fn graph(calls: &[&[usize]]) -> Graph {
        let call = |to: &usize| Call { at: 0, to: *to, depth: 18 };
        Graph {
            calls: calls.iter().map(|to| to.iter().map(call).collect()).collect(),
            own: vec![10; calls.len()],
        }
    }

    fn set(functions: &[usize]) -> BTreeSet<usize> {
        functions.iter().copied().collect()
    }

    #[test]
    fn the_way_to_a_function_is_the_shortest() {
        let graph = graph(&[&[1, 2], &[3], &[1], &[4], &[], &[4]]);
        let reached = graph.reach(&[0], &set(&[]));
        assert_eq!(reached.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(way(&reached, 4), [0, 1, 3, 4]);
    }

    #[test]
    fn behind_a_boundary_nothing_is_reached() {
        let graph = graph(&[&[1], &[2], &[]]);
        let reached = graph.reach(&[0], &set(&[1]));
        assert_eq!(reached.keys().copied().collect::<Vec<_>>(), [0, 1]);
        let deepest = graph.deepest(0, &set(&[1]), &BTreeMap::new(), &[]).unwrap();
        assert_eq!(deepest, Deepest { bytes: 28, path: vec![0, 1] });
    }

    #[test]
    fn the_deepest_stack_is_along_the_longest_path() {
        let graph = graph(&[&[3, 1], &[2], &[3], &[]]);
        let deepest = graph.deepest(0, &set(&[]), &BTreeMap::new(), &[]).unwrap();
        assert_eq!(deepest, Deepest { bytes: 3 * 18 + 10, path: vec![0, 1, 2, 3] });
    }

    #[test]
    fn a_circle_is_an_error_unless_its_rounds_are_counted() {
        let graph = graph(&[&[1], &[2], &[1]]);
        assert_eq!(graph.deepest(0, &set(&[]), &BTreeMap::new(), &[]), Err(vec![1, 2]));
        let deepest = graph.deepest(0, &set(&[]), &BTreeMap::from([(1, 0)]), &[2]).unwrap();
        assert_eq!(deepest.path, [0, 1, 2, 1, 2]);
        assert_eq!(deepest.bytes, 4 * 18 + 10);
    }
}
