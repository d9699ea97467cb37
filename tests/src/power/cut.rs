//! One state of the disk after a power cut, read like a disk.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vmcore::Storage;

use super::{BLOCK, SECTOR, WriteLog};

/// What stands in a block instead of what stood there before.
#[derive(Clone, Debug)]
pub enum Content {
    /// All of it, at this byte of the log.
    Whole(u64),
    /// Some sectors are new, the others are old.
    Torn(Box<[u8; BLOCK as usize]>),
}

/// Blocks by their number.
pub type Blocks = HashMap<u64, Content>;

/// A disk: the image before the dump, what was flushed since, and on top what happened to
/// reach the medium.
#[derive(Clone)]
pub struct Cut {
    /// The image before the dump.
    pub base: Arc<File>,
    /// Its size in bytes.
    pub bytes: u64,
    /// The writes.
    pub log: Arc<WriteLog>,
    /// What is there for certain.
    pub durable: Arc<Blocks>,
    /// What is there by chance.
    pub chance: Arc<Blocks>,
}

impl Cut {
    /// Fills `buffer` with the start of block `block`, up to all of it.
    ///
    /// # Errors
    /// The image or the log cannot be read.
    pub fn block(&self, block: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.chance.get(&block).or_else(|| self.durable.get(&block)) {
            Some(Content::Whole(at)) => self.log.read(*at, buffer),
            Some(Content::Torn(bytes)) => {
                buffer.copy_from_slice(&bytes[..buffer.len()]);
                Ok(())
            }
            None => self.base.read_exact_at(buffer, block * BLOCK),
        }
    }

    /// Block `block` with those sectors new that `sectors` has a bit for.
    ///
    /// # Errors
    /// As [`Self::block`].
    pub fn torn(&self, block: u64, new_at: u64, sectors: u8) -> io::Result<Content> {
        let (mut bytes, mut new) = ([0; BLOCK as usize], [0; BLOCK as usize]);
        self.block(block, &mut bytes)?;
        self.log.read(new_at, &mut new)?;
        for sector in (0..BLOCK / SECTOR).filter(|sector| sectors >> sector & 1 == 1) {
            let (start, end) = ((sector * SECTOR) as usize, ((sector + 1) * SECTOR) as usize);
            bytes[start..end].copy_from_slice(&new[start..end]);
        }
        Ok(Content::Torn(Box::new(bytes)))
    }
}

impl Storage for Cut {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (block, inside) = (at / BLOCK, (at % BLOCK) as usize);
            let take = (BLOCK as usize - inside).min(buffer.len() - done);
            let target = &mut buffer[done..done + take];
            if inside == 0 {
                self.block(block, target)?;
            } else {
                let mut whole = [0; BLOCK as usize];
                self.block(block, &mut whole)?;
                target.copy_from_slice(&whole[inside..inside + take]);
            }
            done += take;
        }
        Ok(())
    }
}
