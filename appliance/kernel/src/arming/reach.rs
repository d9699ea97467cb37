//! How much memory the page tables of the way out reach.

use handoff::facts::MemoryKind;
use machine::cpu;
use machine::paging::PAGE;

use crate::firmware::boot::BootInfo;
use crate::log;

/// Says at boot what a dump would lack: the page tables of the stop do not reach `left_out`
/// bytes of memory, and those of the capture image have to fit three quarters of the region's
/// `scratch` bytes.
pub fn tell_of_less(left_out: u64, scratch: u64, boot: &BootInfo) {
    const GIB: u64 = 1 << 30;
    let ram = boot.memory.iter().filter(|entry| entry.kind == MemoryKind::RAM);
    let bytes: u64 = ram.map(|entry| entry.range.bytes).sum();
    if left_out > 0 {
        log!(
            "arm: the page tables of the stop reach {} of {} GiB",
            bytes.saturating_sub(left_out) / GIB,
            bytes / GIB
        );
    }
    // A table for each GiB.
    let most = (scratch / 4 * 3 / PAGE).saturating_mul(GIB);
    if !cpu::has_1g_pages() && bytes > most {
        log!(
            "warning: armed with less: a dump would hold about the first {} of {} GiB: this processor \
             has no pages of 1 GiB, and there is no room for more page tables",
            most / GIB,
            bytes / GIB
        );
    }
}
