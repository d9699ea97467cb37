//! The park area: what a stopped CPU needs for as long as the machine runs.
//!
//! A halted CPU leaves HLT on an NMI, a machine check or an SMI. It must then find code, a
//! stack, descriptor tables and page tables that nobody has overwritten, so all of them lie
//! in the reserved region, in a part of which the capture image writes the mailboxes only.
//!
//! A CPU that the stop interrupt reached waits with interrupts unmasked: a word in its
//! mailbox and an interrupt on [`VECTOR_CALL`] bring it back for a job. One that was
//! stopped otherwise halts for good. One that INIT stopped comes by way of a start-up page
//! below 640 KiB, since INIT leaves it deaf to machine checks.
//!
//! Layout: one page of code and pointers, an IDT for those that halt for good, one for those
//! that wait, the mailboxes, the stacks, then page tables.

use core::arch::global_asm;
use core::mem::offset_of;

use handoff::devices::{Mailbox, MailboxState, Mailboxes};
use handoff::{MAX_CPUS, Range};
use x86_64::VirtAddr;
use x86_64::structures::idt::{Entry, HandlerFunc};

use super::apic;
use super::boot::{CR0_KEEP, CR0_SET, CR4_SET, EFER_SET};
use super::cpu;
use super::paging::{Flags, FrameSource, OutOfFramesError, PAGE, Space};
use super::trap::vector;

/// Vector of a call to a waiting CPU. With the stop's, one of the two that its task priority
/// lets through.
pub const VECTOR_CALL: u8 = 0xf8;
/// Task priority of a waiting CPU: vectors below 0xf0 stay pending (Intel SDM vol. 3,
/// 11.8.3.1).
const PRIORITY: u8 = 0xe0;

/// Bytes of a parked CPU's stack: a few exception frames, one after the other.
const STACK_BYTES: u64 = 512;

const GDT: u64 = 0x800;
const GDT_POINTER: u64 = 0x900;
const IDT_POINTER: u64 = 0x910;
const WAIT_IDT_POINTER: u64 = 0x920;
const IDT: u64 = PAGE;
const WAIT_IDT: u64 = 2 * PAGE;
const MAILBOXES: u64 = 3 * PAGE;
const STACKS: u64 = (MAILBOXES + (MAX_CPUS * size_of::<Mailbox>()) as u64).next_multiple_of(PAGE);
const TABLES: u64 = STACKS + MAX_CPUS as u64 * STACK_BYTES;

/// 64-bit code and data, the only segments the parked code needs. The data segment's number
/// is the one that CPUs bring with them: returning from an interrupt loads it again.
const CODE_SELECTOR: u64 = 0x08;
const DATA_SELECTOR: u64 = 0x10;
const GDT_ENTRIES: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// What `park_enter` needs to know.
#[repr(C)]
struct Call {
    stack: u64,
    acknowledge: *const u32,
    value: u64,
    root: u64,
    area: u64,
    idt_pointer: u64,
    target: u64,
    mailbox: u64,
}

global_asm!(
    include_str!("apic_id.S"),
    include_str!("long_mode.S"),
    include_str!("real_mode.S"),
    include_str!("park.S"),
    gdt_pointer = const GDT_POINTER,
    idt_pointer = const IDT_POINTER,
    code_selector = const CODE_SELECTOR,
    data_selector = const DATA_SELECTOR,
    mailboxes = const MAILBOXES,
    stacks = const STACKS,
    stack_bytes = const STACK_BYTES,
    cpus = const MAX_CPUS,
    call_stack = const offset_of!(Call, stack),
    call_acknowledge = const offset_of!(Call, acknowledge),
    call_value = const offset_of!(Call, value),
    call_root = const offset_of!(Call, root),
    call_area = const offset_of!(Call, area),
    call_idt_pointer = const offset_of!(Call, idt_pointer),
    call_target = const offset_of!(Call, target),
    call_mailbox = const offset_of!(Call, mailbox),
    box_state = const offset_of!(Mailbox, state),
    box_call = const offset_of!(Mailbox, call),
    box_taken = const offset_of!(Mailbox, taken),
    box_done = const offset_of!(Mailbox, done),
    box_root = const offset_of!(Mailbox, root),
    box_entry = const offset_of!(Mailbox, entry),
    box_stack = const offset_of!(Mailbox, stack),
    box_argument = const offset_of!(Mailbox, argument),
    box_apic_id = const offset_of!(Mailbox, hardware_id),
    box_bytes = const size_of::<Mailbox>(),
    for_good = const MailboxState::FOR_GOOD.0,
    waiting = const MailboxState::WAITING.0,
    after_init = const MailboxState::AFTER_INIT.0,
    mcg_status = const super::mce::MCG_STATUS,
    msr_eoi = const apic::MSR_EOI,
    xapic_eoi = const apic::XAPIC_BASE + apic::XAPIC_EOI,
    cr4_set = const CR4_SET,
    efer_set = const EFER_SET,
    cr0_set = const CR0_SET,
    cr0_keep = const CR0_KEEP,
);

