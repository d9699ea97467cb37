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

/// What came from a dump, fit for a terminal: control characters become visible, so that
/// a damaged or hostile file cannot move the cursor or change colours.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { '\u{fffd}' } else { character })
        .collect()
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
