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
    /// One of [`event`], 0 while it is being written.
    pub kind: u32,
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

/// Values of [`TraceEvent::kind`]; others are legal. In brackets, `first` and `second`.
pub mod event {
    /// An interrupt was entered \[vector, interrupted address\].
    pub const INTERRUPT: u32 = 1;
    /// An interrupt handler is done \[vector, 0\].
    pub const INTERRUPT_END: u32 = 2;
    /// A lock was acquired \[lock, address behind the acquisition\].
    pub const LOCK: u32 = 3;
    /// A lock is held by another CPU: waiting \[lock, address behind the acquisition\].
    pub const LOCK_WAIT: u32 = 4;
    /// A lock was released \[lock, 0\].
    pub const UNLOCK: u32 = 5;
    /// A unit of work begins \[unit, number of the workload from 1\].
    pub const UNIT: u32 = 6;
    /// A unit of work is done \[unit, number of the workload from 1\].
    pub const UNIT_END: u32 = 7;
    /// A large allocation \[address, bytes\].
    pub const ALLOCATE: u32 = 8;
    /// Memory given back \[address, bytes\].
    pub const FREE: u32 = 9;
    /// This CPU crashes \[`cause_kind`, 0\].
    pub const CRASH: u32 = 10;
    /// A rung is sent \[`rung`, how many CPUs it goes to\].
    pub const STOP_SENT: u32 = 11;
    /// The stop reached this CPU \[`stopped_by`, interrupted address\].
    pub const STOPPED: u32 = 12;
    /// An NMI, the stop's included \[0, interrupted address\].
    pub const NMI: u32 = 13;

    /// The word for a kind.
    #[must_use]
    pub const fn name(kind: u32) -> &'static str {
        match kind {
            INTERRUPT => "interrupt",
            INTERRUPT_END => "interrupt-end",
            LOCK => "lock",
            LOCK_WAIT => "lock-wait",
            UNLOCK => "unlock",
            UNIT => "unit",
            UNIT_END => "unit-end",
            ALLOCATE => "allocate",
            FREE => "free",
            CRASH => "crash",
            STOP_SENT => "stop-sent",
            STOPPED => "stopped",
            NMI => "nmi",
            _ => "unknown",
        }
    }
}