unsafe extern "C" {
    static park_code: u8;
    static park_for_good: u8;
    static park_wait: u8;
    static park_trap: u8;
    static park_wait_nmi: u8;
    static park_wait_mce: u8;
    static park_wait_interrupt: u8;
    static park_lost: u8;
    static park_landing: u8;
    static park_has_mca: u8;
    static park_has_x2apic: u8;
    static park_code_end: u8;
    static park_start: u8;
    static park_start_gdt_base: u8;
    static park_start_root: u8;
    static park_start_far_pointer: u8;
    static park_start_end: u8;
    fn park_enter(call: &Call) -> !;
}

/// The park area, built and ready. All places in it follow from where it begins.
#[derive(Clone, Copy, Debug)]
pub struct Park {
    area: u64,
}

/// The park area as built: its size, and a checksum of what does not change in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParkSum {
    /// Bytes of the area in use.
    pub used: u64,
    /// Over code, descriptor tables and page tables; the mailboxes and the stacks between them
    /// are written while CPUs are parked.
    sum: u64,
}

/// Mixes the words of `range` into `sum`: each step is a bijection of the sum for a given
/// word and of the word for a given sum, so a change of one word always shows.
fn mix(sum: u64, range: Range) -> u64 {
    /// An odd number with irregular bits: the fraction of the golden ratio.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = (range.start..range.end()).step_by(8);
    words.fold(sum, |sum, at| {
        // SAFETY: callers pass whole words of the park area or of its start-up page, which are
        // mapped for as long as the machine runs. Volatile: damage is what is looked for.
        let word = unsafe { (at as *const u64).read_volatile() };
        (sum ^ word).wrapping_mul(FACTOR).rotate_left(29)
    })
}

/// How a CPU parks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It waits for a call.
    Waiting,
    /// Nothing calls it back.
    ForGood,
}

/// Frames from the rest of the park area.
struct Tables {
    next: u64,
    end: u64,
}

/// Memory that is mapped at a time, between two looks at the room that is left.
const STRIDE: u64 = 1 << 30;
/// Bytes of the area kept for a part of [`STRIDE`] and for the APIC's registers: three tables
/// each.
const KEPT_TABLES: u64 = 6 * PAGE;

