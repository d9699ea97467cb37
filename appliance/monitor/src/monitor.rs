//! The state of all CPUs, and the way from a call's number to its function.

use core::ops::Range;

use crate::abi::{psci, sdei, smccc};
use crate::frame::{Client, Frame};
use crate::mode::Mode;
use crate::psci::Power;
use crate::sdei::Events;

/// What the state machines ask of the machine. Every method acts at once or leaves the act
/// pending in hardware; none waits.
pub trait Hardware {
    /// Sends the event interrupt to the CPU `mpidr`: a Group 0 SGI with a priority that no
    /// non-secure priority mask reaches.
    fn signal_event(&mut self, mpidr: u64);

    /// Ends the event interrupt on the calling CPU, on which it is active (EOIR0). Until then
    /// its running priority keeps off a second one.
    fn end_event(&mut self);

    /// Releases the CPU number `cpu` from the place where it waits while it is off. That CPU
    /// then calls [`Monitor::start`].
    fn wake(&mut self, cpu: usize);

    /// Sets ELR and SPSR of the client's exception level on the calling CPU.
    fn set_exception_return(&mut self, client: Client, pc: u64, pstate: u64);
}

/// What the caller of [`Monitor::call`] does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum After {
    /// Return to the lower exception level with the frame.
    Return,
    /// Do not return: wait, as a CPU that is off, until [`Hardware::wake`].
    PowerOff,
    /// Switch the machine off.
    SystemOff,
    /// Reset the machine.
    SystemReset,
}

/// Where a CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Address of the first instruction.
    pub entry: u64,
    /// Goes into x0.
    pub argument: u64,
}

/// What a [`Monitor`] is made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Which firmware to imitate.
    pub mode: Mode,
    /// The exception level of the client.
    pub client: Client,
    /// Addresses that a client's code may be at: its memory.
    pub entries: Range<u64>,
    /// Whether the processor has FEAT_NMI.
    pub nmi: bool,
}

impl Settings {
    /// Returns true if a client's code may start at `entry`.
    pub(crate) fn may_enter(&self, entry: u64) -> bool {
        entry.is_multiple_of(4) && self.entries.contains(&entry)
    }
}

/// Reason why a [`Monitor`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// There are more CPUs than the monitor has room for.
    TooManyCpus,
    /// The boot CPU is not among the CPUs.
    NoBootCpu,
}

impl core::fmt::Display for SetupError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::TooManyCpus => "more CPUs than this monitor has room for",
            Self::NoBootCpu => "the boot CPU is not among the CPUs of the interrupt controller",
        })
    }
}

impl core::error::Error for SetupError {}

/// Bits of MPIDR_EL1 that name a CPU: Aff3 and Aff2–Aff0.
pub(crate) const AFFINITY: u64 = 0xff_00ff_ffff;

/// One CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cpu {
    pub mpidr: u64,
    pub power: Power,
    pub events: Events,
}

/// PSCI and SDEI for up to `CPUS` CPUs. CPUs are numbered in the order that
/// [`Monitor::new`] was given them.
///
/// The monitor is not shared by itself: the image puts it behind one lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Monitor<const CPUS: usize> {
    pub(crate) settings: Settings,
    /// `None` behind the last CPU.
    pub(crate) cpus: [Option<Cpu>; CPUS],
}

impl<const CPUS: usize> Monitor<CPUS> {
    /// Makes a monitor for the CPUs `mpidrs`, of which the CPU number `boot` is on and the
    /// others are off.
    ///
    /// # Errors
    /// There are more than `CPUS` of them, or `boot` is not one of them.
    pub fn new(
        settings: Settings,
        mpidrs: impl IntoIterator<Item = u64>,
        boot: usize,
    ) -> Result<Self, SetupError> {
        let mut cpus = [const { None }; CPUS];
        for (index, mpidr) in mpidrs.into_iter().enumerate() {
            let slot = cpus.get_mut(index).ok_or(SetupError::TooManyCpus)?;
            let power = if index == boot { Power::On } else { Power::Off };
            *slot = Some(Cpu { mpidr: mpidr & AFFINITY, power, events: Events::default() });
        }
        match cpus.get(boot) {
            Some(Some(_)) => Ok(Self { settings, cpus }),
            _ => Err(SetupError::NoBootCpu),
        }
    }

