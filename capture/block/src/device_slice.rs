//! A part of a disk that behaves like a whole one.

use crate::device::check_range;
use crate::{Accepted, BlockDevice, Error, Identity, Source};

/// A stretch of a disk, such as a partition: byte 0 is its first byte, and no request
/// leaves it.
pub struct DeviceSlice<'a> {
    device: &'a mut dyn BlockDevice,
    start: u64,
    /// The disk's, but for the capacity.
    identity: Identity,
}

impl<'a> DeviceSlice<'a> {
    /// `bytes` bytes of `device` from byte `start`; both are multiples of its block size.
    ///
    /// # Errors
    /// When that is not a part of the disk.
    pub fn new(device: &'a mut dyn BlockDevice, start: u64, bytes: u64) -> Result<Self, Error> {
        check_range(device.identity(), start, bytes)?;
        let identity = Identity { capacity: bytes, ..device.identity().clone() };
        Ok(Self { device, start, identity })
    }

    /// The same byte on the whole disk, when the request stays inside.
    fn place(&self, offset: u64, bytes: u64) -> Result<u64, Error> {
        check_range(&self.identity, offset, bytes)?;
        self.start.checked_add(offset).ok_or(Error::OutOfRange)
    }

    /// An error with the offset of its request counted from the start of the part. That of a
    /// flush, which has none, stays what it is.
    fn inside(&self, error: Error) -> Error {
        match error {
            Error::Io(offset) => Error::Io(offset.checked_sub(self.start).unwrap_or(offset)),
            other => other,
        }
    }
}

impl BlockDevice for DeviceSlice<'_> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
        let offset = self.place(offset, source.bytes)?;
        self.device.submit_write(offset, source).map_err(|error| self.inside(error))
    }

    fn poll(&mut self) -> Result<u64, Error> {
        self.device.poll().map_err(|error| self.inside(error))
    }

    fn in_flight(&self) -> usize {
        self.device.in_flight()
    }

    fn is_reading(&self, source: Source) -> bool {
        self.device.is_reading(source)
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let offset = self.place(offset, from.len() as u64)?;
        self.device.write(offset, from).map_err(|error| self.inside(error))
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let offset = self.place(offset, into.len() as u64)?;
        self.device.read(offset, into).map_err(|error| self.inside(error))
    }

    fn start_flush(&mut self) -> Result<Accepted, Error> {
        self.device.start_flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.device.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Address;

    /// Remembers where it was asked to write.
    struct Disk(Identity, Vec<(u64, u64)>);

    impl BlockDevice for Disk {
        fn identity(&self) -> &Identity {
            &self.0
        }
        fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
            self.1.push((offset, source.bytes));
            Ok(Accepted::Yes)
        }
        fn poll(&mut self) -> Result<u64, Error> {
            Ok(0)
        }
        fn in_flight(&self) -> usize {
            0
        }
        fn is_reading(&self, _: Source) -> bool {
            false
        }
        fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
            self.1.push((offset, from.len() as u64));
            Ok(())
        }
        fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
            self.1.push((offset, into.len() as u64));
            Ok(())
        }
        fn start_flush(&mut self) -> Result<Accepted, Error> {
            Ok(Accepted::Full)
        }
        fn flush(&mut self) -> Result<(), Error> {
            Ok(())
        }
    }

    #[test]
    fn no_request_leaves_the_window() {
        let identity = Identity {
            driver: "virtio",
            location: Address { segment: 0, bus: 0, device: 1, function: 0 },
            namespace: 0,
            serial: heapless::String::new(),
            capacity: 1 << 20,
            block_bytes: 512,
            max_write_bytes: 1 << 20,
            read_only: false,
            can_flush: true,
        };
        let mut disk = Disk(identity, Vec::new());
        assert!(DeviceSlice::new(&mut disk, 1 << 20, 512).is_err());
        assert!(DeviceSlice::new(&mut disk, 100, 512).is_err());
        let mut window = DeviceSlice::new(&mut disk, 4096, 8192).expect("inside");
        assert_eq!(window.identity().capacity, 8192);
        let source = |bytes| Source { address: 4096, bytes };
        assert_eq!(window.submit_write(4096, source(4096)), Ok(Accepted::Yes));
        assert_eq!(window.write(0, &[0; 512]), Ok(()));
        assert_eq!(window.read(7680, &mut [0; 512]), Ok(()));
        assert_eq!(window.submit_write(4096, source(8192)), Err(Error::OutOfRange));
        assert_eq!(window.write(8192, &[0; 512]), Err(Error::OutOfRange));
        assert_eq!(window.read(u64::MAX - 511, &mut [0; 512]), Err(Error::OutOfRange));
        assert_eq!(disk.1, [(8192, 4096), (4096, 512), (11776, 512)]);
    }
}
