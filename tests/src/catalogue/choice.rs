//! Which scenarios are run: all of them, or a few that stand for all.

use std::collections::BTreeSet;

use super::faults::{CRASHES, Class, Crash, WEDGES, Wedge};
use super::{Scenario, Side};

/// The numbers of CPUs.
const CPUS: [u32; 4] = [1, 2, 4, 8];
const SIDES: [Side; 2] = [Side::Bsp, Side::Ap];

/// One cell of the matrix.
type Cell = (&'static Crash, Option<&'static Wedge>, u32, Side);

fn cells() -> impl Iterator<Item = Cell> {
    let wedges = || std::iter::once(None).chain(WEDGES.iter().map(Some));
    CRASHES.iter().flat_map(move |crash| {
        wedges().flat_map(move |wedge| {
            CPUS.into_iter()
                .flat_map(move |cpus| SIDES.into_iter().map(move |side| (crash, wedge, cpus, side)))
        })
    })
}

/// Every crash with every wedge and with none, on 1, 2, 4 and 8 CPUs, on the boot processor
/// and on another; also those that mean nothing, which say so themselves.
pub fn all() -> impl Iterator<Item = (Scenario, Side)> {
    cells().map(|(crash, wedge, cpus, side)| (Scenario::new(crash, wedge, cpus, side), side))
}

/// What a cell shows: each fault by itself, and in pairs its class, its wedge, the number of
/// CPUs and the side. More faults with more wedges than a test run has time for would
/// repeat themselves: the faults of a class take one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Shows {
    Crash(&'static str),
    ClassWedge(Class, Option<&'static str>),
    ClassCpus(Class, u32),
    ClassSide(Class, Side),
    WedgeCpus(Option<&'static str>, u32),
    WedgeSide(Option<&'static str>, Side),
    CpusSide(u32, Side),
}

fn shows((crash, wedge, cpus, side): Cell) -> [Shows; 7] {
    let (class, wedge) = (crash.class, wedge.map(|wedge| wedge.name));
    [
        Shows::Crash(crash.name),
        Shows::ClassWedge(class, wedge),
        Shows::ClassCpus(class, cpus),
        Shows::ClassSide(class, side),
        Shows::WedgeCpus(wedge, cpus),
        Shows::WedgeSide(wedge, side),
        Shows::CpusSide(cpus, side),
    ]
}

/// The few: every pair that has a meaning is in one of them, every fault is. The same ones
/// each time.
#[must_use]
pub fn few() -> Vec<(Scenario, Side)> {
    let sensible = |&(crash, wedge, cpus, side): &Cell| {
        Scenario::new(crash, wedge, cpus, side).senseless().is_none()
    };
    let cells: Vec<Cell> = cells().filter(sensible).collect();
    let mut missing: BTreeSet<Shows> = cells.iter().copied().flat_map(shows).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        // The one that shows most of what is still missing; the first of several, and the
        // one with fewer CPUs, which is faster.
        let gain = |cell: &Cell| {
            let new = shows(*cell).iter().filter(|shown| missing.contains(shown)).count();
            (new, u32::MAX - cell.2)
        };
        let Some(best) = cells.iter().rev().max_by_key(|cell| gain(cell)).copied() else { break };
        for shown in shows(best) {
            missing.remove(&shown);
        }
        chosen.push(best);
    }
    let scenario =
        |(crash, wedge, cpus, side): Cell| (Scenario::new(crash, wedge, cpus, side), side);
    chosen.into_iter().map(scenario).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_are_few_and_fixed_and_all_have_a_meaning() {
        let few = few();
        assert!(few.len() <= 80, "{} scenarios", few.len());
        assert!(few.iter().all(|(scenario, _)| scenario.senseless().is_none()));
        let names = |list: &[(Scenario, Side)]| {
            list.iter().map(|(scenario, _)| scenario.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&few), names(&super::few()));
        for crash in CRASHES {
            assert!(few.iter().any(|(scenario, _)| scenario.crash.name == crash.name));
        }
    }

    #[test]
    fn the_matrix_names_what_has_no_meaning() {
        let all: Vec<_> = all().collect();
        assert_eq!(all.len(), CRASHES.len() * (WEDGES.len() + 1) * CPUS.len() * SIDES.len());
        let reason = |text: &str| {
            let cell = all.iter().find(|(scenario, _)| scenario.to_string() == text);
            cell.unwrap_or_else(|| panic!("{text} is not in the matrix")).0.senseless()
        };
        assert!(reason("hard-lockup,cpu=0 on 1 CPUs").is_some());
        assert!(reason("soft-lockup,cpu=0 on 1 CPUs").is_none());
        assert!(reason("panic,cpu=0 + irqs-off,cpu=1 on 1 CPUs").is_some());
        assert!(reason("panic,cpu=0 + bsp-nmi-blocked,cpu=0 on 4 CPUs").is_some());
        assert!(reason("panic,cpu=1 + irqs-off,cpu=0 on 2 CPUs").is_none());
        assert!(reason("panic-during-stop,cpu=1 + irqs-off,cpu=0 on 2 CPUs").is_some());
    }
}
