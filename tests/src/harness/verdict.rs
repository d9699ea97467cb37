//! How a run ended, judged from what it left behind.

use serde::{Deserialize, Serialize};

use super::Policy;

/// The contract's seven ends of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A sealed dump was extracted and verified.
    Captured,
    /// A dump exists, a later stage of it was not sealed.
    Incomplete,
    /// No dump, but a checksummed last-words record on the console.
    LastWords,
    /// The appliance said why it cannot dump.
    NoDump,
    /// No crash asked for, workloads ended right.
    Finished,
    /// Time-out or hardware watchdog.
    Hung,
    /// Anything else. A crash that left nothing ends here.
    Unknown,
}

impl Verdict {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Incomplete => "incomplete",
            Self::LastWords => "last-words",
            Self::NoDump => "no-dump",
            Self::Finished => "finished",
            Self::Hung => "hung",
            Self::Unknown => "unknown",
        }
    }

    const ALL: [Self; 7] = [
        Self::Captured,
        Self::Incomplete,
        Self::LastWords,
        Self::NoDump,
        Self::Finished,
        Self::Hung,
        Self::Unknown,
    ];
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Verdict {
    type Err = super::Refusal;

    fn from_str(word: &str) -> Result<Self, super::Refusal> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == word).ok_or_else(|| {
            let words: Vec<_> = Self::ALL.iter().map(|verdict| verdict.name()).collect();
            super::Refusal::Wrong(format!("unknown verdict '{word}': {}", words.join(", ")))
        })
    }
}

/// What the disks held after the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DumpFound {
    /// No disk, no dump area or an empty one.
    Nothing,
    /// Extracted, read back and found complete.
    Complete,
    /// Extracted; holds the reason it is not whole.
    Incomplete(String),
    /// Something is there that does not verify; holds the reason.
    Broken(String),
}

/// Everything a verdict rests on.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// What was found on the disks.
    pub dump: DumpFound,
    /// A complete last-words record stood on the console.
    pub last_words: bool,
    /// The appliance's reason for not dumping.
    pub no_dump: Option<String>,
    /// The console line of the workloads' verdict, its text behind `verdict: `.
    pub workloads: Option<String>,
    /// A crash was asked for.
    pub crash: bool,
    /// The hard time-out fired, or a watchdog device did.
    pub timed_out: Option<String>,
    /// The runner ended QEMU because the machine said it stays halted.
    pub halted: bool,
    /// `reason` of QEMU's SHUTDOWN event: `guest-shutdown`, `guest-reset`, …
    pub shutdown: Option<String>,
    /// Exit code of QEMU; `None` when a signal ended it.
    pub exit_code: Option<i32>,
    /// What the machine was to do after a crash.
    pub policy: Policy,
    /// Whether it was to end by itself after its workloads.
    pub finish_ends: bool,
}

/// Judges a run. The text says on what ground, in one line.
#[must_use]
pub fn judge(evidence: &Evidence) -> (Verdict, String) {
    if let Some(reason) = &evidence.timed_out {
        return (Verdict::Hung, reason.clone());
    }
    if evidence.exit_code != Some(0) {
        let how = evidence.exit_code.map_or("a signal".to_owned(), |code| format!("code {code}"));
        return (Verdict::Unknown, format!("QEMU itself ended with {how}"));
    }
    let (verdict, why) = content(evidence);
    if verdict == Verdict::Unknown {
        return (verdict, why);
    }
    match wrong_end(evidence, verdict) {
        // The dump is good, but the machine did not end as it was told to: a triple
        // fault looks exactly like this and must not pass.
        Some(wrong) => (Verdict::Unknown, format!("{why}, but {wrong}")),
        None => (verdict, why),
    }
}

/// What the disks and the console say, best evidence first.
fn content(evidence: &Evidence) -> (Verdict, String) {
    match &evidence.dump {
        DumpFound::Complete => return (Verdict::Captured, "a sealed dump on the disk".into()),
        DumpFound::Incomplete(why) => return (Verdict::Incomplete, why.clone()),
        DumpFound::Broken(why) => {
            return (Verdict::Unknown, format!("what is on the disk does not verify: {why}"));
        }
        DumpFound::Nothing => {}
    }
    if evidence.last_words {
        let reason = evidence.no_dump.as_deref().unwrap_or("no reason given");
        return (Verdict::LastWords, format!("a last-words record on the console ({reason})"));
    }
    if let Some(reason) = &evidence.no_dump {
        return (Verdict::NoDump, reason.clone());
    }
    match &evidence.workloads {
        Some(text) if text.starts_with("finished") && !evidence.crash => {
            (Verdict::Finished, "the workloads ended right".into())
        }
        Some(text) if evidence.crash => {
            (Verdict::Unknown, format!("the crash never came; workloads: {text}"))
        }
        Some(text) => (Verdict::Unknown, format!("workloads: {text}")),
        None => (Verdict::Unknown, "silent: no dump, no last words, no verdict".into()),
    }
}

