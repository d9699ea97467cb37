//! Power states of CPUs.

use crate::abi::psci;
use crate::mode::Mode;
use crate::monitor::{Hardware, Monitor, Start};
use crate::sdei::Events;

/// Whether a CPU is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Power {
    /// Waiting for a `CPU_ON`.
    Off,
    /// A `CPU_ON` succeeded; the CPU has not started yet.
    Starting {
        /// Where it starts.
        entry: u64,
        /// Goes into its x0.
        argument: u64,
    },
    /// Running the client.
    On,
}

impl<const CPUS: usize> Monitor<CPUS> {
    /// Answers `PSCI_FEATURES`.
    pub(crate) fn psci_features(&self, function: u32) -> i64 {
        match function {
            crate::abi::smccc::VERSION
            | psci::VERSION
            | psci::CPU_OFF
            | psci::CPU_ON_32
            | psci::CPU_ON
            | psci::AFFINITY_INFO_32
            | psci::AFFINITY_INFO
            | psci::MIGRATE_INFO_TYPE
            | psci::SYSTEM_OFF
            | psci::SYSTEM_RESET
            | psci::FEATURES => psci::SUCCESS,
            _ => psci::NOT_SUPPORTED,
        }
    }

    /// Makes the CPU `mpidr` start at `entry`.
    pub(crate) fn cpu_on(
        &mut self,
        mpidr: u64,
        entry: u64,
        argument: u64,
        hardware: &mut impl Hardware,
    ) -> i64 {
        let may_enter = self.settings.may_enter(entry);
        let Some(index) = self.find(mpidr) else { return psci::INVALID_PARAMETERS };
        let Some(cpu) = self.cpu(index) else { return psci::INVALID_PARAMETERS };
        match cpu.power {
            Power::On => psci::ALREADY_ON,
            Power::Starting { .. } => psci::ON_PENDING,
            Power::Off if !may_enter => psci::INVALID_ADDRESS,
            Power::Off => {
                cpu.power = Power::Starting { entry, argument };
                hardware.wake(index);
                psci::SUCCESS
            }
        }
    }

    /// Answers `AFFINITY_INFO`. Only the level of a CPU is known.
    pub(crate) fn affinity_info(&mut self, mpidr: u64, level: u64) -> i64 {
        let found = self.find(mpidr).filter(|_| level == 0);
        match found.and_then(|index| self.cpu(index)).map(|cpu| cpu.power) {
            None => psci::INVALID_PARAMETERS,
            Some(Power::On) => psci::ON,
            Some(Power::Off) => psci::OFF,
            Some(Power::Starting { .. }) => psci::ON_IS_PENDING,
        }
    }

    /// Switches the calling CPU off.
    ///
    /// An event that the CPU has not completed never will be: its interrupt ends here, or its
    /// priority would stay active and keep off every later interrupt of that CPU.
    pub(crate) fn cpu_off(&mut self, cpu: usize, hardware: &mut impl Hardware) {
        let naive = self.settings.mode == Mode::Naive;
        let Some(cpu) = self.cpu(cpu) else { return };
        if cpu.events.is_running() && !naive {
            hardware.end_event();
        }
        // Registrations do not outlive the CPU's time of being on; it starts masked again.
        cpu.events = Events::default();
        cpu.power = Power::Off;
    }

    /// Takes the order that the CPU number `cpu` was started with, and counts it as on from
    /// here. `None`: no `CPU_ON` has named it, and it goes on waiting.
    pub fn start(&mut self, cpu: usize) -> Option<Start> {
        let cpu = self.cpu(cpu)?;
        let Power::Starting { entry, argument } = cpu.power else { return None };
        cpu.power = Power::On;
        Some(Start { entry, argument })
    }
}
