//! Judges whether a machine whose CPUs tick, more or less, is to be fed to the hardware
//! watchdog. Pure, so it is tested on the host.
//!
//! A virtual CPU that the host does not run does not tick, and is not stuck: on a host with
//! fewer cores than the machine has CPUs, one may wait for half a minute while the others
//! work. A single CPU that is stuck is the lockup detection's affair. So below a hypervisor a
//! silent CPU ends the feeding only after [`STARVED`] times the watchdog's time, as long as
//! others tick; on real hardware at once.

/// Times the watchdog's time that a virtual CPU may be silent while others tick.
pub const STARVED: u64 = 10;
/// Nanoseconds without a tick after which a CPU counts as silent: ten ticks of 100 ms.
pub const SILENT_NS: u64 = 1_000_000_000;

/// What one look at all CPUs has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// CPUs that ticked within [`SILENT_NS`].
    pub ticking: usize,
    /// The longest time that a CPU has not ticked for, in nanoseconds.
    pub longest_ns: u64,
}

impl Activity {
    /// Adds a CPU that has not ticked for `ns`.
    pub fn add(&mut self, ns: u64) {
        self.ticking += usize::from(ns < SILENT_NS);
        self.longest_ns = self.longest_ns.max(ns);
    }

    /// Returns true if the watchdog, which resets the machine after `timeout_ms`, is to be fed.
    #[must_use]
    pub fn feeds(&self, timeout_ms: u64, virtual_machine: bool) -> bool {
        let limit_ns = if virtual_machine {
            timeout_ms.saturating_mul(STARVED).saturating_mul(1_000_000)
        } else {
            SILENT_NS
        };
        self.ticking > 0 && self.longest_ns < limit_ns.max(SILENT_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(silences_s: &[u64]) -> Activity {
        let mut activity = Activity::default();
        silences_s.iter().for_each(|s| activity.add(s * 1_000_000_000));
        activity
    }

    #[test]
    fn a_virtual_cpu_that_waits_for_the_host_does_not_reset_the_machine() {
        let starved = activity(&[0, 45, 0, 31]);
        assert!(starved.feeds(30_000, true));
        assert!(!starved.feeds(30_000, false), "no host keeps a real CPU waiting");
        assert!(activity(&[0, 0, 0, 0]).feeds(30_000, false));
    }

    #[test]
    fn silence_without_end_is_no_waiting() {
        assert!(activity(&[0, 299]).feeds(30_000, true));
        assert!(!activity(&[0, 300]).feeds(30_000, true));
        assert!(!activity(&[0, 50]).feeds(5_000, true));
    }

    #[test]
    fn a_machine_in_which_nothing_ticks_is_not_fed() {
        assert!(!activity(&[2, 2]).feeds(30_000, true));
        assert!(!activity(&[]).feeds(30_000, true));
    }
}
