//! What the capture image may use of the machine beside memory and disks.
//!
//! Each part is there or all zero, which always means "there is none". None of it is needed
//! for a dump: it makes one quicker, safer or easier to see.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The appliance's bitmap of page frames, one bit each, 64 to a little-endian word, set when
/// the frame is in use.
///
/// Bit 0 is the first whole page of the first RAM entry of the memory map; the bits go on
/// through all RAM entries in their order, each rounded inwards to whole pages, without gaps.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrameMap {
    /// Physical address of the first word; 0 for none.
    pub address: u64,
    /// How many bits mean something. Frames behind them count as in use.
    pub frames: u64,
}

/// Words through which parked CPUs are called back to work.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mailboxes {
    /// Physical address of CPU 0's; 0 for none.
    pub address: u64,
    /// Bytes from one to the next.
    pub stride: u32,
    /// How many.
    pub count: u32,
}

record::open_enum! {
    /// Values of [`Mailbox::state`].
    pub struct MailboxState(u32) {
        /// Nobody is parked here.
        EMPTY = 0, "empty";
        /// A CPU waits for calls.
        WAITING = 1, "waiting";
        /// A CPU has halted for good.
        FOR_GOOD = 2, "for-good";
        /// As before, after it was stopped by INIT and started again for nothing else.
        AFTER_INIT = 3, "after-init";
    }
}

/// One CPU's mailbox.
///
/// A call: the caller fills `root` to `argument`, then `call` with a number that is not in
/// `done`, then sends an interrupt. The CPU writes that number to `taken`, loads the page
/// tables at `root`, calls `entry` on `stack` with `argument` (interrupts masked), goes
/// back, and writes the number to `done`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mailbox {
    /// One of [`MailboxState`]; written by the parked CPU.
    pub state: MailboxState,
    /// Number of the latest call; written by the caller.
    pub call: u32,
    /// Number of the call that was begun last; written by the parked CPU.
    pub taken: u32,
    /// Number of the call that was finished last; written by the parked CPU.
    pub done: u32,
    /// Physical address of the page tables to run on. They map the park area's first page
    /// executable, all of it readable and the mailboxes writable.
    pub root: u64,
    /// A function of the processor's C calling convention.
    pub entry: u64,
    /// First address above its stack, a multiple of 16.
    pub stack: u64,
    /// Its argument.
    pub argument: u64,
    /// [Hardware id](crate::CpuRecord::hardware_id) of the CPU.
    pub hardware_id: u64,
    /// Zero.
    pub reserved: u64,
}

/// How to switch the machine off and on again (ACPI 6.5 §4.8.3, §5.2.9, §7.3.4).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerFacts {
    /// I/O port of PM1a_CNT, 0 when unknown.
    pub pm1a_control: u16,
    /// I/O port of PM1b_CNT, 0 when there is none.
    pub pm1b_control: u16,
    /// SLP_TYP of S5 for PM1a.
    pub sleep_type_a: u8,
    /// SLP_TYP of S5 for PM1b.
    pub sleep_type_b: u8,
    /// FADT RESET_REG address space: 0 memory, 1 I/O, 2 PCI; 255 when there is none.
    pub reset_space: u8,
    /// FADT RESET_VALUE.
    pub reset_value: u8,
    /// FADT RESET_REG address.
    pub reset_address: u64,
    /// MMIO or I/O of a sleep control register (hardware-reduced ACPI), 0 for none.
    pub sleep_control: u64,
    /// Address space of `sleep_control`, as `reset_space`.
    pub sleep_space: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

record::open_enum! {
    /// Values of [`Framebuffer::kind`], which are those of the Multiboot2 specification, §3.6.12.
    pub struct FramebufferKind(u8) {
        /// Pixels of direct colours.
        PIXELS = 1, "pixels";
        /// Text cells of two bytes: the letter, then its colours.
        TEXT = 2, "text";
    }
}

/// A screen that is memory (Multiboot2 specification, §3.6.12).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Framebuffer {
    /// Physical address of the first pixel; 0 for none.
    pub address: u64,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits of a pixel.
    pub bits_per_pixel: u8,
    /// Lowest bit of red in a pixel.
    pub red_at: u8,
    /// Bits of red.
    pub red_bits: u8,
    /// Lowest bit of green.
    pub green_at: u8,
    /// Bits of green.
    pub green_bits: u8,
    /// Lowest bit of blue.
    pub blue_at: u8,
    /// Bits of blue.
    pub blue_bits: u8,
    /// One of [`FramebufferKind`]. Of text cells, the pixels above are cells.
    pub kind: FramebufferKind,
    /// Zero.
    pub reserved: [u8; 4],
}

record::open_enum! {
    /// Values of [`WatchdogFacts::kind`].
    pub struct WatchdogKind(u32) {
        /// There is none, or none was started.
        NONE = 0, "none";
        /// The TCO timer of Intel's I/O controller hubs; `port` is its base.
        ITCO = 1, "itco";
        /// Intel 6300ESB; `mmio` is its BAR 0, `port` the word that selects its configuration
        /// space at port 0xCF8.
        I6300ESB = 2, "i6300esb";
    }
}

/// A hardware watchdog that is running and has to be fed or stopped.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WatchdogFacts {
    /// One of [`WatchdogKind`].
    pub kind: WatchdogKind,
    /// I/O port of its registers; 0 where they are not ports.
    pub port: u32,
    /// Physical address of its registers; 0 where they are not memory.
    pub mmio: u64,
    /// After how many ms without being fed it resets the machine.
    pub timeout_ms: u64,
}

/// Configuration space of a PCI segment in memory (PCI Firmware Specification 3.3, §4.1.2).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ConfigSpace {
    /// Physical address of bus 0, as the MCFG has it; 0 for none.
    pub address: u64,
    /// PCI segment group.
    pub segment: u16,
    /// First bus.
    pub first_bus: u8,
    /// Last bus.
    pub last_bus: u8,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`InFlight::flags`].
pub mod in_flight_flags {
    /// A request missed its deadline: nothing at the function is touched again. A reset waits
    /// for the request and may never return, and so may the end of bus mastering.
    pub const GIVEN_UP: u32 = 1;
    /// A workload keeps data on the disk: there is no dump area on it.
    pub const DATA: u32 = 2;
}

/// A PCI function that had requests in flight when the machine stopped.
///
/// The function may still write its memory, and the host may wait for its requests as soon as
/// the function is touched.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InFlight {
    /// The function: segment in bits 31:16, bus in 15:8, device in 7:3, function in 2:0.
    pub function: u32,
    /// Bits of [`in_flight_flags`].
    pub flags: u32,
    /// Memory that the function may write; without a byte when that is not known, and it may
    /// be any.
    pub memory: crate::Range,
}

const _: () = {
    assert!(size_of::<InFlight>() == 24);
    assert!(size_of::<PowerFacts>() == 32);
    assert!(size_of::<FrameMap>() == 16);
    assert!(size_of::<Mailboxes>() == 16);
    assert!(size_of::<Mailbox>() == 64);
    assert!(core::mem::offset_of!(Mailbox, root) == 16);
    assert!(size_of::<Framebuffer>() == 32);
    assert!(size_of::<WatchdogFacts>() == 24);
    assert!(size_of::<ConfigSpace>() == 16);
};
