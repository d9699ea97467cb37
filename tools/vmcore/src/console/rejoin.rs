//! Joins lines of last words that were torn on their way into a file.
//!
//! A terminal of 80 columns wraps a line of 221; what is copied from it has a line break
//! there, often without the blanks in front of it. A logger puts a prefix before each
//! line, a kernel message falls into the middle of one. The frame of a line holds its
//! length and checksum, so a guess is proven or dropped: nothing is joined that the
//! checksum does not confirm.
//!
//! ```text
//! ~EP 0007 52 0186382c cpu index=1 apic_id=1 stopped_by=crash registers_from=self
//! rip=0x1 rsp=0x2 rbp=0x3
//! ```

use vmcore_format::last_words::{CONTENT_BYTES, Frame, PREFIX, frames};

/// Guesses for one torn line.
const GUESSES_PER_LINE: u32 = 20_000;
/// Guesses for a whole text; one costs at most a checksum over 221 bytes.
const GUESSES: u32 = 2_000_000;
/// Physical lines that one line of last words may be spread over, foreign ones included.
const SPREAD: usize = 24;
/// Foreign lines among them.
const FOREIGN: usize = 4;
/// Words that a prefix of a continuation line may have, as in
/// `Nov 30 20:41:52 host qemu[123]: `.
const PREFIX_WORDS: usize = 8;
/// Blanks that a line break may have swallowed.
const BLANKS: usize = 3;
/// Longest physical line that is searched for pieces.
const LINE_BYTES: usize = 1024;
/// Longest frame: prefix, two numbers and checksum, content.
const FRAME_BYTES: usize = PREFIX.len() + 17 + CONTENT_BYTES;

/// Returns the text with torn lines of last words joined where their checksum proves it.
///
/// Line breaks become `\n`, escape sequences of terminals are dropped.
pub(crate) fn rejoin(text: &str) -> String {
    let text = without_escapes(text);
    let lines: Vec<&str> = text.split(['\n', '\r']).filter(|line| !line.is_empty()).collect();
    let mut out = String::with_capacity(text.len() + 1);
    let mut budget = GUESSES;
    let mut number = 0;
    // The part of line `number` that is not in `out` yet.
    let mut rest = lines.first().copied().unwrap_or_default();
    while number < lines.len() {
        let Some(at) = torn_frame(rest, lines.get(number + 1).copied()) else {
            out.push_str(rest);
            out.push('\n');
            number += 1;
            rest = lines.get(number).copied().unwrap_or_default();
            continue;
        };
        let (before, torn) = rest.split_at(at);
        let column = lines[number].len() - torn.len();
        let following = &lines[number + 1..lines.len().min(number + SPREAD)];
        let mut search = Search { torn, column, following, left: GUESSES_PER_LINE.min(budget) };
        let given = search.left;
        let found = search.find();
        budget -= given - search.left;
        match found {
            Some(joined) => {
                out.push_str(before);
                out.push('\n');
                out.push_str(&joined.frame);
                out.push('\n');
                for &foreign in &joined.foreign {
                    out.push_str(following[foreign]);
                    out.push('\n');
                }
                if !joined.inside.is_empty() {
                    out.push_str(&joined.inside);
                    out.push('\n');
                }
                number += joined.lines;
                let line = lines.get(number).copied().unwrap_or_default();
                rest = line.get(line.len() - joined.left.min(line.len())..).unwrap_or_default();
                if rest.is_empty() {
                    number += 1;
                    rest = lines.get(number).copied().unwrap_or_default();
                }
            }
            None => {
                // Go on behind the first character of the torn frame.
                let (first, behind) = torn.split_at(1);
                out.push_str(before);
                out.push_str(first);
                rest = behind;
                if rest.is_empty() {
                    out.push('\n');
                    number += 1;
                    rest = lines.get(number).copied().unwrap_or_default();
                }
            }
        }
    }
    out
}

/// Returns where in a line the first frame begins that is not whole in it.
fn torn_frame(line: &str, next: Option<&str>) -> Option<usize> {
    let visible = line.trim_end().len();
    let mut from = 0;
    while let Some(at) = line.get(from..)?.find('~') {
        let at = from + at;
        let rest = &line[at..];
        // The line may break within the prefix.
        let broken =
            next.is_some() && line.get(at..visible).is_some_and(|cut| PREFIX.starts_with(cut));
        let begins = rest.starts_with(PREFIX) || broken;
        match frame_of(rest) {
            Some(bytes) => from = at + bytes,
            None if begins => return Some(at),
            None => from = at + 1,
        }
    }
    None
}

/// Returns the bytes of the whole frame that `text` begins with.
fn frame_of(text: &str) -> Option<usize> {
    if !text.starts_with(PREFIX) {
        return None;
    }
    let end = floor_boundary(text, FRAME_BYTES);
    match frames(&text[..end]).next()? {
        (0, Frame::Line { content, .. }) => Some(PREFIX.len() + 17 + content.len()),
        _ => None,
    }
}

