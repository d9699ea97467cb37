//! Descriptor tables: one IDT for all CPUs, a GDT and a TSS for each.

use core::cell::UnsafeCell;

use handoff::MAX_CPUS;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::{Entry, HandlerFunc};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

use handoff::Range;

use super::boot::Stacks;
use super::cpu;
use super::trap::{self, vector};

/// IST slots, counted from 0 as the `x86_64` crate does.
const IST_NMI: u16 = 0;
const IST_DOUBLE_FAULT: u16 = 1;
const IST_MACHINE_CHECK: u16 = 2;

/// On pages of its own, so that it can be made read only.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: written during start-up only: the IDT by the boot processor before any other CPU
// runs, each CPU's GDT and TSS by that CPU; afterwards only the processor reads them.
unsafe impl<T> Sync for Shared<T> {}

type Idt = [Entry<HandlerFunc>; 256];

static IDT: Shared<Idt> = Shared(UnsafeCell::new([Entry::missing(); 256]));

struct PerCpu {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

static CPUS: Shared<[PerCpu; MAX_CPUS]> = Shared(UnsafeCell::new(
    [const { PerCpu { gdt: GlobalDescriptorTable::new(), tss: TaskStateSegment::new() } };
        MAX_CPUS],
));

/// Fills the IDT: every vector an interrupt gate, three of them with stacks of their own.
/// Called once, by the boot processor, before [`install`].
pub fn fill_idt() {
    for number in 0..=255u8 {
        // SAFETY: start-up, one CPU; the stub of this vector follows the gate's protocol.
        unsafe {
            let entry = &mut (*IDT.0.get())[usize::from(number)];
            let options = entry.set_handler_addr(VirtAddr::new(trap::stub(number)));
            match u64::from(number) {
                vector::NMI => {
                    options.set_stack_index(IST_NMI);
                }
                vector::DOUBLE_FAULT => {
                    options.set_stack_index(IST_DOUBLE_FAULT);
                }
                vector::MACHINE_CHECK => {
                    options.set_stack_index(IST_MACHINE_CHECK);
                }
                _ => {}
            }
        }
    }
}

/// Gives the running CPU, whose index is `index`, its tables.
pub fn install(index: usize, stacks: &Stacks) {
    // SAFETY: each CPU touches its own element, once, before it is loaded.
    unsafe {
        let cpu = (CPUS.0.get() as *mut PerCpu).add(index % MAX_CPUS);
        let tss = &raw mut (*cpu).tss;
        (*tss).interrupt_stack_table[usize::from(IST_NMI)] = VirtAddr::new(stacks.nmi_top());
        (*tss).interrupt_stack_table[usize::from(IST_DOUBLE_FAULT)] =
            VirtAddr::new(stacks.double_fault_top());
        (*tss).interrupt_stack_table[usize::from(IST_MACHINE_CHECK)] =
            VirtAddr::new(stacks.machine_check_top());
        let gdt = &mut (*cpu).gdt;
        // In the order of `SELECTORS`.
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        gdt.append(Descriptor::tss_segment_unchecked(tss));
    }
    load(index);
}

/// Where code, data and task stand in every GDT here.
const SELECTORS: [u16; 3] = [1, 2, 3];

/// Has the running CPU, whose index is `index`, use the tables that [`install`] made for it; a
/// second time when it had others meanwhile. Before they are made read only.
pub fn load(index: usize) {
    /// Of a task-state segment's descriptor (Intel SDM vol. 3, figure 7-4): the processor loads
    /// none that it knows to be in use.
    const BUSY: u64 = 1 << 41;
    let [code, data, task] = SELECTORS.map(|at| SegmentSelector::new(at, PrivilegeLevel::Ring0));
    // SAFETY: each CPU touches its own element, in which `install` has put the descriptors; the
    // statics live for ever.
    unsafe {
        let gdt = &mut (*(CPUS.0.get() as *mut PerCpu).add(index % MAX_CPUS)).gdt;
        let entries = gdt.entries().as_ptr().cast_mut().cast::<u64>();
        let descriptor = entries.add(usize::from(task.index()));
        descriptor.write_volatile(descriptor.read_volatile() & !BUSY);
        gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(task);
        lidt(&DescriptorTablePointer {
            limit: (size_of::<Idt>() - 1) as u16,
            base: VirtAddr::from_ptr(IDT.0.get()),
        });
    }
}

/// The pages of the IDT, and those of every CPU's GDT and TSS. Once all CPUs run on their
/// tables, only the processor reads them.
#[must_use]
pub fn pages() -> [Range; 2] {
    [
        Range { start: idt_address(), bytes: size_of::<Shared<Idt>>() as u64 },
        Range { start: CPUS.0.get() as u64, bytes: size_of::<Shared<[PerCpu; MAX_CPUS]>>() as u64 },
    ]
}

/// Where the IDT lies.
#[must_use]
pub fn idt_address() -> u64 {
    IDT.0.get() as u64
}

/// Where the GDT of CPU `index` lies.
#[must_use]
pub fn gdt_address(index: usize) -> u64 {
    let gdt_at = core::mem::offset_of!(PerCpu, gdt);
    CPUS.0.get() as u64 + ((index % MAX_CPUS) * size_of::<PerCpu>() + gdt_at) as u64
}

/// The gate of the NMI vector, as two words.
fn nmi_gate() -> *mut [u64; 2] {
    (idt_address() + vector::NMI * 16) as *mut [u64; 2]
}

/// Whether an NMI would reach this program's handler: the gate is present and leads to the
/// stub it was given at boot.
#[must_use]
pub fn nmi_gate_intact() -> bool {
    // SAFETY: inside the IDT, which is never unmapped; a gate is two words.
    let [low, high] = unsafe { nmi_gate().read_volatile() };
    // Intel SDM vol. 3, figure 6-8: offset in bits 0-15, 48-63 and 64-95; present is bit 47.
    let offset = (low & 0xffff) | (low >> 32 & 0xffff_0000) | (high << 32);
    low & (1 << 47) != 0 && offset == trap::stub(vector::NMI as u8)
}

/// Takes the NMI gate away: what a wild write over the IDT might do.
pub fn remove_nmi_gate() {
    // SAFETY: as above; done on purpose, to show what happens without the gate.
    cpu::without_write_protection(|| unsafe { nmi_gate().write_volatile([0, 0]) });
}
