//! The park area: what a stopped CPU needs for as long as the machine runs.
//!
//! A halted CPU leaves HLT on an NMI, a machine check or an SMI. It must then find code, a
//! stack, descriptor tables and page tables that nobody has overwritten, so all of them lie
//! in the reserved region, in a part that the capture image never writes.
//!
//! Layout: one page of code and pointers, one page of IDT, the stacks, then page tables.

use core::arch::global_asm;

use handoff::{MAX_CPUS, Range};
use x86_64::VirtAddr;
use x86_64::structures::idt::{Entry, HandlerFunc};

use super::cpu;
use super::paging::{Flags, FrameSource, OutOfFrames, PAGE, Space};

/// Bytes of a parked CPU's stack: a few exception frames, one after the other.
const STACK_BYTES: u64 = 512;

const GDT: u64 = 0x800;
const GDT_POINTER: u64 = 0x900;
const IDT_POINTER: u64 = 0x910;
const IDT: u64 = PAGE;
const STACKS: u64 = 2 * PAGE;
const TABLES: u64 = STACKS + MAX_CPUS as u64 * STACK_BYTES;

/// 64-bit code, the only segment the parked code needs.
const CODE_SELECTOR: u64 = 0x08;
const GDT_ENTRIES: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

global_asm!(
    include_str!("park.S"),
    gdt_pointer = const GDT_POINTER,
    idt_pointer = const IDT_POINTER,
    code_selector = const CODE_SELECTOR,
);

unsafe extern "C" {
    static park_code: u8;
    static park_trap: u8;
    static park_has_mca: u8;
    static park_code_end: u8;
    fn park_enter(stack: u64, acknowledge: *const u32, value: u32, root: u64, area: u64) -> !;
}

/// The park area, built and ready.
#[derive(Clone, Copy, Debug)]
pub struct Park {
    area: u64,
    root: u64,
    used: u64,
}

/// Frames from the rest of the park area.
struct Tables {
    next: u64,
    end: u64,
}

impl FrameSource for Tables {
    fn frame(&mut self) -> Option<u64> {
        let frame = self.next;
        if frame + PAGE > self.end {
            return None;
        }
        self.next += PAGE;
        // SAFETY: the frame lies in the park area, which `Park::build` was given to itself.
        unsafe { (frame as *mut u8).write_bytes(0, PAGE as usize) };
        Some(frame)
    }
}

fn write<T>(address: u64, value: T) {
    // SAFETY: only called by `Park::build`, for addresses inside the area it was given.
    unsafe { (address as *mut T).write_unaligned(value) };
}

impl Park {
    /// Builds the park area in `area`, with page tables that map `memory` one to one,
    /// everything allowed: they also carry the crashing CPU into the capture image.
    ///
    /// # Errors
    /// When the area is too small for the page tables.
    pub fn build(area: Range, memory: impl Iterator<Item = Range>) -> Result<Self, OutOfFrames> {
        if area.bytes < TABLES {
            return Err(OutOfFrames);
        }
        // SAFETY: the caller gives the area to the park code; the labels bound what is copied.
        let code_bytes = unsafe {
            let start = &raw const park_code;
            let bytes = (&raw const park_code_end).offset_from_unsigned(start);
            (area.start as *mut u8).copy_from_nonoverlapping(start, bytes);
            bytes as u64
        };
        debug_assert!(code_bytes <= GDT);
        // SAFETY: only the addresses of the labels are taken.
        let (trap, has_mca) = unsafe {
            let start = &raw const park_code;
            (
                area.start + (&raw const park_trap).offset_from_unsigned(start) as u64,
                area.start + (&raw const park_has_mca).offset_from_unsigned(start) as u64,
            )
        };
        // CPUID 1 EDX bit 14: the machine-check MSRs exist.
        write(has_mca, (cpu::cpuid(1, 0).edx >> 14 & 1) as u8);
        write(area.start + GDT, GDT_ENTRIES);
        write(area.start + GDT_POINTER, (size_of_val(&GDT_ENTRIES) - 1) as u16);
        write(area.start + GDT_POINTER + 2, area.start + GDT);
        write(area.start + IDT_POINTER, (PAGE - 1) as u16);
        write(area.start + IDT_POINTER + 2, area.start + IDT);
        let mut gate: Entry<HandlerFunc> = Entry::missing();
        // SAFETY: the handler is code of the park area that never returns; the selector is
        // the one of the GDT it runs with.
        unsafe {
            gate.set_handler_addr(VirtAddr::new(trap))
                .set_code_selector(x86_64::structures::gdt::SegmentSelector(CODE_SELECTOR as u16));
        }
        for number in 0..256 {
            write(area.start + IDT + number * size_of_val(&gate) as u64, gate);
        }
        let mut tables = Tables { next: area.start + TABLES, end: area.end() };
        let levels = if cpu::la57() { 5 } else { 4 };
        let mut space = Space::new(&mut tables, levels, cpu::has_1g_pages())?;
        for range in memory {
            space.map(range, Flags::ALL, &mut tables)?;
        }
        Ok(Self { area: area.start, root: space.root(), used: tables.next - area.start })
    }

    /// Root of the page tables that map all memory.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Bytes of the area in use.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Parks the running CPU for good: leaves for the park area, then writes `value` to
    /// `acknowledge` as the last thing before it halts.
    pub fn enter(
        &self,
        index: usize,
        acknowledge: &'static core::sync::atomic::AtomicU32,
        value: u32,
    ) -> ! {
        let top = self.area + STACKS + (index % MAX_CPUS + 1) as u64 * STACK_BYTES;
        // SAFETY: the area was built; its tables map the running code and `acknowledge`.
        unsafe { park_enter(top, acknowledge.as_ptr(), value, self.root, self.area) }
    }
}
