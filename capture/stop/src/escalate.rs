//! The ladder: which signal goes to which CPU, and when to give up.
//!
//! Rungs are data, and [`Escalation`] is a pure machine over them: it is told who has
//! acknowledged and what the clock says, and answers with the next [`Action`]. What it
//! guarantees, whatever it is told:
//!
//! * The mask is read again before every signal. A CPU that has acknowledged once gets
//!   no signal any more, and none ever gets a rung it is spared.
//! * Rungs are used in order, and a window is left at once when everybody the signal
//!   went to has acknowledged.
//! * It ends. A window closes by the clock or, should the clock stand still or jump
//!   back, by the number of polls. A window of `u64::MAX` is the one exception: it was
//!   asked for.
//! * A clock that jumps ahead cannot close a window alone: one poll counts for a quarter
//!   of it at most. So a machine that was paused as a whole still polls a few times
//!   before it takes a harder signal.

use crate::CpuMask;

/// Most signals one escalation sends, repetitions included; each is recorded. A ladder
/// that asks for more ends there.
pub const MAX_SENDS: usize = 8;
/// The share of a window that one poll can use up at most.
const SHARES: u64 = 4;

/// What a rung does to a CPU. The ladder attaches no meaning to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RungKind {
    /// A maskable interrupt: a CPU in a critical section finishes it first.
    Irq,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT: stops a CPU that NMI did not, and destroys its registers. A CPU stopped by
    /// it cannot acknowledge; see [`Escalation::sent_to`].
    Init,
}

impl RungKind {
    /// Returns the number that stands for it in records and dumps: `kind` of a `RungRecord` of
    /// `epitaph-handoff`.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Irq => 1,
            Self::Nmi => 2,
            Self::Init => 3,
        }
    }
}

/// One rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rung {
    /// What to send.
    pub kind: RungKind,
    /// How long to wait for acknowledgements, in nanoseconds; `u64::MAX` waits for ever.
    pub window_ns: u64,
    /// The second limit of a window: so many polls close it, whatever the clock says.
    /// Far above what a window takes by a sound clock. No limit to a window for ever.
    pub polls: u64,
    /// How often the signal is repeated for those still running, each time with a window
    /// of its own.
    pub resend: u8,
    /// CPUs it must never be sent to.
    pub spare: CpuMask,
}

impl Rung {
    /// Returns a rung that is sent once, to any CPU, with a window of `window_ns` nanoseconds;
    /// should the clock stand still, a poll counts as 50 ns, which is less than one takes.
    #[must_use]
    pub const fn new(kind: RungKind, window_ns: u64) -> Self {
        Self { kind, window_ns, polls: window_ns / 50, resend: 0, spare: CpuMask::new() }
    }
}

/// What the caller is to do before it steps again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say on the console that this rung is about to be sent to these CPUs: the signal
    /// itself may cause the next problem. For the rungs behind the first.
    Announce(RungKind, CpuMask),
    /// Send it. What was stored before must be visible to the CPUs it goes to; that is
    /// the duty of the code that sends.
    Send {
        /// What.
        rung: RungKind,
        /// To whom.
        to: CpuMask,
    },
    /// Nothing: look again.
    Wait,
    /// The ladder has been climbed. Every later step gives the same answer.
    Finished {
        /// Targets that have acknowledged.
        stopped: CpuMask,
        /// Targets that have not. Some may have been stopped by a rung that cannot be
        /// acknowledged; see [`Escalation::sent_to`].
        not_stopped: CpuMask,
    },
}

/// One signal as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendRecord {
    /// What.
    pub kind: RungKind,
    /// To whom.
    pub mask: CpuMask,
    /// The window it was given, in nanoseconds; `u64::MAX` for ever.
    pub window_ns: u64,
    /// The clock when it was sent.
    pub sent_ns: u64,
    /// The clock when its window closed or all had acknowledged; equal to `sent_ns`
    /// while it is open. Both are what the clock said, right or wrong.
    pub closed_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// About to send the rung at `rung`; `said` when it has been announced.
    Ready { said: bool },
    /// In the window of the latest send. `last_ns` is the clock at the latest poll,
    /// `elapsed_ns` what it was seen to advance.
    Open { last_ns: u64, elapsed_ns: u64, polls: u64 },
    /// At the end.
    Done,
}

/// A climb up the ladder. See the [module](self) for what it guarantees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Escalation<'a> {
    rungs: &'a [Rung],
    targets: CpuMask,
    acked: CpuMask,
    phase: Phase,
    /// Index of the current rung, and how often its signal has been sent.
    rung: usize,
    repeated: u8,
    sends: [Option<SendRecord>; MAX_SENDS],
}

