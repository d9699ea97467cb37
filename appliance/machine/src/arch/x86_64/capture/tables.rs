//! Descriptor tables for the one CPU that runs the capture image.
//!
//! Apart from the appliance's, which hold room for every CPU there can be: the image is
//! kept small, since all of it is reserved memory that its checksum is taken over.

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::{Entry, HandlerFunc};
use x86_64::structures::tss::TaskStateSegment;

use crate::boot::Stacks;
use crate::trap::{self, vector};

/// The stacks of their own, by IST slot, counted from 0 as the `x86_64` crate does.
const IST: [u64; 3] = [vector::NMI, vector::DOUBLE_FAULT, vector::MACHINE_CHECK];

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
            let options = entry.set_handler_addr(VirtAddr::new(trap::stub(number)));
            if let Some(slot) = IST.iter().position(|&vector| vector == u64::from(number)) {
                options.set_stack_index(slot as u16);
            }
        }
        for (slot, top) in tops.into_iter().enumerate() {
            tables.tss.interrupt_stack_table[slot] = VirtAddr::new(top);
        }
        let code = tables.gdt.append(Descriptor::kernel_code_segment());
        let data = tables.gdt.append(Descriptor::kernel_data_segment());
        let task = tables.gdt.append(Descriptor::tss_segment_unchecked(&raw const tables.tss));
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(task);
        lidt(&DescriptorTablePointer {
            limit: (size_of::<[Entry<HandlerFunc>; 256]>() - 1) as u16,
            base: VirtAddr::from_ptr(&raw const tables.idt),
        });
    }
}
