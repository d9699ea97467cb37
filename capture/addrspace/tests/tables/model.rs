//! Random mappings of both architectures, compared with a model that knows no tables: a list
//! of pages with their addresses, sizes and rights.

use crate::memory::{Builder, Ram};
use epitaph_addrspace::{AArch64, Access, AddressSpace, Extent, Rights, Run, WalkError, X86, x86};
use proptest::prelude::*;

/// Page of the model.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    first: u64,
    /// 0, 1, 2: 4 KiB, 2 MiB, 1 GiB.
    height: u32,
    physical: u64,
    write: bool,
    user: bool,
    execute: bool,
}

impl Mapping {
    fn size(&self) -> u64 {
        1 << (12 + 9 * self.height)
    }

    fn last(&self) -> u64 {
        self.first + (self.size() - 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    X86Four,
    X86Five,
    Arm39,
    Arm48,
}

impl Kind {
    fn is_x86(self) -> bool {
        matches!(self, Self::X86Four | Self::X86Five)
    }

    /// Bits of an address below the sign.
    fn bits(self) -> u32 {
        match self {
            Self::X86Four => 47,
            Self::X86Five => 56,
            Self::Arm39 => 39,
            Self::Arm48 => 48,
        }
    }

    fn top(self) -> u32 {
        match self {
            Self::X86Five => 4,
            Self::Arm39 => 2,
            Self::X86Four | Self::Arm48 => 3,
        }
    }

    fn builder(self, root: u64) -> Builder {
        Builder::at(root, self.top(), if self.is_x86() { 7 } else { 3 })
    }

    /// Returns the address space; `upper` is the root of the upper half of AArch64.
    fn space(self, lower: u64, upper: u64) -> AddressSpace {
        let size = |bits: u64| (64 - bits) | (64 - bits) << 16;
        let arm = |bits| {
            let tcr = 2 << 30 | 5 << 32 | size(bits);
            AArch64::from_registers(lower, upper, tcr, 1, 5).expect("supported")
        };
        let x86 = |cr4| {
            let limits = x86::Limits::default();
            X86::from_registers(1 << 31, lower, cr4, 3 << 10, limits).expect("long mode")
        };
        match self {
            Self::X86Four => x86(0),
            Self::X86Five => x86(1 << 12),
            Self::Arm39 => arm(39),
            Self::Arm48 => arm(48),
        }
    }

    fn entry(self, mapping: &Mapping) -> u64 {
        let Mapping { height, physical, write, user, execute, .. } = *mapping;
        if self.is_x86() {
            let page = if height > 0 { 1 << 7 } else { 0 };
            physical
                | 1
                | page
                | u64::from(write) << 1
                | u64::from(user) << 2
                | u64::from(!execute) << 63
        } else {
            let kind = if height > 0 { 1 } else { 3 };
            physical
                | kind
                | u64::from(user) << 6
                | u64::from(!write) << 7
                | u64::from(!execute) << 53
                | u64::from(!execute) << 54
        }
    }

    fn rights(self, mapping: &Mapping) -> Rights {
        let Mapping { write, user, execute, .. } = *mapping;
        let kernel_execute = execute && (self.is_x86() || !(user && write));
        let user_execute = execute && (user || !self.is_x86());
        Rights {
            kernel: Access { read: true, write, execute: kernel_execute },
            user: Access { read: user, write: user && write, execute: user_execute },
        }
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::X86Four, Kind::X86Five, Kind::Arm39, Kind::Arm48])
}

/// Places for a few neighbouring pages, so that runs and shared tables are frequent: the
/// bottom, the top and anywhere in either half.
fn mapping() -> impl Strategy<Value = (bool, u64, u32, u64, bool, bool, bool)> {
    let place = prop_oneof![0..6u64, any::<u64>(), (0..6u64).prop_map(|back| u64::MAX - back)];
    let physical = prop_oneof![0..8u64, any::<u64>()];
    (any::<bool>(), place, 0..3u32, physical, any::<bool>(), any::<bool>(), any::<bool>())
}

/// Makes mappings of the random numbers; what overlaps an earlier one is left out.
fn model(kind: Kind, random: &[(bool, u64, u32, u64, bool, bool, bool)]) -> Vec<Mapping> {
    let mut model: Vec<Mapping> = Vec::new();
    for &(upper, place, height, physical, write, user, execute) in random {
        let shift = 12 + 9 * height;
        let half = if upper { u64::MAX << kind.bits() } else { 0 };
        let inside = (1 << kind.bits()) - 1;
        let first = half | (place << shift) & inside;
        // Consecutive places get consecutive memory now and then.
        let physical = (physical.wrapping_add(place) << shift) & ((1 << 47) - 1);
        let new = Mapping { first, height, physical, write, user, execute };
        if model.iter().all(|old| new.last() < old.first || old.last() < new.first) {
            model.push(new);
        }
    }
    model.sort_by_key(|mapping| mapping.first);
    model
}

/// Writes tables for the model. The halves of AArch64 have a root each, in the same memory.
fn build(kind: Kind, model: &[Mapping]) -> (AddressSpace, Ram) {
    let mut lower = kind.builder(1 << 20);
    let mut upper = kind.builder(1 << 40);
    for mapping in model {
        let second = !kind.is_x86() && mapping.first >> 63 == 1;
        let tables = if second { &mut upper } else { &mut lower };
        tables.map(mapping.first, mapping.height, kind.entry(mapping));
    }
    let space = kind.space(lower.root, upper.root);
    lower.ram.absorb(&upper.ram);
    (space, lower.ram)
}

/// Returns what a listing has to give: neighbours in both address spaces with the same rights
/// are one run.
fn expected_runs(kind: Kind, model: &[Mapping], first: u64, last: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for mapping in model.iter().filter(|mapping| mapping.last() >= first && mapping.first <= last) {
        let start = mapping.first.max(first);
        let end = mapping.last().min(last);
        let physical = mapping.physical + (start - mapping.first);
        let rights = kind.rights(mapping);
        match runs.last_mut() {
            Some(run)
                if run.last + 1 == start
                    && run.rights == rights
                    && run.physical + (run.last - run.first) + 1 == physical =>
            {
                run.last = end;
            }
            _ => runs.push(Run { first: start, last: end, physical, rights, memory_type: 0 }),
        }
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn translations_match_the_model(
        kind in kind(),
        random in prop::collection::vec(mapping(), 0..24),
        anywhere in prop::collection::vec(any::<u64>(), 8),
        offset in any::<u64>(),
    ) {
        let model = model(kind, &random);
        let (space, ram) = build(kind, &model);
        let ram = &ram;
        ram.reads();
        let edges = model.iter().flat_map(|mapping| {
            let inside = mapping.first + (offset & (mapping.size() - 1));
            let (before, behind) = (mapping.first.wrapping_sub(1), mapping.last().wrapping_add(1));
            [before, mapping.first, inside, mapping.last(), behind]
        });
        for address in edges.chain(anywhere) {
            let found = space.translate(ram, address);
            prop_assert!(ram.reads() <= 5);
            let mapping = model
                .iter()
                .find(|mapping| (mapping.first..=mapping.last()).contains(&address));
            let sign = address as i64 >> kind.bits();
            match (found, mapping) {
                (Ok(walk), Some(mapping)) => {
                    prop_assert_eq!(walk.physical, mapping.physical + (address - mapping.first));
                    prop_assert_eq!(walk.page_size, mapping.size());
                    prop_assert_eq!(walk.rights, kind.rights(mapping));
                    let levels = kind.top() - mapping.height + 1;
                    prop_assert_eq!(walk.steps.len(), levels as usize);
                }
                (Err(WalkError::NonCanonical { .. }), None) => prop_assert!(sign != 0 && sign != -1),
                (Err(WalkError::NotPresent { .. }), None) => prop_assert!(sign == 0 || sign == -1),
                other => prop_assert!(false, "{address:#x}: {other:?}"),
            }
        }
    }

    #[test]
    fn listings_match_the_model(
        kind in kind(),
        random in prop::collection::vec(mapping(), 0..24),
        cut in any::<(u64, u64)>(),
        reads in 5..4000u32,
    ) {
        let model = model(kind, &random);
        let (space, ram) = build(kind, &model);
        let ram = &ram;
        // All of the address space, and a part of it.
        let part = (cut.0.min(cut.1), cut.0.max(cut.1));
        for (first, last) in [(0, u64::MAX), part] {
            ram.reads();
            let mut runs = Vec::new();
            for extent in space.runs(ram, first, last, u32::MAX) {
                match extent {
                    Extent::Mapped(run) => runs.push(run),
                    Extent::Damaged { .. } => prop_assert!(false, "{extent:?}"),
                }
            }
            let expected = expected_runs(kind, &model, first, last);
            prop_assert_eq!(&runs, &expected);
            // Every entry is read at most once: two roots, and the tables above each page.
            let tables = 2 + model.len() * kind.top() as usize;
            prop_assert!(ram.reads() <= 512 * tables);

            // In portions, the same runs come in pieces.
            let mut pieces: Vec<Run> = Vec::new();
            let mut next = Some(first);
            while let Some(start) = next {
                let mut listing = space.runs(ram, start, last, reads);
                for extent in &mut listing {
                    if let Extent::Mapped(run) = extent {
                        pieces.push(run);
                    }
                }
                prop_assert!(ram.reads() <= reads as usize);
                next = listing.stopped_at();
                prop_assert!(next.is_none_or(|next| next > start));
            }
            let mut joined: Vec<Run> = Vec::new();
            for piece in pieces {
                match joined.last_mut() {
                    Some(run) if expected.iter().any(|whole| {
                        whole.first == run.first && whole.last >= piece.last
                    }) => {
                        prop_assert_eq!(run.last + 1, piece.first);
                        prop_assert_eq!(run.physical + (piece.first - run.first), piece.physical);
                        run.last = piece.last;
                    }
                    _ => joined.push(piece),
                }
            }
            prop_assert_eq!(joined, expected);
        }
    }
}