/// How the machine should have ended, when it ended otherwise.
fn wrong_end(evidence: &Evidence, verdict: Verdict) -> Option<String> {
    let wanted = match (verdict, evidence.policy) {
        (Verdict::Finished, _) if evidence.finish_ends => "guest-shutdown",
        (Verdict::Finished, _) | (_, Policy::Halt) => "halt",
        (_, Policy::Poweroff) => "guest-shutdown",
        (_, Policy::Reboot) => "guest-reset",
    };
    let found = match &evidence.shutdown {
        _ if evidence.halted => "halt",
        Some(reason) => reason,
        None => "no shutdown at all",
    };
    (found != wanted).then(|| format!("the machine ended by {found} where {wanted} was due"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Evidence {
        Evidence {
            dump: DumpFound::Nothing,
            last_words: false,
            no_dump: None,
            workloads: None,
            crash: true,
            timed_out: None,
            halted: false,
            shutdown: Some("guest-shutdown".into()),
            exit_code: Some(0),
            policy: Policy::Poweroff,
            finish_ends: true,
        }
    }

    #[test]
    fn a_crash_that_left_nothing_is_unknown() {
        assert_eq!(judge(&silent()).0, Verdict::Unknown);
    }

    #[test]
    fn the_best_evidence_wins() {
        let mut evidence = silent();
        evidence.no_dump = Some("no disk".into());
        assert_eq!(judge(&evidence).0, Verdict::NoDump);
        evidence.last_words = true;
        assert_eq!(judge(&evidence).0, Verdict::LastWords);
        evidence.dump = DumpFound::Incomplete("stage 2 not sealed".into());
        assert_eq!(judge(&evidence).0, Verdict::Incomplete);
        evidence.dump = DumpFound::Complete;
        assert_eq!(judge(&evidence).0, Verdict::Captured);
        evidence.dump = DumpFound::Broken("checksum".into());
        assert_eq!(judge(&evidence).0, Verdict::Unknown);
    }

    #[test]
    fn finished_needs_a_run_without_a_crash_and_a_good_verdict() {
        let mut evidence = Evidence { crash: false, ..silent() };
        evidence.workloads = Some("finished".into());
        assert_eq!(judge(&evidence).0, Verdict::Finished);
        let idle = Evidence { finish_ends: false, halted: true, ..evidence.clone() };
        assert_eq!(judge(&idle).0, Verdict::Finished);
        let stuck = Evidence { halted: true, ..evidence.clone() };
        assert_eq!(judge(&stuck).0, Verdict::Unknown);
        evidence.workloads = Some("FAILED sieve: 3 primes below 10".into());
        assert_eq!(judge(&evidence).0, Verdict::Unknown);
        evidence = Evidence { crash: true, workloads: Some("finished".into()), ..silent() };
        assert_eq!(judge(&evidence).0, Verdict::Unknown);
    }

    #[test]
    fn no_end_but_the_ordered_one_passes() {
        let good = Evidence { dump: DumpFound::Complete, ..silent() };
        let hung = Evidence { timed_out: Some("time-out".into()), ..good.clone() };
        assert_eq!(judge(&hung).0, Verdict::Hung);
        let killed = Evidence { exit_code: None, ..good.clone() };
        assert_eq!(judge(&killed).0, Verdict::Unknown);
        let triple = Evidence { shutdown: Some("guest-reset".into()), ..good.clone() };
        assert_eq!(judge(&triple).0, Verdict::Unknown);
        let reboot = Evidence { policy: Policy::Reboot, ..triple };
        assert_eq!(judge(&reboot).0, Verdict::Captured);
        let halted = Evidence { halted: true, shutdown: None, ..good.clone() };
        assert_eq!(judge(&halted).0, Verdict::Unknown);
        let told = Evidence { policy: Policy::Halt, ..halted };
        assert_eq!(judge(&told).0, Verdict::Captured);
    }

    #[test]
    fn words_survive_a_round_trip() {
        for verdict in Verdict::ALL {
            assert_eq!(verdict.name().parse::<Verdict>(), Ok(verdict));
            let json = serde_json::to_string(&verdict).expect("a unit variant");
            assert_eq!(json, format!("\"{}\"", verdict.name()));
        }
        assert!("dead".parse::<Verdict>().is_err());
    }
}
