//! A set of CPUs, of fixed size.

/// Most CPUs a set can hold; indices are below it.
pub const MAX_CPUS: u32 = 512;

const WORDS: usize = MAX_CPUS as usize / 64;

/// A set of CPU indices below [`MAX_CPUS`].
///
/// An index out of range is in no set, and adding it changes nothing: crash code asks
/// with numbers it cannot vouch for, and must not panic over them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CpuMask {
    words: [u64; WORDS],
}

impl CpuMask {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [0; WORDS] }
    }

    /// CPUs `0..count`.
    #[must_use]
    pub const fn first(count: u32) -> Self {
        let mut mask = Self::new();
        let mut cpu = 0;
        while cpu < count && cpu < MAX_CPUS {
            mask.set(cpu);
            cpu += 1;
        }
        mask
    }

    /// The set with `cpu` in it as well.
    #[must_use]
    pub const fn with(mut self, cpu: u32) -> Self {
        self.set(cpu);
        self
    }

    /// Adds `cpu`.
    pub const fn set(&mut self, cpu: u32) {
        if cpu < MAX_CPUS {
            self.words[cpu as usize / 64] |= 1 << (cpu % 64);
        }
    }

    /// Takes `cpu` out.
    pub const fn clear(&mut self, cpu: u32) {
        if cpu < MAX_CPUS {
            self.words[cpu as usize / 64] &= !(1 << (cpu % 64));
        }
    }

    /// Whether `cpu` is in the set.
    #[must_use]
    pub const fn contains(&self, cpu: u32) -> bool {
        cpu < MAX_CPUS && self.words[cpu as usize / 64] >> (cpu % 64) & 1 != 0
    }

    /// How many CPUs are in the set.
    #[must_use]
    #[inline(never)] // Long where the processor is not known to count bits.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether no CPU is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == [0; WORDS]
    }

    /// The CPUs that are in this set and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine & !theirs)
    }

    /// The CPUs that are in both sets.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine & theirs)
    }

    /// The CPUs that are in either set.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine | theirs)
    }

    /// The set as bits: CPU `n` is bit `n % 64` of word `n / 64`.
    #[must_use]
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// The CPUs in the set, lowest first.
    #[must_use]
    pub const fn iter(&self) -> Iter {
        Iter { left: *self }
    }

    fn combine(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self { words: core::array::from_fn(|i| with(self.words[i], other.words[i])) }
    }
}

impl core::fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self).finish()
    }
}

/// The set as people write it: `1-3,7`; `none` when it is empty.
impl core::fmt::Display for CpuMask {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut left = *self;
        let mut separator = "";
        while let Some(start) = left.iter().next() {
            let mut end = start;
            left.clear(start);
            while left.contains(end + 1) {
                end += 1;
                left.clear(end);
            }
            write!(f, "{separator}{start}")?;
            if end > start {
                write!(f, "-{end}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl IntoIterator for &CpuMask {
    type Item = u32;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

/// The CPUs of a [`CpuMask`], lowest first.
#[derive(Clone, Debug)]
pub struct Iter {
    left: CpuMask,
}

impl Iterator for Iter {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let word = self.left.words.iter().position(|&word| word != 0)?;
        let cpu = word as u32 * 64 + self.left.words[word].trailing_zeros();
        self.left.clear(cpu);
        Some(cpu)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn mask(cpus: &BTreeSet<u32>) -> CpuMask {
        cpus.iter().fold(CpuMask::new(), |mask, &cpu| mask.with(cpu))
    }

    proptest! {
        #[test]
        fn a_mask_is_a_set(
            a in prop::collection::btree_set(0..MAX_CPUS, 0..40),
            b in prop::collection::btree_set(0..MAX_CPUS, 0..40),
        ) {
            let (x, y) = (mask(&a), mask(&b));
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.count() as usize, a.len());
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x.minus(&y), mask(&a.difference(&b).copied().collect()));
            prop_assert_eq!(x.and(&y), mask(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(x.or(&y), mask(&a.union(&b).copied().collect()));
            let mut less = x;
            for &cpu in &b {
                less.clear(cpu);
            }
            prop_assert_eq!(less, x.minus(&y));
        }
    }

    #[test]
    fn an_index_out_of_range_is_in_no_set() {
        for cpu in [MAX_CPUS, u32::MAX] {
            let mut mask = CpuMask::new().with(cpu);
            mask.clear(cpu);
            assert!(mask.is_empty() && !mask.contains(cpu));
        }
        assert_eq!(CpuMask::first(u32::MAX).count(), MAX_CPUS);
    }

    #[test]
    fn shown_as_ranges() {
        assert_eq!(CpuMask::new().to_string(), "none");
        let mask = CpuMask::first(3).with(5).with(64).with(63).with(511);
        assert_eq!(mask.to_string(), "0-2,5,63-64,511");
    }
}
