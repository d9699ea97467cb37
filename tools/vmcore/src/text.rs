//! How things look on the terminal.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

/// A table: a heading, rows, columns padded to their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table with these headings; the columns in `right` are aligned to the right.
    pub(crate) fn new(headings: &[&str], right: &'static [usize]) -> Self {
        Self { rows: vec![headings.iter().map(|&text| text.to_owned()).collect()], right }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Writes it, each line behind `indent`.
    pub(crate) fn write(&self, out: &mut String, indent: &str) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let pad = " ".repeat(width - cell.chars().count());
                let (before, behind) = if self.right.contains(&column) {
                    (pad, String::new())
                } else {
                    (String::new(), pad)
                };
                line.push_str(gap);
                line.push_str(&before);
                line.push_str(cell);
                line.push_str(&behind);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// One line `label  text`, labels in one column; further lines of `text` are aligned
/// with the first.
pub(crate) fn field(out: &mut String, label: &str, text: &str) {
    for (number, line) in text.lines().enumerate() {
        let label = if number == 0 { label } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{label:<10} {line}");
    }
}

/// A size in the unit that suits it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            let value = count as f64 / size as f64;
            let digits = usize::from(!count.is_multiple_of(size));
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{count} bytes")
}

/// A time in the unit that suits it.
pub(crate) fn nanoseconds(count: u64) -> String {
    let value = count as f64;
    match count {
        0..1_000 => format!("{count} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        1_000_000_000..60_000_000_000 => format!("{:.3} s", value / 1e9),
        _ => humantime::format_duration(Duration::from_secs(count / 1_000_000_000)).to_string(),
    }
}

/// `20260102T030405Z`, for names of files; zeros for a time that is not known.
pub(crate) fn compact_date(unix: u64) -> String {
    /// Where the year would get a fifth digit.
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = Duration::from_secs(unix);
    match UNIX_EPOCH.checked_add(seconds).filter(|_| (1..YEAR_10000).contains(&unix)) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], ""),
        None => "00000000T000000Z".into(),
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `1 page`, `2 pages`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Makes one line of what came from a file fit for a terminal: every character that could move
/// the cursor, change colours or reorder text becomes visible.
pub(crate) fn clean(text: &str) -> String {
    let visible = |character| if steers(character) { '\u{fffd}' } else { character };
    text.chars().map(visible).collect()
}

/// Makes a text of several lines fit for a terminal: what no single line may have becomes
/// visible. A last resort: parts that come from files are made fit before they are put together,
/// so that none of them can begin a line.
#[must_use]
pub fn printable(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

/// Makes JSON fit for a terminal: its strings have such characters as escape sequences. The
/// value stays what it is.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if steers(character) && character != '\n' {
            // All of them are below U+10000; Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        } else {
            out.push(character);
        }
    }
    out
}

/// Returns true for characters that a terminal obeys instead of showing them: controls, line and
/// paragraph separators, and those that change the direction of text.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(512 << 20), "512 MiB");
        assert_eq!(bytes((512 << 20) + (200 << 10)), "512.2 MiB");
        assert_eq!(nanoseconds(999), "999 ns");
        assert_eq!(nanoseconds(1_500), "1.5 us");
        assert_eq!(nanoseconds(2_000_000_000), "2.000 s");
        assert_eq!(nanoseconds(2_000_400_000_000), "33m 20s");
    }

    #[test]
    fn nothing_from_a_file_steers_the_terminal() {
        let hostile = "a\x1b[2Jb\u{9b}31mc\u{202e}d\u{7f}\te\nf\u{2028}g\u{e9}";
        assert_eq!(
            clean(hostile),
            "a\u{fffd}[2Jb\u{fffd}31mc\u{fffd}d\u{fffd}\u{fffd}e\u{fffd}f\u{fffd}g\u{e9}"
        );
        assert_eq!(printable("one\r\ntwo\u{1b}\n"), "one\u{fffd}\ntwo\u{fffd}\n");
        let json = serde_json::to_string(hostile).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.chars().any(steers), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), hostile);
    }

    #[test]
    fn names_have_a_date() {
        assert_eq!(compact_date(1_767_225_600), "20260101T000000Z");
        assert_eq!(compact_date(0), "00000000T000000Z");
        assert_eq!(compact_date(u64::MAX), "00000000T000000Z");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["CPU", "what"], &[0]);
        table.row(vec!["7".into(), "ü".into()]);
        table.row(vec!["1234".into(), "x".into()]);
        let mut out = String::new();
        table.write(&mut out, " ");
        assert_eq!(out, "  CPU  what\n    7  ü\n 1234  x\n");
    }
}
