//! Getting ready: the capture image into reserved memory, and the facts that it will need.
#![expect(unsafe_code, reason = "reads what the loader left in memory")]

use core::sync::atomic::Ordering::Relaxed;

use handoff::crash::set_text;
use handoff::facts::{DumpPages, MemoryKind, Policy};
use handoff::{BootFacts, MemoryRange, Range, image};

use crate::machine::{self, LINEAR, memory};

/// The reserved region: the image, from 2 MiB on the facts, from 4 MiB on scratch memory.
const REGION: Range = Range { start: 16 << 20, bytes: 8 << 20 };
pub const FACTS: u64 = 18 << 20;

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
}

/// Loads the capture image and seals the facts. `start_info` is the physical address of the
/// loader's `struct hvm_start_info` (Xen, "x86/HVM direct boot ABI").
///
/// # Safety
/// Nothing else uses what the loader left, or the region.
pub unsafe fn arm(start_info: u64) -> Result<(), image::ImageError> {
    // SAFETY: all of it was left by the loader or the linker, or lies in the region.
    unsafe {
        let &mut [_, _, modules, line, rsdp, map, map_entries] = &mut memory(start_info, 1)[0];
        let &mut [module, module_bytes] = &mut memory::<[u64; 2]>(modules, 1)[0];
        let room = memory(REGION.start, 2 << 20);
        let loaded = image::load(memory(module, module_bytes as usize), room)?;

        let mut facts = BootFacts::new();
        facts.region = REGION;
        facts.image = Range { start: REGION.start, bytes: loaded.bytes };
        facts.image_entry = REGION.start + loaded.entry_offset;
        facts.image_crc32 = loaded.crc32;
        facts.scratch = Range::between(REGION.start + (4 << 20), REGION.end());
        (facts.policy, facts.pages) = (Policy::REBOOT, DumpPages::ALL);
        facts.tsc_hz = machine::TSC_HZ.load(Relaxed);
        facts.rsdp = rsdp;
        facts.serial_port = 0x3f8;
        facts.cpu_count = machine::CPUS as u32;
        let line = memory::<u8>(line, 1023).split(|&byte| byte == 0).next().unwrap_or_default();
        set_text(&mut facts.command_line, core::str::from_utf8(line).unwrap_or_default());
        let map = memory::<[u64; 3]>(map, map_entries as u32 as usize);
        for (place, &mut [start, bytes, kind]) in facts.memory.iter_mut().zip(map) {
            // The kinds of the contract are those of the firmware's map.
            let kind = MemoryKind(kind as u32);
            *place = MemoryRange { range: Range { start, bytes }, kind, reserved: 0 };
            facts.memory_count += 1;
        }
        let [start, end] = [&raw const image_start, &raw const image_end].map(machine::physical);
        facts.add_virtual_segment(LINEAR, Range::between(0, start), 6)?;
        facts.describe_image(memory(start, (end - start) as usize), start)?;
        facts.add_virtual_segment(LINEAR + end, Range::between(end, 1 << 32), 6)?;
        set_text(&mut facts.image_name, "foreign");
        facts.seal();
        memory::<BootFacts>(FACTS, 1)[0] = facts;
    }
    Ok(())
}
