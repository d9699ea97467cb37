//! The flight recorder's rings: what every CPU did last.
//!
//! Each CPU has a ring of its own in memory, which only that CPU writes; the rings lie one
//! behind the other, in index order, at the place that the boot facts name. A ring is a
//! [`RingHeader`] and then [`TraceEvent`]s; event number `n` (from 0) lies in slot
//! `n % slots`. A CPU may have been stopped in the middle of writing one: such an event says
//! so by its lap, see [`TraceEvent::lap`].

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of a ring.
pub const RING_MAGIC: [u8; 8] = *b"EPITRAC\x01";

/// Where the rings are.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TraceRange {
    /// Physical address of CPU 0's ring; 0 for none.
    pub address: u64,
    /// Bytes of each ring, header included.
    pub ring_bytes: u32,
    /// How many rings: one for each CPU, in index order.
    pub rings: u32,
}

impl TraceRange {
    /// Events a ring holds.
    #[must_use]
    pub const fn slots(&self) -> u64 {
        (self.ring_bytes as u64).saturating_sub(size_of::<RingHeader>() as u64)
            / size_of::<TraceEvent>() as u64
    }
}

/// The head of a ring.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RingHeader {
    /// [`RING_MAGIC`].
    pub magic: [u8; 8],
    /// Events ever begun.
    pub begun: u64,
    /// Index of the CPU that writes it.
    pub cpu: u32,
    /// 1 while events are recorded.
    pub recording: u32,
    /// Zero.
    pub reserved: u64,
}

/// Something that happened.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TraceEvent {
    /// Time-stamp counter.
    pub tsc: u64,
    /// One of [`EventKind`], 0 while it is being written.
    pub kind: EventKind,
    /// Low 32 bits of how often the ring had come round when this was written, counted from
    /// one. Another number than the ring's header implies: the event was not finished, and
    /// what stands here is in part an older one.
    pub lap: u32,
    /// What the kind says.
    pub first: u64,
    /// What the kind says.
    pub second: u64,
}

const _: () = {
    assert!(size_of::<TraceRange>() == 16);
    assert!(size_of::<RingHeader>() == 32);
    assert!(size_of::<TraceEvent>() == 32);
};

record::open_enum! {
    /// Values of [`TraceEvent::kind`]; others are legal. In brackets, `first` and `second`.
    pub struct EventKind(u32) {
        /// An interrupt was entered \[vector, interrupted address\].
        INTERRUPT = 1, "interrupt";
        /// An interrupt handler is done \[vector, 0\].
        INTERRUPT_END = 2, "interrupt-end";
        /// A lock was acquired \[lock, address behind the acquisition\].
        LOCK = 3, "lock";
        /// A lock is held by another CPU: waiting \[lock, address behind the acquisition\].
        LOCK_WAIT = 4, "lock-wait";
        /// A lock was released \[lock, 0\].
        UNLOCK = 5, "unlock";
        /// A unit of work begins \[unit, number of the workload from 1\].
        UNIT = 6, "unit";
        /// A unit of work is done \[unit, number of the workload from 1\].
        UNIT_END = 7, "unit-end";
        /// A large allocation \[address, bytes\].
        ALLOCATE = 8, "allocate";
        /// Memory given back \[address, bytes\].
        FREE = 9, "free";
        /// This CPU crashes \[[`CauseKind`](crate::crash::CauseKind), 0\].
        CRASH = 10, "crash";
        /// A rung is sent \[[`RungSignal`](crate::crash::RungSignal), how many CPUs it goes to\].
        STOP_SENT = 11, "stop-sent";
        /// The stop reached this CPU \[[`StoppedBy`](crate::crash::StoppedBy), interrupted address\].
        STOPPED = 12, "stopped";
        /// An NMI, the stop's included \[0, interrupted address\].
        NMI = 13, "nmi";
    }
}
