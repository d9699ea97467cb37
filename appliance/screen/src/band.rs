//! The strip at the bottom of a crash's page: how far the dump is.

use core::fmt;

use crate::page::{Page, Style};
use crate::surface::{Ink, Surface};

/// How it looks: what matters is seen from across the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Under way.
    Busy,
    /// There is a dump.
    Good,
    /// There is none.
    Bad,
}

/// Ordinary lines of the strip.
pub const BAND_LINES: u32 = 5;
/// The same in a text mode, where letters have one size.
const TEXT_LINES: u32 = 3;

/// The strip on a screen.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    surface: Surface<'a>,
}

impl<'a> Band<'a> {
    /// At the bottom of `surface`.
    #[must_use]
    pub const fn new(surface: Surface<'a>) -> Self {
        Self { surface }
    }

    /// The first of its lines, which is the end of the page above it.
    #[must_use]
    pub const fn first_line(&self) -> u32 {
        let lines = match self.surface {
            Surface::Pixels(_) => BAND_LINES,
            Surface::Text(_) => TEXT_LINES,
        };
        self.surface.lines().saturating_sub(lines)
    }

    /// Shows a headline, a bar of `percent` and a line of details. What is bad has no bar.
    pub fn show(
        &self,
        mood: Mood,
        percent: u32,
        headline: fmt::Arguments<'_>,
        details: fmt::Arguments<'_>,
    ) {
        let paper = match mood {
            Mood::Busy => Ink::Blue,
            Mood::Good => Ink::Green,
            Mood::Bad => Ink::Red,
        };
        let style = |scale| Style { scale, ink: Ink::White, paper };
        let first = self.first_line();
        let mut page = Page::new(self.surface, first, self.surface.lines());
        page.line(style(2), headline);
        if mood != Mood::Bad {
            self.bar(first + self.surface.lines_of(2), percent, paper);
            let below = first + self.surface.lines_of(2) * 2;
            page = Page::new(self.surface, below, self.surface.lines());
        }
        page.line(style(1), details);
        page.finish(paper);
    }

    /// A bar as long as the line, less a letter at each end.
    fn bar(&self, line: u32, percent: u32, paper: Ink) {
        let columns = self.surface.columns(2);
        let inside = columns.saturating_sub(2);
        let full = inside * percent.min(100) / 100;
        for column in 0..columns {
            let (letter, paper) = match column.checked_sub(1) {
                Some(at) if at < full => (b' ', Ink::White),
                Some(at) if at < inside => (b'.', paper),
                _ => (b' ', paper),
            };
            self.surface.draw(column, line, 2, letter, Ink::White, paper);
        }
    }
}
