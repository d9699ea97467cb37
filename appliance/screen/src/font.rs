//! The letters: X11's fixed font, 10 by 20 pixels, the printable part of ASCII.

/// Pixels a letter is wide.
pub const GLYPH_WIDTH: u32 = 10;
/// Pixels a letter is high.
pub const GLYPH_HEIGHT: u32 = 20;

/// Rows of a letter from the top down; bit 9 is its leftmost pixel.
pub(crate) type Glyph = [u16; GLYPH_HEIGHT as usize];

static GLYPHS: [Glyph; 95] = include!(concat!(env!("OUT_DIR"), "/glyphs.rs"));

/// The letter for `byte`; a question mark for what is not printable ASCII.
pub(crate) fn glyph(byte: u8) -> &'static Glyph {
    const UNKNOWN: usize = (b'?' - b' ') as usize;
    GLYPHS.get(usize::from(byte.wrapping_sub(b' '))).unwrap_or(&GLYPHS[UNKNOWN])
}
