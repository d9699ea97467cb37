//! Lines as they come, the newest at the bottom.
//!
//! Reading from a framebuffer is slow, so what it shows is kept here as letters. When the
//! screen is full, half of it moves up at once, and only letters that change are drawn: a
//! line costs the drawing of about two, whatever the size of the screen.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::surface::{Ink, Surface};

/// Letters remembered: a larger screen is used in part.
const COLUMNS: u32 = 192;
const LINES: u32 = 72;

/// What the screen shows. CPUs may write at the same time: letters then mix, no more.
#[derive(Debug)]
pub struct Console {
    letters: [AtomicU8; (COLUMNS * LINES) as usize],
    column: AtomicU32,
    line: AtomicU32,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            letters: [const { AtomicU8::new(b' ') }; (COLUMNS * LINES) as usize],
            column: AtomicU32::new(0),
            line: AtomicU32::new(0),
        }
    }

    /// Clears `surface`, whatever it shows.
    pub fn clear(&self, surface: &Surface<'_>) {
        self.letters.iter().for_each(|letter| letter.store(b' ', Relaxed));
        self.column.store(0, Relaxed);
        self.line.store(0, Relaxed);
        for line in 0..surface.lines() {
            for column in 0..surface.columns(1) {
                surface.draw(column, line, 1, b' ', Ink::Grey, Ink::Black);
            }
        }
        surface.paint_margins(Ink::Black);
    }

    /// Shows `text`; a line feed ends a line, and one that is too long is cut.
    pub fn write(&self, surface: &Surface<'_>, text: &str) {
        text.bytes().for_each(|letter| self.letter(surface, letter));
    }

    /// Shows one letter, or ends a line.
    pub fn letter(&self, surface: &Surface<'_>, letter: u8) {
        match letter {
            b'\n' => self.next_line(surface),
            b'\r' => {}
            _ => self.put(surface, letter),
        }
    }

    fn size(surface: &Surface<'_>) -> (u32, u32) {
        (surface.columns(1).min(COLUMNS), surface.lines().min(LINES))
    }

    fn put(&self, surface: &Surface<'_>, letter: u8) {
        let (columns, lines) = Self::size(surface);
        let column = self.column.fetch_add(1, Relaxed);
        let line = self.line.load(Relaxed);
        if column < columns && line < lines {
            self.set(surface, column, line, letter);
        }
    }

    /// Shows a letter where another one stood.
    fn set(&self, surface: &Surface<'_>, column: u32, line: u32, letter: u8) {
        let Some(place) = self.letters.get((line * COLUMNS + column) as usize) else { return };
        if place.swap(letter, Relaxed) != letter {
            surface.draw(column, line, 1, letter, Ink::Grey, Ink::Black);
        }
    }

    fn next_line(&self, surface: &Surface<'_>) {
        let (columns, lines) = Self::size(surface);
        self.column.store(0, Relaxed);
        let line = self.line.load(Relaxed) + 1;
        if line < lines {
            self.line.store(line, Relaxed);
            return;
        }
        let by = lines.div_ceil(2);
        for line in 0..lines {
            for column in 0..columns {
                let from = ((line + by) * COLUMNS + column) as usize;
                let below = self.letters.get(from).filter(|_| line + by < lines);
                let letter = below.map_or(b' ', |place| place.load(Relaxed));
                self.set(surface, column, line, letter);
            }
        }
        self.line.store(lines.saturating_sub(by), Relaxed);
    }
}
