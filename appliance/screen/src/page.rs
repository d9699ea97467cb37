//! A page written from the top down, line by line, each in its own size and colours.

use core::fmt::{self, Write};

use crate::surface::{Ink, Surface};

/// How a line looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// How many times as large as ordinary its letters are.
    pub scale: u32,
    /// Its letters.
    pub ink: Ink,
    /// What is behind them.
    pub paper: Ink,
}

/// The page so far.
#[derive(Debug)]
pub struct Page<'a> {
    surface: Surface<'a>,
    line: u32,
    end: u32,
}

/// A line under way.
struct Line<'a> {
    surface: Surface<'a>,
    style: Style,
    line: u32,
    column: u32,
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            self.letter(u8::try_from(letter).unwrap_or(b'?'));
        }
        Ok(())
    }
}

impl Line<'_> {
    /// The surface leaves out what does not fit into the line.
    fn letter(&mut self, letter: u8) {
        let Style { scale, ink, paper } = self.style;
        self.surface.draw(self.column, self.line, scale, letter, ink, paper);
        self.column = self.column.saturating_add(1);
    }
}

impl<'a> Page<'a> {
    /// A page of the lines from `line` to the one before `end`, counted in ordinary lines.
    #[must_use]
    pub fn new(surface: Surface<'a>, line: u32, end: u32) -> Self {
        Self { surface, line, end: end.min(surface.lines()) }
    }

    /// Ordinary lines that are left.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.end.saturating_sub(self.line)
    }

    /// Writes a line, a little away from the edge; false, and nothing written, when there is
    /// no room for it.
    pub fn line(&mut self, style: Style, text: fmt::Arguments<'_>) -> bool {
        let height = self.surface.lines_of(style.scale);
        if height > self.left() {
            return false;
        }
        let mut line = Line { surface: self.surface, style, line: self.line, column: 0 };
        (0..indent(style.scale)).for_each(|_| line.letter(b' '));
        // Drawing never fails.
        let _ = line.write_fmt(text);
        while line.column < self.surface.columns(style.scale) {
            line.letter(b' ');
        }
        self.line += height;
        true
    }

    /// Writes `text` over at most `most` lines, broken at spaces where there are any.
    pub fn paragraph(&mut self, style: Style, most: u32, text: &str) {
        let columns = self.surface.columns(style.scale);
        let width = columns.saturating_sub(2 * indent(style.scale)) as usize;
        let mut rest = text.trim();
        for _ in 0..most {
            let (now, later) = broken(rest, width);
            if rest.is_empty() || !self.line(style, format_args!("{now}")) {
                return;
            }
            rest = later;
        }
    }

    /// Leaves the rest of the page empty.
    pub fn finish(&mut self, paper: Ink) {
        let empty = Style { scale: 1, ink: paper, paper };
        while self.line(empty, format_args!("")) {}
    }
}

/// Letters that stay free before a line: about as much of the screen in every size.
const fn indent(scale: u32) -> u32 {
    if scale == 1 { 2 } else { 1 }
}

/// The part of `text` that fits into `width` letters, and what is left for the next line.
fn broken(text: &str, width: usize) -> (&str, &str) {
    let Some((end, _)) = text.char_indices().nth(width) else { return (text, "") };
    let Some((now, later)) = text.split_at_checked(end) else { return (text, "") };
    // By bytes: searching a text for a letter can panic as far as the compiler knows.
    let space = now.bytes().rposition(|byte| byte == b' ');
    match space.and_then(|space| now.get(..space)) {
        // What follows a space right behind the line needs no break inside it.
        Some(before) if !later.starts_with(' ') => {
            (before, text.get(before.len()..).unwrap_or_default().trim_start())
        }
        _ => (now, later.trim_start()),
    }
}

#[cfg(test)]
mod tests {
    use super::broken;

    #[test]
    fn lines_break_at_spaces_where_there_are_any() {
        assert_eq!(broken("all of it", 20), ("all of it", ""));
        assert_eq!(broken("one two three", 9), ("one two", "three"));
        assert_eq!(broken("one two three", 7), ("one two", "three"));
        assert_eq!(broken("abcdefgh", 3), ("abc", "defgh"));
        assert_eq!(broken("äöü äöü", 5), ("äöü", "äöü"));
        assert_eq!(broken("", 5), ("", ""));
    }
}
