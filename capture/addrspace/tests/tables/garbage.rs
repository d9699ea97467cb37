//! Page tables of random words, tables that point to themselves and to each other, and the
//! ends of the address space: every answer comes after a bounded number of reads, without a
//! panic or an overflow (these tests are built with overflow checks).

use std::cell::Cell;

use epitaph_addrspace::{
    AArch64, AddressSpace, Extent, MAX_LEVELS, PhysicalMemory, ReadReason, Run, X86, x86,
};
use proptest::prelude::*;

/// Memory that has a word at every address, made of the address alone.
#[derive(Clone, Debug)]
struct Garbage {
    seed: u64,
    /// Bits that every word has, for example "present".
    set: u64,
    /// Bits that a word may have.
    keep: u64,
    /// Reads at addresses whose hash is a multiple of this fail.
    fails: u64,
    reads: Cell<usize>,
    /// Highest address that was read, for the physical width.
    highest: Cell<u64>,
}

/// Error of the reader.
#[derive(Debug)]
struct Damaged;

impl Garbage {
    fn word(&self, address: u64) -> u64 {
        // The finisher of splitmix64, public domain.
        let mut hash = self.seed ^ address;
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ hash >> 31
    }
}

impl PhysicalMemory for Garbage {
    type Error = Damaged;

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Damaged> {
        self.reads.set(self.reads.get() + 1);
        let last = address.checked_add(buffer.len() as u64 - 1).expect("a read that wraps");
        self.highest.set(self.highest.get().max(last));
        let hash = self.word(address);
        if hash.wrapping_mul(3).is_multiple_of(self.fails) {
            return Err(Damaged);
        }
        let word = hash & self.keep | self.set;
        buffer.iter_mut().zip(word.to_le_bytes().iter().cycle()).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

fn garbage() -> impl Strategy<Value = Garbage> {
    // Anything; always a table or a page; addresses among a few pages, so that tables point to
    // themselves and to each other; every entry a link to the table at 0.
    let set = prop::sample::select(vec![0, 1, 3, 7, 0x83]);
    let few = 0xffff_0000_0000_7fff;
    let keep = prop::sample::select(vec![u64::MAX, few, few & !(1 << 7), 0x7fff & !(1 << 7), 0]);
    let fails = prop::sample::select(vec![2, 16, 1 << 40]);
    (any::<u64>(), set, keep, fails).prop_map(|(seed, set, keep, fails)| Garbage {
        seed,
        set,
        keep,
        fails,
        reads: Cell::new(0),
        highest: Cell::new(0),
    })
}

/// Returns an address space from arbitrary registers, with paging on more often than not.
fn space() -> impl Strategy<Value = AddressSpace> {
    let registers = any::<[u64; 5]>();
    let (bits, c_bit) = (any::<u8>(), prop_oneof![Just(0), any::<u64>()]);
    let x86 = (registers, bits, c_bit).prop_map(|([cr0, cr3, cr4, efer, _], bits, c_bit)| {
        let limits = x86::Limits { physical_bits: bits, encryption_mask: c_bit };
        let cr3 = if bits < 128 { cr3 & 0xffff_ffff } else { cr3 };
        X86::from_registers(cr0 | 1 << 31, cr3, cr4, efer | 1 << 10, limits).expect("long mode")
    });
    let size = prop_oneof![Just(16), Just(25), 0..64u64];
    let arm = (any::<[u64; 5]>(), size.clone(), size, any::<bool>()).prop_map(
        |([ttbr0, ttbr1, tcr, sctlr, id], size0, size1, sound)| {
            let tcr = if sound { tcr & (3 << 37) | 2 << 30 | 5 << 32 } else { tcr & !0x3f_003f };
            let id = if sound { 5 } else { id };
            let tcr = tcr & !0x3f_003f | size0 | size1 << 16;
            let sctlr = sctlr & !(1 << 25) | 1;
            AArch64::from_registers(ttbr0, ttbr1, tcr, sctlr, id).expect("little-endian")
        },
    );
    prop_oneof![x86, arm]
}

/// Returns addresses of which many are at the edges of the halves.
fn address() -> impl Strategy<Value = u64> {
    let edge = prop::sample::select(vec![
        0,
        1 << 39,
        1 << 47,
        1 << 48,
        1 << 56,
        1 << 63,
        u64::MAX << 39,
        u64::MAX << 47,
        u64::MAX << 48,
        u64::MAX << 56,
    ]);
    prop_oneof![
        any::<u64>(),
        (edge, 0..0x4000u64).prop_map(|(edge, off)| edge.wrapping_add(off).wrapping_sub(0x2000)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_translation_ends(space in space(), memory in garbage(), address in address()) {
        let found = space.translate(&memory, address);
        prop_assert!(memory.reads.get() <= MAX_LEVELS);
        prop_assert!(memory.highest.get() < 1 << 52);
        if let Ok(walk) = found {
            prop_assert_eq!(walk.steps.len(), memory.reads.get());
            prop_assert!(walk.physical < 1 << 52);
            prop_assert_eq!(walk.physical % walk.page_size, address % walk.page_size);
        }
    }

    #[test]
    fn bytes_end(
        space in space(), memory in garbage(), address in address(), length in 0..0x5000usize,
    ) {
        let mut bytes = vec![0; length];
        let result = space.read(&memory, address, &mut bytes);
        // The first and the last page may be read in part.
        let pages = length / 4096 + 2;
        prop_assert!(memory.reads.get() <= pages * (MAX_LEVELS + 1));
        if let Err(error) = result {
            prop_assert!(error.done < length);
            prop_assert_eq!(error.address, address.wrapping_add(error.done as u64));
            let end = matches!(error.reason, ReadReason::EndOfSpace);
            prop_assert_eq!(end, error.address == 0 && error.done > 0);
        }
    }

    #[test]
    fn a_listing_ends_and_resumes(
        space in space(), memory in garbage(), ends in (address(), address()), reads in 0..600u32,
    ) {
        let (first, last) = (ends.0.min(ends.1), ends.0.max(ends.1));
        let mut next = Some(first);
        let mut behind = None;
        for _ in 0..20 {
            let Some(start) = next else { break };
            memory.reads.set(0);
            let mut listing = space.runs(&memory, start, last, reads);
            while let Some(extent) = listing.next() {
                // In order, inside of the range, without overlap.
                prop_assert!(extent.first() <= extent.last());
                prop_assert!(extent.first() >= start && extent.last() <= last);
                prop_assert!(behind.is_none_or(|behind| extent.first() > behind));
                behind = Some(extent.last());
                prop_assert!(listing.stopped_at().is_none_or(|next| next > extent.last()));
            }
            let spent = memory.reads.get();
            prop_assert!(spent <= (reads as usize).max(MAX_LEVELS));
            prop_assert_eq!(listing.reads_left() as usize + spent, (reads as usize).max(MAX_LEVELS));
            next = listing.stopped_at();
            prop_assert!(next.is_none_or(|next| next > start && next <= last));
            prop_assert!(next.is_none_or(|next| behind.is_none_or(|behind| next > behind)));
        }
    }

    #[test]
    fn a_listing_says_what_translations_say(
        space in space(), memory in garbage(), first in address(), length in 0..0x40_0000u64,
        offsets in prop::collection::vec(any::<u64>(), 8),
    ) {
        let last = first.saturating_add(length);
        let extents: Vec<_> = space.runs(&memory, first, last, 100_000).collect();
        for offset in offsets {
            let address = first + offset % (last - first + 1);
            // A tagged address can be translated, but is not listed.
            let plain = (address << 8) as i64 >> 8 == address as i64;
            if matches!(space, AddressSpace::AArch64(_)) && !plain {
                continue;
            }
            let extent = extents.iter().find(|e| e.first() <= address && address <= e.last());
            match (space.translate(&memory, address), extent) {
                (Ok(walk), Some(Extent::Mapped(Run { first, physical, rights, .. }))) => {
                    prop_assert_eq!(walk.physical, physical + (address - first));
                    prop_assert_eq!(walk.rights, *rights);
                }
                (Err(error), None) => prop_assert!(error.is_unmapped()),
                (Err(found), Some(Extent::Damaged { error, .. })) => {
                    prop_assert!(!found.is_unmapped());
                    prop_assert_eq!(found.level(), error.level());
                }
                (found, extent) => prop_assert!(false, "{address:#x}: {found:?}, {extent:?}"),
            }
        }
    }
}

/// Memory whose every word is the same: a table that is its own entry at each index.
struct Mirror {
    word: u64,
    reads: Cell<usize>,
}

impl PhysicalMemory for Mirror {
    type Error = Damaged;

    fn read(&self, _: u64, buffer: &mut [u8]) -> Result<(), Damaged> {
        self.reads.set(self.reads.get() + 1);
        buffer.iter_mut().zip(self.word.to_le_bytes()).for_each(|(to, from)| *to = from);
        Ok(())
    }
}

#[test]
fn a_table_that_points_to_itself_is_read_once_per_level() {
    let x86 = |cr4| X86::from_registers(1 << 31, 0x1000, cr4, 1 << 10, x86::Limits::default());
    let arm = |bits: u64| {
        let tcr = 2 << 30 | 5 << 32 | (64 - bits) | (64 - bits) << 16;
        AArch64::from_registers(0x1000, 0x1000, tcr, 1, 5)
    };
    let memory = Mirror { word: 0x1003, reads: Cell::new(0) };
    for (space, levels) in [(x86(0), 4), (x86(1 << 12), 5), (arm(39), 3), (arm(48), 4)] {
        let space = space.expect("supported");
        for address in [0, 0x1234_5678, u64::MAX] {
            let walk = space.translate(&memory, address).expect("the table maps itself");
            assert_eq!(walk.physical, 0x1000 | address & 0xfff);
            assert_eq!(memory.reads.take(), levels);
        }
        // The whole address space is mapped, 4 KiB at a time: the listing stops in time.
        let mut listing = space.runs(&memory, 0, u64::MAX, 1000);
        // One read per page, but for the way down to the first lowest table and the entry that
        // leads to the second, after 512 pages.
        assert_eq!(listing.by_ref().count(), 1000 - (levels - 1) - 1);
        assert_eq!(memory.reads.take(), 1000);
        assert!(listing.stopped_at().is_some());
    }
}
