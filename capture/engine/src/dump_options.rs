//! What is asked of a dump.

use vmcore_format::area::{stage_kind, storing};

/// How far a dump goes, how it is stored, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpOptions {
    /// `pages=`: the last stage, one of [`stage_kind`].
    pub pages: u32,
    /// `dump=`: one of [`storing`].
    pub storing: u32,
    /// `dump_deadline_ms=`: after so many ms no more memory is added.
    pub deadline_ms: Option<u64>,
    /// `slots=overwrite-oldest`: a dump that nobody has collected may be lost.
    pub overwrite: bool,
    /// `capture_bench=raw`: the raw write rate is measured behind the dump.
    pub bench: bool,
    /// `capture_cpus=all`: every CPU that can works, on however many cores they run.
    pub all_cpus: bool,
}

impl DumpOptions {
    /// Returns what the words of a command line ask for. What they do not say is as if nothing
    /// had been asked for: memory in use, stored whichever way is faster, for any time.
    #[must_use]
    pub fn read(command_line: &str) -> Self {
        let mut wishes = Self {
            pages: stage_kind::USED,
            storing: storing::AUTO,
            deadline_ms: None,
            overwrite: false,
            bench: false,
            all_cpus: false,
        };
        for word in command_line.split_ascii_whitespace() {
            match word {
                "slots=overwrite-oldest" => wishes.overwrite = true,
                "slots=keep" => wishes.overwrite = false,
                "capture_bench=raw" => wishes.bench = true,
                "capture_cpus=all" => wishes.all_cpus = true,
                "capture_cpus=auto" => wishes.all_cpus = false,
                _ => {}
            }
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_means_what_was_in_use() {
        let wishes = DumpOptions::read("");
        assert_eq!((wishes.pages, wishes.storing), (stage_kind::USED, storing::AUTO));
        assert_eq!((wishes.deadline_ms, wishes.overwrite, wishes.bench), (None, false, false));
        assert!(!wishes.all_cpus);
    }

    #[test]
    fn what_was_asked_for_counts() {
        let wishes = DumpOptions::read(
            "slots=keep slots=overwrite-oldest capture_bench=raw capture_cpus=all",
        );
        assert_eq!((wishes.overwrite, wishes.bench), (true, true));
        assert!(wishes.all_cpus);
    }
}
