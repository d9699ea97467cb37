//! The invariants of the ladder, written against what it does and not how.

use epitaph_stop::{Action, CpuMask, Rung, RungKind};

/// Rungs as the appliance uses them, with windows of a few ticks.
pub fn rungs(spare: CpuMask) -> [Rung; 3] {
    let rung =
        Rung { kind: RungKind::Irq, window_ns: 4, polls: 6, resend: 0, spare: CpuMask::new() };
    [
        rung,
        Rung { kind: RungKind::Nmi, window_ns: 2, polls: 4, resend: 1, ..rung },
        Rung { kind: RungKind::Init, window_ns: 2, polls: 4, spare, ..rung },
    ]
}

/// Watches one climb and panics when it breaks a promise.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Observer {
    targets: CpuMask,
    acked: CpuMask,
    announced: Option<(RungKind, CpuMask)>,
    /// Rung index and mask of every send.
    sent: Vec<(usize, CpuMask)>,
    window: Option<Window>,
    waits: u64,
}

/// What the observer knows of the open window.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Window {
    rung: usize,
    to: CpuMask,
    last: u64,
    forward: u64,
    polls: u64,
}

impl Observer {
    pub fn new(targets: CpuMask) -> Self {
        Self {
            targets,
            acked: CpuMask::new(),
            announced: None,
            sent: Vec::new(),
            window: None,
            waits: 0,
        }
    }

    /// Most waits any schedule can lead to.
    pub fn wait_bound(rungs: &[Rung]) -> u64 {
        rungs.iter().map(|rung| rung.polls * (1 + u64::from(rung.resend))).sum()
    }

    /// Checks one step: what was put in and what came out.
    pub fn saw(&mut self, rungs: &[Rung], acked: CpuMask, now: u64, action: &Action) {
        self.acked = self.acked.or(&acked.and(&self.targets));
        let running = self.targets.minus(&self.acked);
        if let Some(window) = &mut self.window {
            window.forward = window.forward.saturating_add(now.saturating_sub(window.last));
            window.last = now;
            window.polls += 1;
        }
        match *action {
            Action::Wait => {
                let window = self.window.as_ref().expect("waits only after a signal");
                assert!(!window.to.minus(&self.acked).is_empty(), "left at once");
                self.waits += 1;
                let endless = rungs.iter().any(|rung| rung.window_ns == u64::MAX);
                assert!(endless || self.waits <= Self::wait_bound(rungs), "bounded");
                return;
            }
            Action::Announce(kind, to) => {
                assert!(kind != rungs[0].kind && !to.is_empty());
                self.announced = Some((kind, to));
            }
            Action::Send { rung: kind, to } => {
                let rung = rungs.iter().position(|rung| rung.kind == kind).unwrap();
                assert!(!to.is_empty());
                assert!(to.and(&self.acked).is_empty(), "never a rung for a CPU that has acked");
                assert!(to.and(&rungs[rung].spare).is_empty(), "never a rung for a spared CPU");
                assert_eq!(to, running.minus(&rungs[rung].spare), "nobody is forgotten");
                if rung > 0 {
                    let (said, whom) = self.announced.expect("said before it is sent");
                    assert!(said == kind && to.minus(&whom).is_empty());
                }
                let last = self.sent.last().map_or(0, |&(rung, _)| rung);
                assert!(rung >= last, "softest first");
                self.sent.push((rung, to));
            }
            Action::Finished { stopped, not_stopped } => {
                assert_eq!((stopped, not_stopped), (self.acked, running), "one state for each");
                for cpu in &not_stopped {
                    for (index, rung) in rungs.iter().enumerate() {
                        let got =
                            self.sent.iter().filter(|(i, to)| *i == index && to.contains(cpu));
                        let due = if rung.spare.contains(cpu) { 0 } else { 1 + rung.resend };
                        assert_eq!(got.count(), usize::from(due), "every rung was tried");
                    }
                }
            }
        }
        if let Some(window) = self.window.take() {
            let rung = &rungs[window.rung];
            assert!(
                window.to.minus(&self.acked).is_empty()
                    || window.forward >= rung.window_ns
                    || window.polls >= rung.polls,
                "no window is cut short"
            );
        }
        if let Action::Send { to, .. } = *action {
            let rung = self.sent[self.sent.len() - 1].0;
            self.window = Some(Window { rung, to, last: now, forward: 0, polls: 0 });
        }
    }
}
