//! The request queue of a device, as long as the device allows.
#![expect(unsafe_code, reason = "hands the queue's contract on to its callers")]

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::disk::QUEUE;
use super::hal::PlatformHal;
use crate::{Error, Platform};

/// Descriptors a request takes: header, data, status (§5.2.6).
const DESCRIPTORS: usize = 3;
/// Descriptors of the shorter queues. A length is a power of two (§2.7), and what a device
/// names is its maximum: QEMU's `queue-size=` goes down to 2, Firecracker has 256.
const MIDDLE: usize = 32;
const SHORT: usize = 8;

/// A split virtqueue of `LONG` descriptors, or of fewer where the device has no more.
#[expect(clippy::large_enum_variant, reason = "one a disk, and nothing to allocate from")]
pub(super) enum Queue<P: Platform, const LONG: usize> {
    Long(VirtQueue<PlatformHal<P>, LONG>),
    Middle(VirtQueue<PlatformHal<P>, MIDDLE>),
    Short(VirtQueue<PlatformHal<P>, SHORT>),
}

/// Calls a method of the queue, whatever its length.
macro_rules! each {
    ($queue:expr, $name:ident => $call:expr) => {
        match $queue {
            Self::Long($name) => $call,
            Self::Middle($name) => $call,
            Self::Short($name) => $call,
        }
    };
}

impl<P: Platform, const LONG: usize> Queue<P, LONG> {
    /// Makes the longest queue that the device takes.
    ///
    /// # Errors
    /// When the device has no queue, or one shorter than [`SHORT`].
    pub(super) fn new(transport: &mut impl Transport) -> Result<Self, Error> {
        let most = transport.max_queue_size(QUEUE) as usize;
        let made = if most >= LONG {
            VirtQueue::new(transport, QUEUE, false, false).map(Self::Long)
        } else if most >= MIDDLE {
            VirtQueue::new(transport, QUEUE, false, false).map(Self::Middle)
        } else if most >= SHORT {
            VirtQueue::new(transport, QUEUE, false, false).map(Self::Short)
        } else {
            return Err(Error::Setup("a request queue of fewer than 8 entries"));
        };
        let mut queue = made.map_err(|_| Error::Setup("no request queue"))?;
        each!(&mut queue, queue => queue.set_dev_notify(false));
        Ok(queue)
    }

    /// Returns how many requests fit into the queue at once.
    pub(super) const fn depth(&self) -> usize {
        match self {
            Self::Long(_) => LONG / DESCRIPTORS,
            Self::Middle(_) => MIDDLE / DESCRIPTORS,
            Self::Short(_) => SHORT / DESCRIPTORS,
        }
    }

    /// Puts a request into the queue and returns its token.
    ///
    /// # Safety
    /// As for [`VirtQueue::add`]: the buffers stay as they are until the token is popped.
    pub(super) unsafe fn add<'a, 'b>(
        &mut self,
        inputs: &'a [&'b [u8]],
        outputs: &'a mut [&'b mut [u8]],
    ) -> virtio_drivers::Result<u16> {
        // SAFETY: the caller keeps the same promise.
        each!(self, queue => unsafe { queue.add(inputs, outputs) })
    }

    /// Takes an answered request out of the queue.
    ///
    /// # Safety
    /// As for [`VirtQueue::pop_used`]: the buffers are those of the request.
    pub(super) unsafe fn pop_used<'a>(
        &mut self,
        token: u16,
        inputs: &'a [&'a [u8]],
        outputs: &'a mut [&'a mut [u8]],
    ) -> virtio_drivers::Result<u32> {
        // SAFETY: the caller keeps the same promise.
        each!(self, queue => unsafe { queue.pop_used(token, inputs, outputs) })
    }

    /// Returns the token of the next answered request.
    pub(super) fn peek_used(&self) -> Option<u16> {
        each!(self, queue => queue.peek_used())
    }

    /// Returns true if the device wants to hear of new requests.
    pub(super) fn should_notify(&self) -> bool {
        each!(self, queue => queue.should_notify())
    }
}
