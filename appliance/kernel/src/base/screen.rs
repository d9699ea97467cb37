//! The screen the loader left, as a console until a crash.
//!
//! A crash takes it over: from the moment one is claimed, lines go to the serial port and
//! the log only, since drawing takes time that the stop does not have. The page that says
//! what happened (see [`page`](crate::crash::page)) is drawn when everybody has stopped.

use handoff::Range;
use handoff::devices::Framebuffer;
use handoff::facts::MemoryKind;
use machine::cell::SetOnce;
use machine::framebuffer;
use screen::{Console, Surface};

use crate::arming::arm;
use crate::base::console;
use crate::base::memory::Memory;
use crate::base::physical::Physical;
use crate::firmware::boot::BootInfo;
use crate::{crash, log};

static FACTS: SetOnce<Framebuffer> = SetOnce::new();
static SURFACE: SetOnce<Surface<'static>> = SetOnce::new();
static CONSOLE: Console = Console::new();

/// Takes the screen the loader described into use, at once where it is mapped already.
pub fn find(boot: &BootInfo) {
    let Some(facts) = boot.framebuffer else { return };
    let range = Range { start: facts.address, bytes: framebuffer::bytes(&facts) };
    let ram = |entry: &&handoff::MemoryRange| entry.kind == MemoryKind::RAM;
    let clash = boot.memory.iter().filter(ram).any(|entry| entry.range.overlaps(&range));
    let reason = match framebuffer::surface(&facts) {
        Ok(_) if !clash && range.start.checked_add(range.bytes).is_some() => {
            FACTS.set(facts);
            if Memory.bytes(range.start, range.bytes as usize).is_some() {
                begin();
            }
            return;
        }
        Ok(_) => framebuffer::FramebufferError::Shape,
        Err(reason) => reason,
    };
    log!("screen: {} by {} at {:#x}: {reason}", facts.width, facts.height, facts.address);
}

/// The kernel's own page tables are in use, which map the screen wherever it lies.
pub fn all_memory_is_mapped() {
    if SURFACE.get().is_none() {
        begin();
    }
}

/// Shows the log so far, and from now on every line.
fn begin() {
    let Some(facts) = FACTS.get() else { return };
    let Ok(surface) = framebuffer::surface(facts) else { return };
    CONSOLE.clear(&surface);
    console::so_far(&mut |letter| CONSOLE.letter(&surface, letter));
    SURFACE.set(surface);
    log!(
        "screen: {} by {} at {:#x}, {} columns, {} lines",
        facts.width,
        facts.height,
        facts.address,
        surface.columns(1),
        surface.lines()
    );
}

/// Where the screen's memory lies, to be mapped.
pub fn memory() -> Option<Range> {
    let facts = FACTS.get()?;
    Some(Range { start: facts.address, bytes: framebuffer::bytes(facts) })
}

/// What the capture image is told of it; all zero for none.
pub fn facts() -> Framebuffer {
    FACTS.get().copied().unwrap_or_default()
}

/// The screen for a crash to draw on: that of the sealed facts, since what lies in ordinary
/// memory may be what the crash has spoilt. Before there are any, the one in use.
pub fn for_a_crash() -> Option<Surface<'static>> {
    let in_use = *SURFACE.get()?;
    match arm::sealed() {
        Ok(facts) => framebuffer::surface(&facts.framebuffer).ok(),
        Err(_) => Some(in_use),
    }
}

/// Shows `text`, until there is a crash.
pub fn write(text: &str) {
    if let Some(surface) = SURFACE.get()
        && crash::stopper().is_none()
    {
        CONSOLE.write(surface, text);
    }
}
