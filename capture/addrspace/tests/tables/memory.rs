//! Physical memory of the tests, and a builder of page tables in it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;

use epitaph_addrspace::PhysicalMemory;

/// Error of the reader: the address is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent(pub u64);

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} is not in memory", self.0)
    }
}

impl std::error::Error for Absent {}

/// Pages of 4 KiB that were made or written to, and a count of all reads.
#[derive(Default)]
pub struct Ram {
    pages: RefCell<HashMap<u64, [u64; 512]>>,
    reads: Cell<usize>,
}

impl Ram {
    /// Makes the 4 KiB at `address` readable, with zeros.
    pub fn page(&self, address: u64) {
        self.pages.borrow_mut().entry(address >> 12).or_insert([0; 512]);
    }

    pub fn write(&self, address: u64, word: u64) {
        let mut pages = self.pages.borrow_mut();
        pages.entry(address >> 12).or_insert([0; 512])[index(address)] = word;
    }

    /// Returns the word at `address`, 0 if it is not in memory.
    pub fn word(&self, address: u64) -> u64 {
        self.pages.borrow().get(&(address >> 12)).map_or(0, |page| page[index(address)])
    }

    /// Takes over the pages of `other`.
    pub fn absorb(&self, other: &Self) {
        self.pages.borrow_mut().extend(other.pages.borrow_mut().drain());
    }

    /// Returns the reads since the last call.
    pub fn reads(&self) -> usize {
        self.reads.take()
    }
}

fn index(address: u64) -> usize {
    (address >> 3 & 511) as usize
}

impl PhysicalMemory for Ram {
    type Error = Absent;

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Absent> {
        self.reads.set(self.reads.get() + 1);
        let pages = self.pages.borrow();
        let mut at = address;
        let mut rest = buffer;
        while !rest.is_empty() {
            let page = pages.get(&(at >> 12)).ok_or(Absent(at))?;
            let word = page[index(at)].to_le_bytes();
            let part = &word[(at & 7) as usize..];
            let (now, later) = rest.split_at_mut(part.len().min(rest.len()));
            now.copy_from_slice(&part[..now.len()]);
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}

/// Builder of page tables, from 1 MiB on, in the order in which they are needed.
pub struct Builder {
    pub ram: Ram,
    pub root: u64,
    next: u64,
    /// Height of the root: 3 for four levels.
    top: u32,
    /// Bits of an entry that leads to a table.
    link: u64,
}

impl Builder {
    pub fn new(top: u32, link: u64) -> Self {
        Self::at(1 << 20, top, link)
    }

    /// Returns a builder whose tables lie from `root` on.
    pub fn at(root: u64, top: u32, link: u64) -> Self {
        let ram = Ram::default();
        ram.page(root);
        Self { ram, root, next: root + 0x1000, top, link }
    }

    /// Returns the address of the entry for `address` at `height`; makes the tables above.
    pub fn entry(&mut self, address: u64, height: u32) -> u64 {
        let mut table = self.root;
        for above in (height..=self.top).rev() {
            let index = (address >> (12 + 9 * above)) & 511;
            let entry = table + 8 * index;
            if above == height {
                return entry;
            }
            if self.ram.word(entry) == 0 {
                self.ram.page(self.next);
                self.ram.write(entry, self.next | self.link);
                self.next += 0x1000;
            }
            table = self.ram.word(entry) & 0x0000_ffff_ffff_f000;
        }
        unreachable!("a height above the root")
    }

    /// Writes the entry for `address` at `height`.
    pub fn map(&mut self, address: u64, height: u32, value: u64) {
        let entry = self.entry(address, height);
        self.ram.write(entry, value);
    }
}
