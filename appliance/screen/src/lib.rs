//! Text on a screen, for a console that scrolls and for the page that a crash leaves.
//!
//! A [`Surface`] is the screen the loader left: pixels, or the text cells of an old VGA. It
//! is borrowed memory of atomic words, so that CPUs that draw at the same time spoil each
//! other's letters and nothing else. [`Console`] shows lines as they come; [`Page`] is
//! written from the top down; [`Band`] is the strip at the bottom where whoever writes the
//! dump says how far it is.
//!
//! Promises, as crash code wants them: no allocation, no lock, no wait, no panic, no unsafe
//! code; the work is bounded by the size of the screen.
#![no_std]
#![forbid(unsafe_code)]

mod band;
mod console;
mod font;
mod page;
mod surface;

pub use band::{BAND_LINES, Band, Mood};
pub use console::Console;
pub use font::{GLYPH_HEIGHT, GLYPH_WIDTH};
pub use page::{Page, Style};
pub use surface::{Ink, Pixels, Surface, Text};
