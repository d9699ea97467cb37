//! The last words: what is said on the console when there is no dump, and beside it.
//!
//! A console is a bad medium: lines of other writers fall in between, a terminal adds
//! escapes, the reset cuts the end off. So every line carries its own frame and can be
//! found and believed by itself:
//!
//! ```text
//! ~EP 0000 14 a47f2d7b last-words version=1
//! ~EP 0001 21 5b0d…    message=index out of bounds
//! ~EP 0002 1e …        end lines=2 crc32=1c291ca3
//! ```
//!
//! Prefix `~EP `, sequence number (four hex digits), bytes of the content (two), CRC32
//! (eight) over the two numbers as they stand, a space behind each, and the content;
//! then the content. The first line holds the version; the last one says how many lines
//! came before it, and a CRC32 over their contents, each with a newline behind it.
//!
//! Contents are `key=value` by convention: either one pair, whose value goes on to the
//! end of the line, or a word and then pairs, of which only the last value may have
//! spaces in it (`cpu index=1 stopped_by=nmi`).
//!
//! Bytes come in hexadecimal, as many lines as it takes ([`LastWords::bytes`]):
//! `memory at=0x101000 hex=…` is memory at a physical address, `registers cpu=1 at=0x0
//! hex=…` a part of a CPU's register set, in the order of NT_PRSTATUS. The log is memory as
//! well; `log address=… capacity=… written=…` says where its ring lies.

use core::fmt::{self, Write};

use heapless::String;

/// Version in the first line.
pub const LAST_WORDS_VERSION: u32 = 1;
/// What every line begins with.
pub const PREFIX: &str = "~EP ";
/// Longest content of a line in bytes; what is longer is cut.
pub const CONTENT_BYTES: usize = 200;

/// Bytes between the prefix and the content: `SSSS LL CCCCCCCC `.
const FRAME_BYTES: usize = 17;

/// Writes last words, line by line.
///
/// Errors of the writer are not reported: there is nobody left to hear of them, and the
/// frame shows what is missing.
#[derive(Debug)]
pub struct LastWords<W: Write> {
    writer: W,
    lines: u16,
    whole: crc32fast::Hasher,
}

impl<W: Write> LastWords<W> {
    /// Starts a record and writes its first line.
    pub fn begin(writer: W) -> Self {
        let mut words = Self { writer, lines: 0, whole: crc32fast::Hasher::new() };
        words.line(format_args!("last-words version={LAST_WORDS_VERSION}"));
        words
    }

    /// Writes one line. It is cut at [`CONTENT_BYTES`]; control characters become
    /// spaces. Beyond 65534 lines nothing more is written.
    pub fn line(&mut self, content: fmt::Arguments<'_>) {
        if self.lines >= u16::MAX - 1 {
            return;
        }
        let mut text = Line(String::new());
        // Fails only when the line is full, and then it is cut as promised.
        let _ = text.write_fmt(content);
        self.emit(&text.0);
        self.whole.update(text.0.as_bytes());
        self.whole.update(b"\n");
    }

    /// Writes `bytes` in as many lines as it takes: `what`, then `at=` with the place of the
    /// line's first byte, counted from `at`, and `hex=`.
    pub fn bytes(&mut self, what: fmt::Arguments<'_>, at: u64, bytes: &[u8]) {
        for (number, part) in (0..).zip(bytes.chunks(LINE_BYTES)) {
            let at = at.wrapping_add(number * LINE_BYTES as u64);
            self.line(format_args!("{what} at={at:#x} hex={}", Hex(part)));
        }
    }

    /// Writes the last line and gives the writer back.
    pub fn end(mut self) -> W {
        let mut text = Line(String::new());
        let crc = core::mem::take(&mut self.whole).finalize();
        let _ = write!(text, "end lines={} crc32={crc:08x}", self.lines);
        self.emit(&text.0);
        self.writer
    }

    fn emit(&mut self, content: &str) {
        let crc = line_checksum(self.lines, content);
        let _ = writeln!(
            self.writer,
            "{PREFIX}{:04x} {:02x} {crc:08x} {content}",
            self.lines,
            content.len()
        );
        self.lines += 1;
    }
}

/// Bytes of a line of [`LastWords::bytes`]: with up to 48 bytes in front of them they fit.
const LINE_BYTES: usize = 72;

/// Bytes in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Collects a content: one line, cut when full.
struct Line(String<CONTENT_BYTES>);

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            self.0.push(character).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

fn line_checksum(sequence: u16, content: &str) -> u32 {
    let mut numbers: String<8> = String::new();
    // Four digits, a space, two digits, a space: always fits.
    let _ = write!(numbers, "{sequence:04x} {:02x} ", content.len());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(numbers.as_bytes());
    hasher.update(content.as_bytes());
    hasher.finalize()
}

/// Something that begins like a line of last words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A line whose checksum fits.
    Line {
        /// Its number in its record, from 0.
        sequence: u16,
        /// What it says.
        content: &'a str,
    },
    /// A line that was cut or mixed with something else.
    Damaged,
}

/// All frames in a console's text, each with its byte offset.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    console: &'a str,
    at: usize,
}

/// Looks for frames in `console`.
#[must_use]
pub const fn frames(console: &str) -> Frames<'_> {
    Frames { console, at: 0 }
}

