//! Starting the other CPUs.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use handoff::MAX_CPUS;

use super::apic::{self, Ipi};
use super::boot::{CR0_KEEP, CR0_SET, CR4_SET, EFER_SET, Stacks};

/// One CPU to start.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Entry {
    stack_top: u64,
    apic_id: u32,
    index: u32,
}

struct Table(UnsafeCell<[Entry; MAX_CPUS]>);

// SAFETY: written by the boot processor before the start-up IPIs are sent, read after.
unsafe impl Sync for Table {}

static TABLE: Table =
    Table(UnsafeCell::new([Entry { stack_top: 0, apic_id: 0, index: 0 }; MAX_CPUS]));

/// What a started CPU runs, with its index; on its own stack, interrupts masked.
pub type Main = fn(index: u32) -> !;

static MAIN: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
/// Page-table root that a started CPU loads.
static ROOT: AtomicU64 = AtomicU64::new(0);

extern "C" fn ap_main(index: u32) -> ! {
    let main = MAIN.load(Ordering::Acquire);
    // SAFETY: `prepare` stored a `Main` before any CPU was started.
    let main = unsafe { core::mem::transmute::<*mut (), Main>(main) };
    main(index)
}

global_asm!(
    include_str!("apic_id.S"),
    include_str!("long_mode.S"),
    include_str!("real_mode.S"),
    include_str!("smp.S"),
    table = sym TABLE,
    root = sym ROOT,
    table_entries = const MAX_CPUS,
    entry_bytes = const size_of::<Entry>(),
    entry_apic_id = const offset_of!(Entry, apic_id),
    entry_stack_top = const offset_of!(Entry, stack_top),
    entry_index = const offset_of!(Entry, index),
    main = sym ap_main,
    cr4_set = const CR4_SET,
    efer_set = const EFER_SET,
    cr0_set = const CR0_SET,
    cr0_keep = const CR0_KEEP,
);

unsafe extern "C" {
    static ap_start: u8;
    static ap_start_end: u8;
    static ap_start_gdt_base: u8;
}

/// Bytes that [`prepare`] writes at the start-up page.
fn trampoline_bytes() -> u64 {
    (&raw const ap_start_end) as u64 - (&raw const ap_start) as u64
}

/// Writes the start-up code to the page at `page` (below 640 KiB, writable now, executable
/// when the CPUs start) and sets what they run.
pub fn prepare(page: u64, main: Main) {
    debug_assert!(page < 0xa_0000 && page & 0xfff == 0);
    MAIN.store(main as *mut (), Ordering::Release);
    let target = page as *mut u8;
    // SAFETY: the caller owns the page; the labels bound the code to copy, and the field
    // patched lies inside it.
    unsafe {
        let start = &raw const ap_start;
        target.copy_from_nonoverlapping(start, trampoline_bytes() as usize);
        let gdt_base =
            target.add((&raw const ap_start_gdt_base).offset_from_unsigned(start)).cast::<u32>();
        gdt_base.write_unaligned(gdt_base.read_unaligned() + page as u32);
    }
}

/// Sets the page-table root that started CPUs run on.
pub fn set_root(root: u64) {
    ROOT.store(root, Ordering::Release);
}

/// Enters CPU `index` with `apic_id` into the table that starting CPUs look themselves up in.
pub fn expect(index: u32, apic_id: u32, stacks: &Stacks) {
    let entry = Entry { stack_top: stacks.main_top(), apic_id, index };
    // SAFETY: start-up on the boot processor, before this CPU is sent its start-up IPI.
    unsafe { (*TABLE.0.get())[index as usize % MAX_CPUS] = entry };
}

/// Sends INIT to one CPU. 10 ms later it is ready for [`start_up`] (Intel SDM vol. 3, 9.4.4.1).
pub fn init(apic_id: u32) {
    apic::send(apic_id, Ipi::Init);
}

/// Sends the start-up IPI that makes a CPU run the code at `page`.
pub fn start_up(apic_id: u32, page: u64) {
    apic::send(apic_id, Ipi::Startup((page >> 12) as u8));
}