    /// Returns what the monitor was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the number of the CPU `mpidr`, whose bits outside the affinity fields are
    /// ignored.
    #[must_use]
    pub fn number_of(&self, mpidr: u64) -> Option<usize> {
        self.find(mpidr & AFFINITY)
    }

    /// Carries out the call that the CPU number `cpu` made with `frame`.
    ///
    /// # Example
    /// ```
    /// # use epitaph_monitor::{abi::psci, After, Client, Frame, Hardware, Mode, Monitor, Settings};
    /// # struct Nothing;
    /// # impl Hardware for Nothing {
    /// #     fn signal_event(&mut self, _: u64) {}
    /// #     fn end_event(&mut self) {}
    /// #     fn wake(&mut self, _: usize) {}
    /// #     fn set_exception_return(&mut self, _: Client, _: u64, _: u64) {}
    /// # }
    /// # let settings = Settings { mode: Mode::Fixed, client: Client::El1, entries: 0..1, nmi: false };
    /// # let mut monitor = Monitor::<1>::new(settings, [0], 0)?;
    /// let mut frame = Frame::calling(psci::VERSION, [0; 3]);
    /// let after = monitor.call(0, &mut frame, &mut Nothing);
    /// assert_eq!((after, frame.x[0]), (After::Return, 0x1_0001));
    /// # Ok::<(), epitaph_monitor::SetupError>(())
    /// ```
    pub fn call(&mut self, cpu: usize, frame: &mut Frame, hardware: &mut impl Hardware) -> After {
        let [function, a1, a2, a3, a4, a5, ..] = frame.x;
        // The number is in w0; the upper half of x0 means nothing.
        let function = function as u32;
        let result = match function {
            smccc::VERSION => smccc::VERSION_1_1,
            smccc::ARCH_FEATURES => match a1 as u32 {
                smccc::VERSION | smccc::ARCH_FEATURES => smccc::SUCCESS,
                _ => smccc::NOT_SUPPORTED,
            },
            psci::VERSION => psci::VERSION_1_1,
            psci::FEATURES => self.psci_features(a1 as u32),
            psci::MIGRATE_INFO_TYPE => psci::NO_MIGRATION,
            psci::CPU_ON => self.cpu_on(a1, a2, a3, hardware),
            psci::CPU_ON_32 => self.cpu_on(low(a1), low(a2), low(a3), hardware),
            psci::AFFINITY_INFO => self.affinity_info(a1, a2),
            psci::AFFINITY_INFO_32 => self.affinity_info(low(a1), low(a2)),
            psci::CPU_OFF => {
                self.cpu_off(cpu, hardware);
                return After::PowerOff;
            }
            psci::SYSTEM_OFF => return After::SystemOff,
            psci::SYSTEM_RESET => return After::SystemReset,
            sdei::FIRST..=sdei::LAST => {
                match self.sdei_call(cpu, function, [a1, a2, a3, a4, a5], frame, hardware) {
                    Some(result) => result,
                    // The frame is that of the interrupted code again, x0 included.
                    None => return After::Return,
                }
            }
            _ => smccc::NOT_SUPPORTED,
        };
        frame.x[0] = result as u64;
        After::Return
    }

    /// Returns the CPU number `cpu`.
    pub(crate) fn cpu(&mut self, cpu: usize) -> Option<&mut Cpu> {
        self.cpus.get_mut(cpu)?.as_mut()
    }

    /// Returns the number of the CPU that `mpidr` names exactly: bits outside the affinity
    /// fields have to be 0.
    pub(crate) fn find(&self, mpidr: u64) -> Option<usize> {
        self.cpus.iter().flatten().position(|cpu| cpu.mpidr == mpidr)
    }
}

/// Returns the argument of a call with arguments of 32 bits.
fn low(argument: u64) -> u64 {
    argument & 0xffff_ffff
}
