//! Bytes at a virtual address.

use core::fmt;

use crate::{AddressSpace, PhysicalMemory, WalkError};

/// Failure to read the bytes at a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadError<E> {
    /// Bytes at the front of the buffer that were filled.
    pub done: usize,
    /// First virtual address that was not read: the start plus `done`. 0 when the address
    /// space ended.
    pub address: u64,
    /// Reason why it was not read.
    pub reason: ReadReason<E>,
}

/// Reason why a virtual address could not be read. `E` is the error of the reader of physical
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadReason<E> {
    /// The address was not translated.
    Walk(WalkError<E>),
    /// The reader could not read the bytes of the page.
    Memory {
        /// Physical address of the first of them.
        physical: u64,
        /// Error of the reader.
        error: E,
    },
    /// The bytes go past the top of the address space.
    EndOfSpace,
}

impl<E: fmt::Display> fmt::Display for ReadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, address, reason } = self;
        match reason {
            ReadReason::Walk(error) => {
                write!(f, "virtual address {address:#x} after {done} bytes: {error}")
            }
            ReadReason::Memory { physical, error } => write!(
                f,
                "virtual address {address:#x} (physical {physical:#x}) after {done} bytes: {error}"
            ),
            ReadReason::EndOfSpace => write!(f, "the address space ended after {done} bytes"),
        }
    }
}

impl<E: core::error::Error + 'static> core::error::Error for ReadError<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.reason {
            ReadReason::Walk(error) => Some(error),
            ReadReason::Memory { error, .. } => Some(error),
            ReadReason::EndOfSpace => None,
        }
    }
}

/// Fills `buffer` with the bytes at `start`.
///
/// Each turn handles the part of the buffer that is on one page and is shorter by at least a
/// byte.
pub(crate) fn read<M: PhysicalMemory + ?Sized>(
    space: &AddressSpace,
    memory: &M,
    start: u64,
    buffer: &mut [u8],
) -> Result<(), ReadError<M::Error>> {
    let mut done = 0;
    let mut next = Some(start);
    let mut rest = buffer;
    while !rest.is_empty() {
        let Some(address) = next else {
            return Err(ReadError { done, address: 0, reason: ReadReason::EndOfSpace });
        };
        let failed = |reason| ReadError { done, address, reason };
        let walk =
            space.translate(memory, address).map_err(|error| failed(ReadReason::Walk(error)))?;
        let left = walk.page_size - (address & (walk.page_size - 1));
        // A page larger than the address space of the host holds all of the rest.
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let Some((part, tail)) = rest.split_at_mut_checked(count) else { break };
        let physical = walk.physical;
        memory
            .read(physical, part)
            .map_err(|error| failed(ReadReason::Memory { physical, error }))?;
        rest = tail;
        done += count;
        next = address.checked_add(count as u64);
    }
    Ok(())
}
