//! `queens`: counts the ways to put N queens on an N×N board, none attacking another.
//!
//! `workload=queens,n=14`; `n` from 4 to 16. A unit is one place for each of the first two
//! rows' queens; its digest is the number of solutions with those. Units differ a lot in
//! length, and two queens that attack each other make one that has none.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::{Context, Digest, Parameter, Setup, SetupError, Workload};

/// Lowest and highest `n`.
const LOWEST: u64 = 4;
const HIGHEST: u64 = 16;
/// The number of solutions for each `n` from [`LOWEST`] on (OEIS A000170).
const KNOWN: [u64; 13] =
    [2, 10, 4, 40, 92, 352, 724, 2_680, 14_200, 73_712, 365_596, 2_279_184, 14_772_512];
/// Queens placed between two signs of life.
const BEAT_QUEENS: u64 = 4096;

/// The workload.
#[derive(Debug)]
pub struct Queens {
    n: AtomicU64,
    /// Solutions found so far in this round.
    found: AtomicU64,
}

impl Queens {
    /// Not prepared yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { n: AtomicU64::new(0), found: AtomicU64::new(0) }
    }
}

impl Default for Queens {
    fn default() -> Self {
        Self::new()
    }
}

/// A board with queens in its first rows: the columns that are taken, and the diagonals as
/// they meet the next row; one bit a column.
#[derive(Clone, Copy, Debug, Default)]
struct Board {
    columns: u32,
    falling: u32,
    rising: u32,
}

impl Board {
    /// The columns of the next row that nobody attacks, out of `all`.
    const fn free(self, all: u32) -> u32 {
        all & !(self.columns | self.falling | self.rising)
    }

    /// With a queen in the next row, in the column of `bit`.
    const fn with(self, bit: u32) -> Self {
        Self {
            columns: self.columns | bit,
            falling: (self.falling | bit) << 1,
            rising: (self.rising | bit) >> 1,
        }
    }
}

/// One search: counts queens to know when a sign of life is due.
struct Search<'a> {
    all: u32,
    placed: u64,
    context: &'a Context<'a>,
}

impl Search<'_> {
    /// Solutions from `board` on.
    fn count(&mut self, board: Board) -> u64 {
        if board.columns == self.all {
            return 1;
        }
        let mut free = board.free(self.all);
        let mut count = 0;
        while free != 0 {
            let bit = free & free.wrapping_neg();
            free ^= bit;
            self.placed += 1;
            if self.placed.is_multiple_of(BEAT_QUEENS) {
                self.context.beat();
            }
            count += self.count(board.with(bit));
        }
        count
    }
}

impl Workload for Queens {
    fn name(&self) -> &'static str {
        "queens"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter { name: "n", default: 14, lowest: LOWEST, highest: HIGHEST }]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        let n = setup.value("n");
        self.n.store(n, Ordering::Relaxed);
        Ok(n * n)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        context.beat();
        let n = self.n.load(Ordering::Relaxed);
        let all = (1 << n) - 1;
        let (first, second) = (1 << (unit / n), 1 << (unit % n));
        let board = Board::default().with(first);
        if board.free(all) & second == 0 {
            return Digest::number(0);
        }
        let count = Search { all, placed: 0, context }.count(board.with(second));
        self.found.fetch_add(count, Ordering::Relaxed);
        Digest::number(count)
    }

    fn finish(&self, merged: Digest, _context: &Context<'_>) -> Digest {
        self.found.store(0, Ordering::Relaxed);
        merged
    }

    fn expected(&self, _round: u64) -> Digest {
        let index = self.n.load(Ordering::Relaxed).saturating_sub(LOWEST);
        Digest::number(KNOWN.get(index as usize).copied().unwrap_or(0))
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let (n, found) = (self.n.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed));
        write!(words, "n={n}, {found} solutions found in this round")
    }
}

#[cfg(test)]
mod tests {
    use epitaph_workload::host;

    use super::*;

    #[test]
    fn counts_are_the_published_ones_on_any_number_of_cpus() {
        for (n, known) in (LOWEST..=11).zip(KNOWN) {
            let right = Ok(vec![Digest::number(known); 2]);
            for cpus in [1, 3] {
                assert_eq!(host::run(&Queens::new(), &[("n", &n.to_string())], cpus, 2), right);
            }
        }
    }

    #[test]
    fn boards_out_of_range_are_refused() {
        assert!(host::run(&Queens::new(), &[("n", "3")], 1, 1).is_err());
        assert!(host::run(&Queens::new(), &[("n", "17")], 1, 1).is_err());
    }
}