impl<'a> Iterator for Frames<'a> {
    type Item = (usize, Frame<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at + self.console.get(self.at..)?.find(PREFIX)?;
        let body = start + PREFIX.len();
        match parse_frame(&self.console[body..]) {
            Some((sequence, content)) => {
                self.at = body + FRAME_BYTES + content.len();
                Some((start, Frame::Line { sequence, content }))
            }
            None => {
                // Go on right behind the prefix: a whole line may stand inside the torn one.
                self.at = body;
                Some((start, Frame::Damaged))
            }
        }
    }
}

/// Reads what follows a prefix.
fn parse_frame(text: &str) -> Option<(u16, &str)> {
    let frame = text.get(..FRAME_BYTES)?;
    let mut parts = frame.split(' ');
    let (sequence, length, crc) = (parts.next()?, parts.next()?, parts.next()?);
    if (sequence.len(), length.len(), crc.len()) != (4, 2, 8) {
        return None;
    }
    let sequence = hex(sequence)? as u16;
    let length = hex(length)? as usize;
    let content = text.get(FRAME_BYTES..FRAME_BYTES + length)?;
    (line_checksum(sequence, content) == hex(crc)?).then_some((sequence, content))
}

/// A number as the encoder writes it: lower-case digits and nothing else.
fn hex(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u32::from_str_radix(digits, 16).ok().filter(|_| plain)
}

/// How much of a record arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Every line, and the checksum over all of them fits.
    Complete,
    /// The lines up to some point; the end is missing.
    Incomplete,
    /// Lines are missing or torn in the middle.
    Damaged,
    /// Written by a newer version; the lines are shown, their meaning is not known.
    Newer(u32),
}

/// A record of last words in a console's text.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The part of the console it was found in.
    pub text: &'a str,
    /// How much of it arrived.
    pub state: State,
}

impl<'a> Record<'a> {
    /// The contents that can be believed, without the first and the last line.
    pub fn lines(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        frames(self.text).filter_map(|(_, frame)| match frame {
            Frame::Line { sequence, content } if sequence > 0 && !content.starts_with(END_WORD) => {
                Some(content)
            }
            _ => None,
        })
    }

    /// The value of the first line `key=value`, up to the end of the line.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

const BEGIN_WORD: &str = "last-words version=";
const END_WORD: &str = "end lines=";

/// All records in a console's text, oldest first.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    console: &'a str,
    frames: Frames<'a>,
    /// A frame that ended the record before and begins the next one.
    pending: Option<(usize, Frame<'a>)>,
}

/// Looks for records in `console`.
#[must_use]
pub const fn records(console: &str) -> Records<'_> {
    Records { console, frames: frames(console), pending: None }
}

/// The newest record in `console`, if there is any trace of one.
#[must_use]
pub fn find(console: &str) -> Option<Record<'_>> {
    records(console).last()
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let first = self.pending.take().or_else(|| self.frames.next())?;
        let start = first.0;
        let mut end = self.console.len();
        let mut tracker = Tracker::default();
        let mut frame = Some(first);
        while let Some((at, found)) = frame {
            if at > start && tracker.begins_another(&found) {
                self.pending = Some((at, found));
                end = at;
                break;
            }
            tracker.take(&found);
            if tracker.ended {
                end = self.frames.at;
                // A second copy of the last line is no record of its own.
                self.pending = self.frames.next().filter(|(_, next)| *next != found);
                break;
            }
            frame = self.frames.next();
        }
        Some(Record { text: &self.console[start..end], state: tracker.state() })
    }
}

/// Follows the lines of one record.
#[derive(Default)]
struct Tracker<'a> {
    next: u16,
    /// The last whole line.
    last: Option<(u16, &'a str)>,
    whole: crc32fast::Hasher,
    version: Option<u32>,
    torn: bool,
    ended: bool,
    sum_fits: bool,
}

impl<'a> Tracker<'a> {
    /// Returns true if `frame` is the line of a later record: its number is not above that of
    /// the last line. The first line of that record may have been torn.
    fn begins_another(&self, frame: &Frame<'a>) -> bool {
        let Frame::Line { sequence, content } = *frame else { return false };
        sequence < self.next && self.last != Some((sequence, content))
    }

    fn take(&mut self, frame: &Frame<'a>) {
        // What is torn is missing, and the number of the next whole line shows it.
        let Frame::Line { sequence, content } = *frame else {
            self.last = None;
            return;
        };
        // Two loggers of one console write each line twice.
        if self.last == Some((sequence, content)) {
            return;
        }
        self.last = Some((sequence, content));
        if sequence != self.next {
            self.torn = true;
        }
        self.next = sequence.saturating_add(1);
        if sequence == 0 {
            self.version = content.strip_prefix(BEGIN_WORD).and_then(|text| text.parse().ok());
        }
        if let Some(claim) = content.strip_prefix(END_WORD) {
            self.ended = true;
            let crc = core::mem::take(&mut self.whole).finalize();
            let mut expected: String<CONTENT_BYTES> = String::new();
            let _ = write!(expected, "{sequence} crc32={crc:08x}");
            self.sum_fits = claim == expected;
        } else {
            self.whole.update(content.as_bytes());
            self.whole.update(b"\n");
        }
    }

    fn state(&self) -> State {
        match self.version {
            Some(version) if version != LAST_WORDS_VERSION => State::Newer(version),
            Some(_) if self.ended && self.sum_fits => State::Complete,
            Some(_) if !self.ended && !self.torn => State::Incomplete,
            _ => State::Damaged,
        }
    }
}

#[cfg(test)]
mod tests;
