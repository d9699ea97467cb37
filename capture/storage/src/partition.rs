//! The part of a disk that takes a dump: all of it, or a partition made for dumps.

use block::{BlockDevice, DeviceSlice};
use vmcore_format::gpt::{self, GptError, Guid};

use crate::area::StorageError;

/// Hands `then` the disk, or its partition for dumps: the one that is `wanted`, the first
/// otherwise. Through what it is handed, no other byte of the disk can be reached.
///
/// # Errors
/// Those of `then`, and when there is no such partition or the disk cannot be read.
pub fn with_area<R>(
    device: &mut dyn BlockDevice,
    wanted: Option<Guid>,
    then: impl FnOnce(&mut dyn BlockDevice) -> Result<R, StorageError>,
) -> Result<R, StorageError> {
    let (capacity, block) = (device.identity().capacity, device.identity().block_bytes);
    let mut read = |offset, into: &mut [u8]| device.read(offset, into);
    let partitions = match gpt::partitions(capacity, u64::from(block), &mut read) {
        Ok(partitions) => partitions,
        Err(GptError::None) if wanted.is_none() => return then(device),
        Err(GptError::None) => return Err(StorageError::NoPartition),
        Err(GptError::Damaged) => return Err(StorageError::PartitionTable),
        Err(GptError::Disk(error)) => return Err(StorageError::Disk(error)),
    };
    let mut named = partitions.iter().filter(|found| wanted.is_none_or(|guid| guid == found.guid));
    let partition = named.next().ok_or(StorageError::NoPartition)?;
    let mut window = DeviceSlice::new(device, partition.start, partition.bytes)?;
    then(&mut window)
}