/// Returns the last boundary between characters that is not behind `most`.
fn floor_boundary(text: &str, most: usize) -> usize {
    let mut at = most.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Returns the bytes that the frame `text` begins with should have.
fn claimed_bytes(text: &str) -> Option<usize> {
    let length = text.strip_prefix(PREFIX)?.get(5..7)?;
    Some(PREFIX.len() + 17 + usize::from_str_radix(length, 16).ok()?)
}

/// A torn frame that was joined.
struct Joined {
    frame: String,
    /// Lines further on that hold what is behind the frame: the last `left` bytes of it.
    lines: usize,
    left: usize,
    /// Lines between its pieces that are no part of it, by their number among the
    /// following ones.
    foreign: Vec<usize>,
    /// Foreign text that stood within a line.
    inside: String,
}

/// The search for the pieces of one frame.
struct Search<'a> {
    /// The line from the start of the frame on.
    torn: &'a str,
    /// Bytes in front of it on its line.
    column: usize,
    following: &'a [&'a str],
    /// Guesses left.
    left: u32,
}

/// How the pieces behind the first are taken out of their lines.
#[derive(Clone, Copy)]
enum Strip {
    /// Without so many words at the start.
    Words(usize),
    /// Without so many bytes at the start.
    Bytes(usize),
}

impl Search<'_> {
    fn find(&mut self) -> Option<Joined> {
        if self.torn.len() > LINE_BYTES {
            return None;
        }
        // A copy has all its prefixes of one kind.
        let strips = [Strip::Words(0), Strip::Bytes(self.column)];
        let strips = strips.into_iter().chain((1..=PREFIX_WORDS).map(Strip::Words));
        let strips: Vec<Strip> = strips.collect();
        for &strip in &strips {
            if let Some(joined) = self.by_width(strip) {
                return Some(joined);
            }
        }
        if let Some(joined) = self.around_a_foreign_text() {
            return Some(joined);
        }
        strips.iter().find_map(|&strip| {
            let start = self.torn.trim_end().to_owned();
            self.by_guessing(strip, start, 0, &mut Vec::new())
        })
    }

    /// Spends a guess; `None` when there are none left.
    fn guess(&mut self, text: &str) -> Option<Option<usize>> {
        self.left = self.left.checked_sub(1)?;
        Some(frame_of(text))
    }

    /// Joins lines that a terminal has wrapped: all pieces but the last are as wide as it.
    fn by_width(&mut self, strip: Strip) -> Option<Joined> {
        let whole = self.column + self.torn.len();
        let longest = self.following.iter().map(|line| line.len()).take(4).max().unwrap_or(0);
        for width in [whole, longest.max(whole), 80, 132] {
            if width > LINE_BYTES {
                continue;
            }
            let mut text = pad(self.torn, width.saturating_sub(self.column));
            for (number, line) in self.following.iter().enumerate() {
                let Some(piece) = strip.apply(line) else { break };
                self.left = self.left.checked_sub(1)?;
                text.push_str(piece);
                let claimed = claimed_bytes(&text).unwrap_or(FRAME_BYTES);
                if text.len() >= claimed {
                    if let Some(bytes) = self.guess(&text)? {
                        return Some(Joined {
                            left: text.len() - bytes,
                            frame: cut(text, bytes),
                            lines: number + 1,
                            foreign: Vec::new(),
                            inside: String::new(),
                        });
                    }
                    break;
                }
                text = pad(&text, text.len() + width.saturating_sub(line.len()));
            }
        }
        None
    }

    /// Takes a foreign text out of the line, or off its end, where the next line goes on.
    fn around_a_foreign_text(&mut self) -> Option<Joined> {
        let claimed = claimed_bytes(self.torn)?;
        let torn = self.torn;
        let next = self.following.first().copied();
        let piece = next.and_then(|next| Strip::Words(0).apply(next));
        for at in (PREFIX.len() + 17..torn.len()).filter(|&at| torn.is_char_boundary(at)) {
            let head = &torn[..at];
            if torn[at..].contains(PREFIX) {
                continue;
            }
            if let Some(piece) = piece {
                let text = format!("{head}{piece}");
                if text.len() >= claimed
                    && let Some(bytes) = self.guess(&text)?
                {
                    return Some(Joined {
                        left: text.len() - bytes,
                        frame: cut(text, bytes),
                        lines: 1,
                        foreign: Vec::new(),
                        inside: torn[at..].to_owned(),
                    });
                }
            }
            // The rest of the frame ends the line.
            let Some(tail) =
                claimed.checked_sub(at).and_then(|bytes| torn.len().checked_sub(bytes))
            else {
                continue;
            };
            if tail > at && torn.is_char_boundary(tail) {
                let text = format!("{head}{}", &torn[tail..]);
                if self.guess(&text)?.is_some() {
                    let inside = torn[at..tail].to_owned();
                    return Some(Joined {
                        frame: text,
                        lines: 1,
                        left: next.map_or(0, str::len),
                        foreign: Vec::new(),
                        inside,
                    });
                }
            }
        }
        None
    }

    /// Tries the lines behind `number` as further pieces or as foreign ones, with up to
    /// [`BLANKS`] blanks at each joint.
    fn by_guessing(
        &mut self,
        strip: Strip,
        text: String,
        number: usize,
        foreign: &mut Vec<usize>,
    ) -> Option<Joined> {
        let line = *self.following.get(number)?;
        if let Some(piece) = strip.apply(line) {
            for blanks in 0..=BLANKS {
                let joined = format!("{text}{:blanks$}{}", "", piece.trim_end());
                let begins = joined.len() < PREFIX.len() || joined.starts_with(PREFIX);
                let claimed = claimed_bytes(&joined).unwrap_or(FRAME_BYTES);
                if !begins {
                    continue;
                }
                if joined.len() < claimed {
                    self.left = self.left.checked_sub(1)?;
                    if let Some(found) = self.by_guessing(strip, joined, number + 1, foreign) {
                        return Some(found);
                    }
                } else if let Some(bytes) = self.guess(&joined)? {
                    // Blanks at the end of the line belong to nothing.
                    let behind = joined.len() - bytes;
                    let left =
                        if behind == 0 { 0 } else { behind + line.len() - line.trim_end().len() };
                    return Some(Joined {
                        frame: cut(joined, bytes),
                        lines: number + 1,
                        left,
                        foreign: foreign.clone(),
                        inside: String::new(),
                    });
                }
            }
        }
        if foreign.len() == FOREIGN || line.contains(PREFIX) {
            return None;
        }
        foreign.push(number);
        let found = self.by_guessing(strip, text, number + 1, foreign);
        foreign.pop();
        found
    }
}

