//! Who is who, where a wild write cannot reach it.
//!
//! Which APIC ID belongs to which CPU, and which CPUs run, decides whom a stop reaches. It
//! is entered while CPUs are found and started, and lies on pages of its own, which become
//! read only once that is done. Everything else that is kept per CPU may be spoilt by a
//! crash without a CPU being missed or mistaken for another.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use handoff::{MAX_CPUS, Range};

/// APIC IDs below this are looked up in one step.
const SMALL_IDS: usize = 4096;

#[repr(C, align(4096))]
struct Roster {
    /// Index by APIC ID, plus one; 0 where there is none.
    by_apic_id: [AtomicU16; SMALL_IDS],
    apic_ids: [AtomicU32; MAX_CPUS],
    /// One bit per CPU; valid once sealed.
    running: [AtomicU64; MAX_CPUS / 64],
    count: AtomicU32,
    sealed: AtomicBool,
}

static ROSTER: Roster = Roster {
    by_apic_id: [const { AtomicU16::new(0) }; SMALL_IDS],
    apic_ids: [const { AtomicU32::new(0) }; MAX_CPUS],
    running: [const { AtomicU64::new(0) }; MAX_CPUS / 64],
    count: AtomicU32::new(1),
    sealed: AtomicBool::new(false),
};

/// Enters CPU `index`. Before [`seal`] only.
pub fn enter(index: usize, apic_id: u32) {
    ROSTER.apic_ids[index % MAX_CPUS].store(apic_id, Ordering::Relaxed);
    if let Some(slot) = ROSTER.by_apic_id.get(apic_id as usize) {
        slot.store(index as u16 + 1, Ordering::Relaxed);
    }
}

/// Sets how many CPUs there are. Before [`seal`] only.
pub fn set_count(count: usize) {
    ROSTER.count.store(count as u32, Ordering::Release);
}

/// How many CPUs were found, started or not.
#[must_use]
pub fn count() -> usize {
    (ROSTER.count.load(Ordering::Acquire) as usize).min(MAX_CPUS)
}

/// APIC ID of CPU `index`.
#[must_use]
pub fn apic_id(index: usize) -> u32 {
    ROSTER.apic_ids[index % MAX_CPUS].load(Ordering::Relaxed)
}

/// Index of the CPU with `apic_id`.
#[must_use]
pub fn index_of(apic_id: u32) -> Option<usize> {
    if let Some(slot) = ROSTER.by_apic_id.get(apic_id as usize) {
        return usize::from(slot.load(Ordering::Relaxed)).checked_sub(1);
    }
    let ids = ROSTER.apic_ids.iter().take(count());
    ids.map(|id| id.load(Ordering::Relaxed)).position(|id| id == apic_id)
}

/// Closes the roster: the CPUs in `running` take part from now on, and no others. Its pages
/// are to be made read only next.
pub fn seal(running: impl Iterator<Item = usize>) {
    for index in running.filter(|&index| index < MAX_CPUS) {
        ROSTER.running[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
    }
    ROSTER.sealed.store(true, Ordering::SeqCst);
}

/// Whether CPU `index` takes part; not known before [`seal`].
#[must_use]
pub fn running(index: usize) -> Option<bool> {
    let bit = || ROSTER.running[index / 64 % ROSTER.running.len()].load(Ordering::Relaxed);
    ROSTER.sealed.load(Ordering::SeqCst).then(|| bit() >> (index % 64) & 1 != 0)
}

/// The pages of the roster.
#[must_use]
pub fn pages() -> Range {
    Range { start: (&raw const ROSTER) as u64, bytes: size_of::<Roster>() as u64 }
}
