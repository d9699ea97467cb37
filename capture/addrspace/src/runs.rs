//! A listing of what a range of virtual addresses maps, in bounded work.

use crate::walk::{MAX_LEVELS, Page, Position, Tables, Visit, shift};
use crate::{PhysicalMemory, Rights, WalkError};

/// Virtual addresses that are mapped to consecutive physical addresses with the same rights
/// and memory type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First virtual address.
    pub first: u64,
    /// Last virtual address, included.
    pub last: u64,
    /// Physical address of `first`.
    pub physical: u64,
    /// Access that the tables grant.
    pub rights: Rights,
    /// Index of the memory type, as in
    /// [`Attributes::memory_type`](crate::Attributes::memory_type).
    pub memory_type: u8,
}

impl Run {
    /// Returns true if `next` continues this run.
    fn reaches(&self, next: &Self) -> bool {
        self.last.checked_add(1) == Some(next.first)
            && self.physical.checked_add(next.first - self.first) == Some(next.physical)
            && self.rights == next.rights
            && self.memory_type == next.memory_type
    }
}

/// Part of a listed range. What is not mapped at all is in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent<E> {
    /// Mapped addresses.
    Mapped(Run),
    /// Addresses whose tables are damaged, unreadable or not supported.
    Damaged {
        /// First virtual address.
        first: u64,
        /// Last virtual address, included.
        last: u64,
        /// Error at `first`. The others have an error of the same kind at the same level.
        error: WalkError<E>,
    },
}

impl<E> Extent<E> {
    /// Returns the first virtual address.
    #[must_use]
    pub fn first(&self) -> u64 {
        match self {
            Self::Mapped(run) => run.first,
            Self::Damaged { first, .. } => *first,
        }
    }

    /// Returns the last virtual address, which is included.
    #[must_use]
    pub fn last(&self) -> u64 {
        match self {
            Self::Mapped(run) => run.last,
            Self::Damaged { last, .. } => *last,
        }
    }

    /// Appends `next` if it continues this extent, and returns whether it does.
    fn append(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Mapped(run), Self::Mapped(more)) if run.reaches(more) => {
                run.last = more.last;
                true
            }
            (
                Self::Damaged { last, error, .. },
                Self::Damaged { first, last: more, error: other },
            ) if last.checked_add(1) == Some(*first)
                && error.level() == other.level()
                && core::mem::discriminant(error) == core::mem::discriminant(other) =>
            {
                *last = *more;
                true
            }
            _ => false,
        }
    }
}

/// Iterator over the [`Extent`]s of a range of virtual addresses, in ascending order; from
/// [`AddressSpace::runs`](crate::AddressSpace::runs).
///
/// The iterator ends at the end of the range, or when the reads that it may spend are used up;
/// [`Runs::stopped_at`] tells which. A table entry that maps nothing is passed over in one
/// step, whatever it covers. Addresses with a tag (AArch64, TBI) count as unmapped: clear the
/// tag first.
pub struct Runs<'a, M: PhysicalMemory + ?Sized> {
    tables: Option<Tables<'a>>,
    memory: &'a M,
    /// Address that is looked at next; `None` behind the range.
    next: Option<u64>,
    last: u64,
    reads_left: u32,
    /// Table at each height below the root on the way to the address that was visited last,
    /// with the bits of the addresses that it serves.
    path: [Option<(u64, Position)>; MAX_LEVELS - 1],
    /// Extent that the next one may still continue.
    open: Option<Extent<M::Error>>,
}

impl<'a, M: PhysicalMemory + ?Sized> Runs<'a, M> {
    pub(crate) fn new(
        tables: Option<Tables<'a>>,
        memory: &'a M,
        first: u64,
        last: u64,
        reads: u32,
    ) -> Self {
        Self {
            tables,
            memory,
            next: (first <= last).then_some(first),
            last,
            reads_left: reads.max(MAX_LEVELS as u32),
            path: [None; MAX_LEVELS - 1],
            open: None,
        }
    }