impl<'a> Escalation<'a> {
    /// A climb up `rungs` to stop `targets`: every started CPU but the caller.
    #[must_use]
    pub const fn new(rungs: &'a [Rung], targets: CpuMask) -> Self {
        Self {
            rungs,
            targets,
            acked: CpuMask::new(),
            phase: Phase::Ready { said: false },
            rung: 0,
            repeated: 0,
            sends: [None; MAX_SENDS],
        }
    }

    /// The next action, given who has acknowledged by now and what the clock says.
    ///
    /// An acknowledgement counts once and for all, even if a later mask lacks it.
    pub fn step(&mut self, acked: &CpuMask, now_ns: u64) -> Action {
        if self.phase != Phase::Done {
            self.acked = self.acked.or(&acked.and(&self.targets));
        }
        if let Phase::Open { .. } = self.phase {
            if self.still_open(now_ns) {
                return Action::Wait;
            }
            self.close(now_ns);
        }
        self.advance(now_ns)
    }

    /// The signals sent so far, in order.
    pub fn timeline(&self) -> impl Iterator<Item = &SendRecord> {
        self.sends.iter().flatten()
    }

    /// Whom `kind` has been sent to.
    ///
    /// For a rung whose targets cannot acknowledge, INIT, this and the end of the climb
    /// are all that will ever be known: they count as stopped by it.
    #[must_use]
    pub fn sent_to(&self, kind: RungKind) -> CpuMask {
        self.timeline()
            .filter(|send| send.kind == kind)
            .fold(CpuMask::new(), |all, send| all.or(&send.mask))
    }

    /// Whether the window of the latest send is still open, this poll counted.
    fn still_open(&mut self, now_ns: u64) -> bool {
        let Phase::Open { last_ns, elapsed_ns, polls } = &mut self.phase else { return false };
        let (Some(rung), Some(send)) =
            (self.rungs.get(self.rung), self.sends.iter().flatten().last().copied())
        else {
            return false;
        };
        if send.mask.minus(&self.acked).is_empty() {
            return false;
        }
        if rung.window_ns == u64::MAX {
            return true;
        }
        let share = rung.window_ns.div_ceil(SHARES);
        *elapsed_ns = elapsed_ns.saturating_add(now_ns.saturating_sub(*last_ns).min(share));
        *last_ns = now_ns;
        *polls = polls.saturating_add(1);
        *elapsed_ns < rung.window_ns && *polls < rung.polls
    }

    /// Closes the window of the latest send and turns to its repetition or the next rung.
    fn close(&mut self, now_ns: u64) {
        if let Some(send) = self.sends.iter_mut().flatten().last() {
            send.closed_ns = now_ns;
        }
        let again = self.rungs.get(self.rung).is_some_and(|rung| self.repeated <= rung.resend);
        if again {
            // Announced already, and to no more CPUs than then.
            self.phase = Phase::Ready { said: true };
        } else {
            self.next_rung();
        }
    }

    fn next_rung(&mut self) {
        self.rung += 1;
        self.repeated = 0;
        self.phase = Phase::Ready { said: false };
    }

    /// Sends the next signal that anybody is left for, or ends.
    fn advance(&mut self, now_ns: u64) -> Action {
        let running = self.targets.minus(&self.acked);
        while let Some(rung) = self.rungs.get(self.rung) {
            let Phase::Ready { said } = self.phase else { break };
            if running.is_empty() {
                break;
            }
            let to = running.minus(&rung.spare);
            if to.is_empty() {
                self.next_rung();
                continue;
            }
            if self.rung > 0 && !said {
                self.phase = Phase::Ready { said: true };
                return Action::Announce(rung.kind, to);
            }
            // As many signals as there is room for, and then it ends.
            let Some(free) = self.sends.iter_mut().find(|send| send.is_none()) else { break };
            *free = Some(SendRecord {
                kind: rung.kind,
                mask: to,
                window_ns: rung.window_ns,
                sent_ns: now_ns,
                closed_ns: now_ns,
            });
            self.repeated = self.repeated.saturating_add(1);
            self.phase = Phase::Open { last_ns: now_ns, elapsed_ns: 0, polls: 0 };
            return Action::Send { rung: rung.kind, to };
        }
        self.phase = Phase::Done;
        Action::Finished { stopped: self.acked, not_stopped: running }
    }
}
