//! The flight recorder's memory: see `machine::trace` for what it records.

use machine::paging::PAGE;
use machine::{cpu, trace};

use crate::base::{cpus, memory};
use crate::log;

/// Gives every CPU a ring and begins to record. Says what an event costs here.
pub fn begin() {
    let rings = cpus::count() as u64;
    let bytes = rings * trace::RING_BYTES;
    let Some(memory) = memory::allocate_words(bytes.div_ceil(PAGE)) else {
        log!("trace: no memory for {} KiB of events; nothing is recorded", bytes >> 10);
        return;
    };
    trace::begin(memory);
    let enabled = cpu::interrupts_enabled();
    cpu::interrupts_off();
    let cycles = trace::measure();
    if enabled {
        cpu::interrupts_on();
    }
    let events = trace::SLOTS;
    log!("trace: the last {events} events of each CPU, {} KiB, {cycles} cycles each", bytes >> 10);
}
