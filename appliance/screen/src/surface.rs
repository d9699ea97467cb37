//! The screen as memory: pixels, or the cells of a text mode.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

use crate::font::{GLYPH_HEIGHT, GLYPH_WIDTH, Glyph, glyph};

/// Height in pixels from which on every letter is drawn twice as large, and so on: a letter
/// keeps its share of the screen.
const ZOOM_HEIGHT: u32 = 1440;

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Black.
    Black,
    /// White.
    White,
    /// Light grey.
    Grey,
    /// A red that white letters stand out from.
    Red,
    /// A green that white letters stand out from.
    Green,
    /// Amber.
    Amber,
    /// A dark blue.
    Blue,
    /// A light red, to be read on black.
    Rose,
}

impl Ink {
    /// Red, green and blue.
    #[must_use]
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Black => [0, 0, 0],
            Self::White => [255, 255, 255],
            Self::Grey => [170, 170, 170],
            Self::Red => [190, 20, 20],
            Self::Green => [0, 120, 40],
            Self::Amber => [255, 190, 60],
            Self::Blue => [20, 40, 110],
            Self::Rose => [255, 130, 120],
        }
    }

    /// The colour's number in a text mode (IBM VGA).
    const fn number(self) -> u16 {
        match self {
            Self::Black => 0,
            Self::White => 15,
            Self::Grey => 7,
            Self::Red => 4,
            Self::Green => 2,
            Self::Amber => 14,
            Self::Blue => 1,
            Self::Rose => 12,
        }
    }
}

/// A linear framebuffer with 32 bits a pixel.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    /// Its words, row after row.
    pub memory: &'a [AtomicU32],
    /// Words from one row to the next.
    pub pitch: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Lowest bit of red, green and blue in a pixel; each has eight.
    pub shifts: [u8; 3],
}

/// Text cells of 16 bits: the letter in the low byte, its colours in the high one.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// The cells, row after row.
    pub memory: &'a [AtomicU16],
    /// Cells in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

/// What can be drawn on.
#[derive(Clone, Copy, Debug)]
pub enum Surface<'a> {
    /// Pixels.
    Pixels(Pixels<'a>),
    /// Text cells.
    Text(Text<'a>),
}

impl Pixels<'_> {
    const fn zoom(&self) -> u32 {
        1 + self.height / ZOOM_HEIGHT
    }

    const fn word(&self, ink: Ink) -> u32 {
        let [red, green, blue] = ink.rgb();
        let [to_red, to_green, to_blue] = self.shifts;
        (red as u32) << (to_red as u32 & 31)
            | (green as u32) << (to_green as u32 & 31)
            | (blue as u32) << (to_blue as u32 & 31)
    }

    /// Draws `glyph` with its upper left corner at a pixel, `size` pixels for one of its
    /// own.
    fn draw(&self, left: u32, top: u32, size: u32, glyph: &Glyph, ink: Ink, paper: Ink) {
        let (ink, paper) = (self.word(ink), self.word(paper));
        for (y, bits) in (top..).step_by(size.max(1) as usize).zip(glyph) {
            for row in y..y.saturating_add(size).min(self.height) {
                let start = row as usize * self.pitch as usize + left as usize;
                let end = start + (GLYPH_WIDTH * size) as usize;
                let Some(words) = self.memory.get(start..end) else { return };
                for (column, pixels) in words.chunks_exact(size.max(1) as usize).enumerate() {
                    let set = bits >> (GLYPH_WIDTH as usize - 1 - column) & 1 != 0;
                    for pixel in pixels {
                        pixel.store(if set { ink } else { paper }, Relaxed);
                    }
                }
            }
        }
    }
}

impl Surface<'_> {
    /// Lines of ordinary size that fit one below the other.
    #[must_use]
    pub const fn lines(&self) -> u32 {
        match self {
            Self::Pixels(pixels) => pixels.height / (GLYPH_HEIGHT * pixels.zoom()),
            Self::Text(text) => text.rows,
        }
    }

    /// Letters, `scale` times as large as ordinary ones, that fit into a line.
    #[must_use]
    pub const fn columns(&self, scale: u32) -> u32 {
        match self {
            Self::Pixels(pixels) => {
                // Letters without a size fit nowhere.
                match pixels.width.checked_div(GLYPH_WIDTH * pixels.zoom() * scale) {
                    Some(columns) => columns,
                    None => 0,
                }
            }
            Self::Text(text) => text.columns,
        }
    }

    /// Ordinary lines that one with letters `scale` times as large takes.
    #[must_use]
    pub const fn lines_of(&self, scale: u32) -> u32 {
        match self {
            Self::Pixels(_) => scale,
            Self::Text(_) => 1,
        }
    }

    /// Draws one letter, `scale` times as large as ordinary ones, into `column` of such
    /// letters, at ordinary line `line`. What does not fit is not drawn.
    pub fn draw(&self, column: u32, line: u32, scale: u32, letter: u8, ink: Ink, paper: Ink) {
        if column >= self.columns(scale) || line >= self.lines() {
            return;
        }
        match self {
            Self::Pixels(pixels) => {
                let size = scale * pixels.zoom();
                let (left, top) = (column * GLYPH_WIDTH * size, line * GLYPH_HEIGHT);
                pixels.draw(left, top * pixels.zoom(), size, glyph(letter), ink, paper);
            }
            Self::Text(text) => {
                let letter = if (b' '..=b'~').contains(&letter) { letter } else { b'?' };
                let cell = u16::from(letter) | ink.number() << 8 | (paper.number() & 7) << 12;
                if let Some(place) = text.memory.get((line * text.columns + column) as usize) {
                    place.store(cell, Relaxed);
                }
            }
        }
    }

    /// Paints what no letter covers, at the right and at the bottom.
    pub fn paint_margins(&self, paper: Ink) {
        let Self::Pixels(pixels) = self else { return };
        let word = pixels.word(paper);
        let letters = self.columns(1) * GLYPH_WIDTH * pixels.zoom();
        let lines = self.lines() * GLYPH_HEIGHT * pixels.zoom();
        for row in 0..pixels.height {
            let start = if row < lines { letters } else { 0 };
            let at = |column: u32| row as usize * pixels.pitch as usize + column as usize;
            let Some(words) = pixels.memory.get(at(start)..at(pixels.width)) else { return };
            words.iter().for_each(|pixel| pixel.store(word, Relaxed));
        }
    }
}