impl Strip {
    /// Returns the line without its prefix; `None` when it is too short for one, or is no
    /// piece: too long, or a line of last words itself.
    fn apply(self, line: &str) -> Option<&str> {
        if line.len() > LINE_BYTES || line.contains(PREFIX) {
            return None;
        }
        match self {
            Self::Bytes(bytes) => line.get(bytes..),
            Self::Words(words) => (0..words).try_fold(line, |line, _| {
                let (_, rest) = line.trim_start().split_once(' ')?;
                Some(rest)
            }),
        }
    }
}

/// Returns `text` with blanks up to `bytes`.
fn pad(text: &str, bytes: usize) -> String {
    format!("{text:bytes$}")
}

fn cut(mut text: String, bytes: usize) -> String {
    text.truncate(bytes);
    text
}

/// Drops the escape sequences of ECMA-48, NULs and backspaces, and turns hard blanks into
/// plain ones where a copy has them in the frames themselves.
fn without_escapes(text: &str) -> String {
    let hard = text.contains("~EP\u{a0}");
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['\x1b', '\0', '\x08', '\x7f', '\u{a0}']) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let bytes = match special.chars().next() {
            Some('\x1b') => escape_bytes(special),
            Some('\0') => special.len() - special.trim_start_matches('\0').len(),
            Some('\u{a0}') => {
                out.push(if hard { ' ' } else { '\u{a0}' });
                '\u{a0}'.len_utf8()
            }
            _ => 1,
        };
        rest = &special[bytes..];
    }
    out.push_str(rest);
    out
}

/// Returns the bytes of the escape sequence that `text` begins with. A frame is never a
/// part of one.
fn escape_bytes(text: &str) -> usize {
    /// Longest sequence that is taken for one.
    const LONGEST: usize = 256;
    let most = floor_boundary(text, LONGEST);
    let most = text[..most].find(PREFIX).unwrap_or(most);
    let bytes = &text.as_bytes()[..most];
    let end = match bytes.get(1) {
        // CSI: parameters, then a final character.
        Some(b'[') => bytes.iter().skip(2).position(|byte| !(0x20..=0x3f).contains(byte)),
        // OSC: a text up to BEL, or up to the ESC of its end.
        Some(b']') => bytes.iter().skip(2).position(|&byte| byte < 0x20),
        // A character set has one more character.
        Some(b'(' | b')' | b'0'..=b'9' | b'=' | b'>' | b'@'..=b'_') => Some(0),
        _ => return 1,
    };
    let last = end.map_or(1, |end| end + 2);
    let drawn = match (bytes.get(1), bytes.get(last)) {
        (Some(b'['), Some(0x40..=0x7e)) | (Some(b']'), Some(0x07)) => last + 1,
        (Some(b'[' | b']'), _) => last,
        (Some(b'(' | b')'), Some(0x30..=0x7e)) => 3,
        _ => 2,
    };
    drawn.min(bytes.len())
}
