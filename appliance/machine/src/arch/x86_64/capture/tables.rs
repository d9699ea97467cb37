//! Descriptor tables for the one CPU that runs the capture image.
//!
//! Apart from the appliance's, which hold room for every CPU there can be: the image is
//! kept small, since all of it is reserved memory that its checksum is taken over.

use core::cell::UnsafeCell;

use x86_64::PrivilegeLevel;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lgdt, lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{
    Descriptor, DescriptorFlags, GlobalDescriptorTable, SegmentSelector,
};
use x86_64::structures::idt::{Entry, HandlerFunc};
use x86_64::structures::tss::TaskStateSegment;

use crate::boot::Stacks;
use crate::trap::{self, vector};

/// The stacks of their own, by IST slot, counted from 0 as the `x86_64` crate does.
const IST: [u64; 3] = [vector::NMI, vector::DOUBLE_FAULT, vector::MACHINE_CHECK];

/// The segments that 64-bit code needs (Intel SDM vol. 3, 3.4.5).
const FLAT_CODE: u64 = DescriptorFlags::KERNEL_CODE64.bits();
const FLAT_DATA: u64 = DescriptorFlags::KERNEL_DATA.bits();

struct Tables {
    idt: [Entry<HandlerFunc>; 256],
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

struct Own(UnsafeCell<Tables>);

// SAFETY: written by `install`, which the image's one CPU calls once, before any trap;
// afterwards only the processor reads it.
unsafe impl Sync for Own {}

static TABLES: Own = Own(UnsafeCell::new(Tables {
    idt: [Entry::missing(); 256],
    gdt: GlobalDescriptorTable::new(),
    tss: TaskStateSegment::new(),
}));

/// Fills the tables and loads them: every vector an interrupt gate to its stub, three of
/// them on stacks of their own.
pub fn install(stacks: &Stacks) {
    let tops = [stacks.nmi_top(), stacks.double_fault_top(), stacks.machine_check_top()];
    // SAFETY: the image's one CPU is here for the only time, with interrupts masked; the
    // tables live for ever, and the stubs follow the gates' protocol.
    unsafe {
        let tables = &mut *TABLES.0.get();
        for (number, entry) in (0..=255u8).zip(&mut tables.idt) {
            let options = entry.set_handler_addr(VirtAddr::new_truncate(trap::stub(number)));
            if let Some(slot) = IST.iter().position(|&vector| vector == u64::from(number)) {
                options.set_stack_index(slot as u16);
            }
        }
        let mut stacks = tables.tss.interrupt_stack_table;
        for (slot, top) in stacks.iter_mut().zip(tops) {
            *slot = VirtAddr::new_truncate(top);
        }
        tables.tss.interrupt_stack_table = stacks;
        let mut entries = [0, FLAT_CODE, FLAT_DATA, 0, 0];
        let task = Descriptor::tss_segment_unchecked(&raw const tables.tss);
        if let Descriptor::SystemSegment(low, high) = task {
            (entries[3], entries[4]) = (low, high);
        }
        tables.gdt = GlobalDescriptorTable::from_raw_entries(&entries);
        lgdt(&DescriptorTablePointer {
            limit: tables.gdt.limit(),
            base: VirtAddr::new_truncate(tables.gdt.entries().as_ptr() as u64),
        });
        let [code, data, task] =
            [1, 2, 3].map(|at| SegmentSelector::new(at, PrivilegeLevel::Ring0));
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(task);
        lidt(&DescriptorTablePointer {
            limit: (size_of::<[Entry<HandlerFunc>; 256]>() - 1) as u16,
            base: VirtAddr::new_truncate(&raw const tables.idt as u64),
        });
    }
}