impl Tables {
    /// Bytes that are left.
    const fn left(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }
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
    /// everything allowed: they also carry the crashing CPU into the capture image. Built again
    /// with the same memory, the area becomes what it was. The area must be writable. Returns
    /// the area, its checksum, and the bytes of memory that there is no room to map: the last of
    /// `memory`, some hundred GiB where the processor has no pages of 1 GiB. The program, its
    /// stacks and all that a crash needs lie at the beginning.
    ///
    /// # Errors
    /// When the area is too small for the page tables of anything.
    pub fn build(
        area: Range,
        memory: impl Iterator<Item = Range>,
    ) -> Result<(Self, ParkSum, u64), OutOfFramesError> {
        if area.bytes < TABLES {
            return Err(OutOfFramesError);
        }
        // SAFETY: the caller gives the area to the park code; the labels bound what is copied.
        let code_bytes = unsafe {
            let start = &raw const park_code;
            let bytes = (&raw const park_code_end).offset_from_unsigned(start);
            (area.start as *mut u8).copy_from_nonoverlapping(start, bytes);
            bytes as u64
        };
        debug_assert!(code_bytes <= GDT);
        let at = |label: *const u8| area.start + offset(label);
        // CPUID 1 EDX bit 14: the machine-check MSRs exist.
        write(at(&raw const park_has_mca), (cpu::cpuid(1, 0).edx >> 14 & 1) as u8);
        write(at(&raw const park_has_x2apic), u8::from(cpu::has_x2apic()));
        write(area.start + GDT, GDT_ENTRIES);
        write(area.start + GDT_POINTER, (size_of_val(&GDT_ENTRIES) - 1) as u16);
        write(area.start + GDT_POINTER + 2, area.start + GDT);
        for (pointer, idt) in [(IDT_POINTER, IDT), (WAIT_IDT_POINTER, WAIT_IDT)] {
            write(area.start + pointer, (PAGE - 1) as u16);
            write(area.start + pointer + 2, area.start + idt);
        }
        for number in 0..256 {
            let waiting = match number {
                vector::NMI => &raw const park_wait_nmi,
                vector::MACHINE_CHECK => &raw const park_wait_mce,
                vector::FIRST_INTERRUPT.. => &raw const park_wait_interrupt,
                _ => &raw const park_lost,
            };
            let place = number * size_of::<Entry<HandlerFunc>>() as u64;
            write(area.start + IDT + place, gate(at(&raw const park_trap)));
            write(area.start + WAIT_IDT + place, gate(at(waiting)));
        }
        let mut tables = Tables { next: area.start + TABLES, end: area.end() };
        let levels = if cpu::la57() { 5 } else { 4 };
        let mut space = Space::new(&mut tables, levels, cpu::has_1g_pages())?;
        let mut left_out = 0;
        for range in memory {
            let mut start = range.start;
            while start < range.end() {
                let part = Range::between(start, range.end().min(start.saturating_add(STRIDE)));
                if tables.left() < KEPT_TABLES
                    || space.map(part, Flags::ALL_MARKED, &mut tables).is_err()
                {
                    left_out += part.bytes;
                }
                start = part.end();
            }
        }
        if !cpu::has_x2apic() {
            let registers = Range { start: apic::XAPIC_BASE, bytes: PAGE };
            space.map(registers, Flags::DEVICE_MARKED, &mut tables)?;
        }
        let park = Self::at(area.start);
        debug_assert_eq!(space.root(), park.root());
        Ok((park, park.sum(tables.next - area.start), left_out))
    }

    /// Builds the area once more in place, as [`Self::build`] does, while it is mapped read only.
    ///
    /// # Errors
    /// When the area is too small for the page tables.
    pub fn rebuild(
        area: Range,
        memory: impl Iterator<Item = Range>,
    ) -> Result<ParkSum, OutOfFramesError> {
        let built = cpu::without_write_protection(|| Self::build(area, memory));
        let (park, sum, _) = built?;
        // Nothing stale may be left when the first CPU switches to the tables.
        super::paging::activate(cpu::cr3());
        debug_assert_eq!(park.area, area.start);
        Ok(sum)
    }

    /// The park area that begins at `area`, for a caller that knows it to be built.
    #[must_use]
    pub const fn at(area: u64) -> Self {
        Self { area }
    }

    /// The checksum of the area as it is now, `used` bytes of which are in use.
    #[must_use]
    pub fn sum(&self, used: u64) -> ParkSum {
        let fixed = Range { start: self.area, bytes: MAILBOXES };
        let tables = Range::between(self.area + TABLES, self.area + used.max(TABLES));
        ParkSum { used, sum: mix(mix(used, fixed), tables) }
    }

    /// Root of the page tables that map all memory.
    #[must_use]
    pub const fn root(&self) -> u64 {
        // The first frame that the tables took.
        self.area + TABLES
    }

    /// The code, which a CPU that is called back needs mapped and executable.
    #[must_use]
    pub const fn code(&self) -> Range {
        Range { start: self.area, bytes: PAGE }
    }

