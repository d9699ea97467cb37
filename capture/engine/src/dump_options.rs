//! What is asked of a dump.

use handoff::BootFacts;
use handoff::facts::{self, pages};
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
    /// What `facts` say. What they do not say is as if nothing had been asked for: memory in
    /// use, stored whichever way is faster.
    #[must_use]
    pub fn read(facts: &BootFacts) -> Self {
        let mut wishes = Self {
            pages: match facts.pages {
                pages::MINI => stage_kind::MINI,
                pages::ALL => stage_kind::ALL,
                _ => stage_kind::USED,
            },
            storing: match facts.storing {
                facts::storing::RAW => storing::RAW,
                facts::storing::LZ4 => storing::LZ4,
                _ => storing::AUTO,
            },
            deadline_ms: (facts.dump_deadline_ms > 0).then_some(facts.dump_deadline_ms),
            overwrite: false,
            bench: false,
            all_cpus: false,
        };
        for word in facts.command_line().split_ascii_whitespace() {
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
    use handoff::crash::set_text;

    use super::*;

    #[test]
    fn nothing_said_means_what_was_in_use() {
        let wishes = DumpOptions::read(&BootFacts::new());
        assert_eq!((wishes.pages, wishes.storing), (stage_kind::USED, storing::AUTO));
        assert_eq!((wishes.deadline_ms, wishes.overwrite, wishes.bench), (None, false, false));
        assert!(!wishes.all_cpus);
    }

    #[test]
    fn what_was_asked_for_counts() {
        let mut facts = BootFacts::new();
        facts.pages = pages::ALL;
        facts.storing = facts::storing::RAW;
        facts.dump_deadline_ms = 70;
        set_text(
            &mut facts.command_line,
            "slots=keep slots=overwrite-oldest capture_bench=raw capture_cpus=all",
        );
        let wishes = DumpOptions::read(&facts);
        assert_eq!((wishes.pages, wishes.storing), (stage_kind::ALL, storing::RAW));
        assert_eq!((wishes.deadline_ms, wishes.overwrite, wishes.bench), (Some(70), true, true));
        assert!(wishes.all_cpus);
    }
}
