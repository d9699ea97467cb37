//! A rehearsal: the appliance enters the image at boot and wants it back.
//!
//! Everything is done as in a crash up to the first seal, by the same code in the same order, but
//! for what would be seen outside of the image's own memory: nothing is written to the disk, which
//! is [`ReadOnly`] then; no key is wiped; host, breadcrumb, screen and console are left alone; other
//! devices are counted and keep their way to memory; and no CPU is called, since none has stopped.

use core::fmt::{self, Write};

use block::{Accepted, BlockDevice, Error, Identity, Source};
use machine::capture::{memory, rehearsal};
use machine::jump::Outcome;
use vmcore_format::PAGE_BYTES;

pub use machine::capture::rehearsal::under_way;

/// Bytes of the line that goes back.
const LINE_BYTES: usize = 256;
/// Bytes read at once where a dump would write.
const READ_BYTES: usize = 64 << 10;

/// Ends a rehearsal that came as far as it should; `text` says what that was.
pub fn done(text: fmt::Arguments<'_>) {
    go_back(Outcome::DONE, text);
}

/// Ends a rehearsal that failed. In a crash nothing happens here.
pub fn failed(reason: fmt::Arguments<'_>) {
    go_back(Outcome::FAILED, reason);
}

fn go_back(outcome: u64, text: fmt::Arguments<'_>) {
    if !under_way() {
        return;
    }
    // On the stack, and nothing here is held: a fault in making it comes here again.
    let mut line = heapless::String::<LINE_BYTES>::new();
    // Cut where the line is full.
    let _ = line.write_fmt(text);
    let kept = memory::pages(LINE_BYTES.div_ceil(PAGE_BYTES as usize)).and_then(|bytes| {
        let place = bytes.get_mut(..line.len())?;
        place.copy_from_slice(line.as_bytes());
        core::str::from_utf8(place).ok()
    });
    rehearsal::go_back(outcome, kept.unwrap_or("no memory to say why"))
}

/// A disk that is read and flushed and not written: where it would be, it is read.
pub struct ReadOnly<'a> {
    disk: &'a mut dyn BlockDevice,
    /// Taken from the image's memory when it is first needed.
    buffer: Option<&'static mut [u8]>,
    /// Bytes of writes that were submitted, and not yet reported as completed.
    completed: u64,
}

impl<'a> ReadOnly<'a> {
    /// Reads `disk` instead of writing to it.
    pub fn new(disk: &'a mut dyn BlockDevice) -> Self {
        Self { disk, buffer: None, completed: 0 }
    }
}

impl BlockDevice for ReadOnly<'_> {
    fn identity(&self) -> &Identity {
        self.disk.identity()
    }

    fn submit_write(&mut self, _offset: u64, source: Source) -> Result<Accepted, Error> {
        self.completed += source.bytes;
        Ok(Accepted::Yes)
    }

    fn poll(&mut self) -> Result<u64, Error> {
        self.disk.poll()?;
        Ok(core::mem::take(&mut self.completed))
    }

    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }

    fn is_reading(&self, source: Source) -> bool {
        self.disk.is_reading(source)
    }

    fn write(&mut self, mut offset: u64, from: &[u8]) -> Result<(), Error> {
        if self.buffer.is_none() {
            self.buffer = memory::pages(READ_BYTES / PAGE_BYTES as usize);
        }
        let buffer = self.buffer.as_deref_mut().ok_or(Error::NoMemory)?;
        for part in from.chunks(READ_BYTES) {
            self.disk.read(offset, buffer.get_mut(..part.len()).unwrap_or_default())?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.disk.read(offset, into)
    }

    fn start_flush(&mut self) -> Result<Accepted, Error> {
        Ok(Accepted::Yes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.disk.flush()
    }
}