    /// Returns the address at which a new listing resumes, or `None` if the range was listed to
    /// its end. Valid at any time: nothing that the iterator has not returned lies before it.
    ///
    /// A run that was cut by the limit of reads goes on there as a run of its own.
    #[must_use]
    pub fn stopped_at(&self) -> Option<u64> {
        self.open.as_ref().map(Extent::first).or(self.next)
    }

    /// Returns how many more entries may be read.
    #[must_use]
    pub fn reads_left(&self) -> u32 {
        self.reads_left
    }

    /// Moves on to the address behind `last`.
    fn pass(&mut self, last: u64) {
        self.next = if last < self.last { last.checked_add(1) } else { None };
    }

    /// Returns the lowest table that is known to serve `address`, the root otherwise.
    fn lowest_known(
        &self,
        tables: Tables<'a>,
        address: u64,
    ) -> Result<Position, WalkError<M::Error>> {
        for (height, known) in (0..).zip(&self.path) {
            if let Some((prefix, position)) = known
                && *prefix == address >> shift(height + 1)
            {
                return Ok(*position);
            }
        }
        tables.root(address)
    }

    /// Finds the next extent: one page, or the addresses of one damaged entry. `None` behind
    /// the range and when the reads do not suffice to reach the next page.
    ///
    /// Each turn of the loop passes over addresses or returns. Turns without a read are at most
    /// two per half of the address space.
    fn advance(&mut self) -> Option<Extent<M::Error>> {
        loop {
            let address = self.next?;
            let Some(tables) = self.tables else {
                return self.all_of_identity(address);
            };
            let area = tables.area(address);
            if !area.walkable {
                self.pass(area.last);
                continue;
            }
            let mut at = match self.lowest_known(tables, address) {
                Ok(at) => at,
                // The root is of no use for any address that it serves.
                Err(error) => return Some(self.damaged(address, area.last, error)),
            };
            if at.height >= self.reads_left {
                return None;
            }
            loop {
                self.reads_left = self.reads_left.saturating_sub(1);
                let covered = address | ((1 << shift(at.height)) - 1);
                match tables.visit(self.memory, address, &at, |_| {}) {
                    Ok(Visit::Down(below)) => {
                        if let Some(known) = self.path.get_mut(below.height as usize) {
                            *known = Some((address >> shift(below.height + 1), below));
                        }
                        at = below;
                    }
                    Ok(Visit::Page(page)) => return Some(self.mapped(address, &page)),
                    Err(error) if error.is_unmapped() => {
                        self.pass(covered);
                        break;
                    }
                    Err(error) => return Some(self.damaged(address, covered, error)),
                }
            }
        }
    }

    fn all_of_identity(&mut self, first: u64) -> Option<Extent<M::Error>> {
        self.next = None;
        let run =
            Run { first, last: self.last, physical: first, rights: Rights::ALL, memory_type: 0 };
        Some(Extent::Mapped(run))
    }

    fn mapped(&mut self, first: u64, page: &Page) -> Extent<M::Error> {
        let last = (first | ((1 << page.shift) - 1)).min(self.last);
        self.pass(last);
        Extent::Mapped(Run {
            first,
            last,
            physical: page.physical(first),
            rights: page.rights,
            memory_type: page.attributes.memory_type,
        })
    }

    fn damaged(&mut self, first: u64, last: u64, error: WalkError<M::Error>) -> Extent<M::Error> {
        let last = last.min(self.last);
        self.pass(last);
        Extent::Damaged { first, last, error }
    }
}

impl<M: PhysicalMemory + ?Sized> Iterator for Runs<'_, M> {
    type Item = Extent<M::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(found) = self.advance() else { return self.open.take() };
            if self.open.as_mut().is_some_and(|open| open.append(&found)) {
                continue;
            }
            if let Some(done) = self.open.replace(found) {
                return Some(done);
            }
        }
    }
}
