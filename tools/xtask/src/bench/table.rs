//! Tables that are read on a terminal and pasted into a document.

use std::fmt;

/// Rows of text under a head, written as Markdown with the columns aligned.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Columns at the left that are words; the others are numbers.
    words: usize,
}

impl Table {
    /// A table with this head, the first `words` columns of which are aligned to the left.
    #[must_use]
    pub fn new(words: usize, head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()], words }
    }

    /// Adds a row; as many cells as the head has.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                if column < self.words {
                    write!(f, "| {cell:<width$} ")?;
                } else {
                    write!(f, "| {cell:>width$} ")?;
                }
            }
            writeln!(f, "|")?;
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let (dashes, end) = ("-".repeat(width + 1), column >= self.words);
                    write!(f, "|{dashes}{}", if end { ":" } else { "-" })?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(1, &["row", "ms"]);
        table.row(vec!["of memory".into(), "1.5".into()]);
        table.row(vec!["é".into(), "10.25".into()]);
        let text = table.to_string();
        let wanted = "\
| row       |    ms |
|-----------|------:|
| of memory |   1.5 |
| é         | 10.25 |
";
        assert_eq!(text, wanted);
    }
}