    /// Where the mailboxes of `cpus` CPUs lie.
    #[must_use]
    pub const fn mailboxes(&self, cpus: usize) -> Mailboxes {
        let count = if cpus < MAX_CPUS { cpus } else { MAX_CPUS };
        Mailboxes {
            address: self.area + MAILBOXES,
            stride: size_of::<Mailbox>() as u32,
            count: count as u32,
        }
    }

    /// Notes who mailbox `index` belongs to. While the area may still be written.
    pub fn assign(&self, index: usize, apic_id: u32) {
        let place = self.mailbox(index) + offset_of!(Mailbox, hardware_id) as u64;
        write(place, u64::from(apic_id));
    }

    const fn mailbox(&self, index: usize) -> u64 {
        self.area + MAILBOXES + ((index % MAX_CPUS) * size_of::<Mailbox>()) as u64
    }

    /// How CPU `index` says it is parked.
    #[must_use]
    pub fn state(&self, index: usize) -> MailboxState {
        let word = (self.mailbox(index) + offset_of!(Mailbox, state) as u64) as *const u32;
        // SAFETY: inside the area, which is mapped for reading at least; aligned.
        MailboxState(unsafe { word.read_volatile() })
    }

    /// Parks the running CPU: leaves for the park area, then writes `value` to `acknowledge`
    /// as the last thing before it halts.
    pub fn enter(
        &self,
        index: usize,
        how: How,
        acknowledge: &'static core::sync::atomic::AtomicU32,
        value: u32,
    ) -> ! {
        let (target, idt_pointer) = match how {
            How::Waiting => (&raw const park_wait, WAIT_IDT_POINTER),
            How::ForGood => (&raw const park_for_good, IDT_POINTER),
        };
        if how == How::Waiting {
            apic::set_task_priority(PRIORITY);
        }
        let call = Call {
            stack: self.area + STACKS + (index % MAX_CPUS + 1) as u64 * STACK_BYTES,
            acknowledge: acknowledge.as_ptr(),
            value: u64::from(value),
            root: self.root(),
            area: self.area,
            idt_pointer: self.area + idt_pointer,
            target: self.area + offset(target),
            mailbox: self.mailbox(index),
        };
        // SAFETY: the area was built; its tables map the running code and `acknowledge`.
        unsafe { park_enter(&call) }
    }

    /// Writes the start-up code for CPUs that INIT stops to the page at `page` (below
    /// 640 KiB, writable now, executable when it is used).
    pub fn prepare_start(&self, page: u64) {
        debug_assert!(page < 0xa_0000 && page & 0xfff == 0);
        let start = &raw const park_start;
        let field = |label: *const u8| page + (label as u64 - start as u64);
        // SAFETY: the caller owns the page; the labels bound the code to copy.
        unsafe {
            let bytes = (&raw const park_start_end).offset_from_unsigned(start);
            (page as *mut u8).copy_from_nonoverlapping(start, bytes);
        }
        let gdt_base = field(&raw const park_start_gdt_base);
        // SAFETY: inside the page, just copied.
        let gdt_offset = unsafe { (gdt_base as *const u32).read_unaligned() };
        write(gdt_base, gdt_offset + page as u32);
        // Both lie in the reserved region, far below 4 GiB.
        write(field(&raw const park_start_root), self.root() as u32);
        let landing = self.area + offset(&raw const park_landing);
        write(field(&raw const park_start_far_pointer), landing as u32);
    }
}

/// A checksum of the start-up code that [`Park::prepare_start`] wrote to the page at `page`.
#[must_use]
pub fn start_sum(page: u64) -> u64 {
    mix(0, Range { start: page, bytes: PAGE })
}

/// Offset of a label of the park code from its start.
fn offset(label: *const u8) -> u64 {
    label as u64 - (&raw const park_code) as u64
}

/// An interrupt gate to `handler` in the park code.
fn gate(handler: u64) -> Entry<HandlerFunc> {
    let mut gate: Entry<HandlerFunc> = Entry::missing();
    // SAFETY: the handler is code of the park area that follows the gate's protocol or never
    // returns; the selector is the one of the GDT it runs with.
    unsafe {
        gate.set_handler_addr(VirtAddr::new_truncate(handler))
            .set_code_selector(x86_64::structures::gdt::SegmentSelector(CODE_SELECTOR as u16));
    }
    gate
}
