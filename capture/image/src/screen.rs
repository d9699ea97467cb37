//! The strip at the bottom of the crash's page: how far the dump is, and how it ended.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use ::screen::{Band, Mood};
use handoff::{BootFacts, Range};
use machine::capture::memory;
use machine::cell::SetOnce;
use machine::framebuffer;
use storage::amount::Mib;

use crate::{clock, rehearsal};

/// Nanoseconds between two drawings of progress.
const INTERVAL_NS: u64 = 100_000_000;

static BAND: SetOnce<Band<'static>> = SetOnce::new();
static NEXT_NS: AtomicU64 = AtomicU64::new(0);

/// Takes the screen that the facts name into use. In the image's own page tables, since it
/// has to be mapped. In a rehearsal it is the appliance's.
pub fn find(facts: &BootFacts) {
    let screen = &facts.framebuffer;
    let range = Range { start: screen.address, bytes: framebuffer::bytes(screen) };
    let clash = facts
        .memory()
        .iter()
        .any(|entry| entry.kind == handoff::facts::MemoryKind::RAM && entry.range.overlaps(&range));
    let wraps = range.start.checked_add(range.bytes).is_none();
    let taken = rehearsal::under_way();
    if clash || wraps || taken || range.bytes == 0 || !memory::map_screen(range) {
        return;
    }
    if let Ok(surface) = framebuffer::surface(screen) {
        BAND.set(Band::new(surface));
    }
}

fn show(mood: Mood, percent: u32, headline: fmt::Arguments<'_>, details: fmt::Arguments<'_>) {
    if let Some(band) = BAND.get() {
        band.show(mood, percent, headline, details);
    }
}

/// Something takes a while.
pub fn busy(headline: fmt::Arguments<'_>, details: fmt::Arguments<'_>) {
    show(Mood::Busy, 0, headline, details);
}

/// So many bytes of so many are written. Not drawn each time: the dump goes before.
pub fn progress(done: u64, total: u64) {
    let now = clock::now_ns();
    if BAND.get().is_none() || now < NEXT_NS.load(Ordering::Relaxed) {
        return;
    }
    NEXT_NS.store(now.saturating_add(INTERVAL_NS), Ordering::Relaxed);
    let percent = (u128::from(done) * 100 / u128::from(total.max(1))) as u32;
    show(
        Mood::Busy,
        percent,
        format_args!("capturing {percent} %"),
        format_args!("{} of {}", Mib(done), Mib(total)),
    );
}

/// There is a dump.
pub fn good(headline: fmt::Arguments<'_>, details: fmt::Arguments<'_>) {
    show(Mood::Good, 100, headline, details);
}

/// There is none.
pub fn bad(reason: fmt::Arguments<'_>) {
    show(Mood::Bad, 0, format_args!("NO DUMP, last words on the serial port"), reason);
}
