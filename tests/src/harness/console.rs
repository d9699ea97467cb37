//! What the machine said.

/// The console's text so far, and the questions asked of it.
///
/// Lines of the appliance start with a `[seconds.micros] ` stamp; firmware and GRUB print
/// without one, and the capture image may start in the middle of a line, so a marker is
/// looked for anywhere in a line.
#[derive(Debug, Clone, Default)]
pub struct Console {
    text: String,
}

impl Console {
    /// A console with `text` on it.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self { text }
    }

    /// Adds one line, without its line break.
    pub fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Everything.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text behind the first occurrence of `marker`, up to the end of its line.
    #[must_use]
    pub fn after(&self, marker: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.split_once(marker).map(|(_, rest)| rest))
    }

    /// The text behind `marker` on every line that has it.
    pub fn all_after<'a>(&'a self, marker: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |line| line.split_once(marker).map(|(_, rest)| rest))
    }

    /// Whether any line holds `marker`.
    #[must_use]
    pub fn has(&self, marker: &str) -> bool {
        self.text.contains(marker)
    }

    /// The last `count` lines, for a message about a run that went wrong.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let lines: Vec<_> = self.text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_behind_a_stamp_and_behind_a_torn_line() {
        let console = Console::new(
            "SeaBIOS\n[0.001234] armed: yes\n[0.2] verd\u{1b}[0m[0.3] verdict: finished\n".into(),
        );
        assert_eq!(console.after("armed: "), Some("yes"));
        assert_eq!(console.after("verdict: "), Some("finished"));
        assert_eq!(console.after("no-dump: "), None);
        assert_eq!(console.tail(1), "[0.2] verd\u{1b}[0m[0.3] verdict: finished");
    }
}
