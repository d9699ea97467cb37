//! Event 0: the only one here, private to each CPU and signalled by software.
//!
//! An event goes: signalled ([`Hardware::signal_event`]) → its interrupt is taken
//! ([`Monitor::event_interrupt`]) → its handler runs → the client completes it, and only then
//! the interrupt ends ([`Hardware::end_event`]). Between taking and ending the interrupt its
//! priority is active, and that alone keeps a second event off: no state here is needed for it.

use crate::abi::sdei::{
    self, CONTEXT_REGISTERS, DENIED, INVALID_PARAMETERS, NOT_SUPPORTED, OUT_OF_RESOURCE, PENDING,
    SUCCESS,
};
use crate::frame::Frame;
use crate::mode::Mode;
use crate::monitor::{Hardware, Monitor, Settings};
use crate::psci::Power;

/// The interrupts that a client could ask to bind: private and shared peripheral interrupts,
/// numbers 16–1019 (Arm IHI 0069, INTIDs).
const PERIPHERAL_INTERRUPTS: core::ops::RangeInclusive<u64> = 16..=1019;

/// What a CPU has told about event 0, and where that event is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Events {
    masked: bool,
    handler: Option<Handler>,
    /// The event arrived and could not be delivered yet.
    pending: bool,
    running: Option<Interrupted>,
}

/// A registered handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Handler {
    entry: u64,
    argument: u64,
    enabled: bool,
}

/// What a running handler interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Interrupted {
    x: [u64; CONTEXT_REGISTERS],
    pc: u64,
    pstate: u64,
}

impl Default for Events {
    /// Makes the state of a CPU that was just switched on: masked, nothing registered.
    fn default() -> Self {
        Self { masked: true, handler: None, pending: false, running: None }
    }
}

impl Events {
    /// Returns true if a handler was entered and has not completed.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns the handler if an event may be delivered to it now.
    fn ready(&self) -> Option<Handler> {
        self.handler.filter(|handler| handler.enabled && !self.masked)
    }

    /// Takes the pending event if it can be delivered from now on. The caller signals it anew,
    /// so that it arrives by its interrupt, with the priority that keeps a second one off.
    fn take_deliverable(&mut self) -> bool {
        self.ready().is_some() && core::mem::take(&mut self.pending)
    }

    fn register(&mut self, entry: u64, argument: u64) -> i64 {
        // A handler that unregistered itself and still runs must complete first.
        if self.handler.is_some() || self.is_running() {
            return DENIED;
        }
        self.handler = Some(Handler { entry, argument, enabled: false });
        SUCCESS
    }

    fn unregister(&mut self) -> i64 {
        let registered = self.handler.take().is_some();
        if registered {
            self.pending = false;
        }
        match (self.is_running(), registered) {
            (true, _) => PENDING,
            (false, true) => SUCCESS,
            (false, false) => DENIED,
        }
    }

    fn set_enabled(&mut self, enabled: bool) -> i64 {
        let Some(handler) = &mut self.handler else { return DENIED };
        handler.enabled = enabled;
        SUCCESS
    }

    fn status(&self) -> i64 {
        let enabled = self.handler.is_some_and(|handler| handler.enabled);
        [
            (self.handler.is_some(), sdei::STATUS_REGISTERED),
            (enabled, sdei::STATUS_ENABLED),
            (self.is_running(), sdei::STATUS_RUNNING),
        ]
        .into_iter()
        .filter_map(|(holds, bit)| holds.then_some(bit))
        .sum()
    }
}

impl<const CPUS: usize> Monitor<CPUS> {
    /// Carries out an SDEI call. `None`: a handler completed, and `frame` is the interrupted
    /// code's again.
    pub(crate) fn sdei_call(
        &mut self,
        cpu: usize,
        function: u32,
        [a1, a2, a3, a4, a5]: [u64; 5],
        frame: &mut Frame,
        hardware: &mut impl Hardware,
    ) -> Option<i64> {
        let client = self.settings.client;
        if self.settings.mode == Mode::NoSdei || !client.is_level_of(frame.pstate) {
            return Some(NOT_SUPPORTED);
        }
        // Functions that name an event take no other than the one there is.
        if names_event(function) && a1 != sdei::SIGNALLED_EVENT {
            return Some(INVALID_PARAMETERS);
        }
        let mpidr = self.cpu(cpu)?.mpidr;
        let may_enter = |entry| self.settings.may_enter(entry);
        let (enters_a1, enters_a2) = (may_enter(a1), may_enter(a2));
        let knows_a5 = self.find(a5).is_some();
        let target = self.find(a2);
        let events = &mut self.cpu(cpu)?.events;
        let mut redeliver = false;
        let result = match function {
            sdei::VERSION => sdei::VERSION_1_0,
            sdei::FEATURES if a1 == sdei::FEATURE_BIND_SLOTS => 0,
            sdei::FEATURES => INVALID_PARAMETERS,
            sdei::EVENT_REGISTER => match a4 {
                sdei::ROUTE_ANY if enters_a2 => events.register(a2, a3),
                sdei::ROUTE_ONE if enters_a2 && knows_a5 => events.register(a2, a3),
                _ => INVALID_PARAMETERS,
            },
            sdei::EVENT_ENABLE => {
                let result = events.set_enabled(true);
                redeliver = events.take_deliverable();
                result
            }
            sdei::EVENT_DISABLE => events.set_enabled(false),
            sdei::EVENT_UNREGISTER => events.unregister(),
            sdei::EVENT_STATUS => events.status(),
            sdei::EVENT_GET_INFO => match a2 {
                // Private, signalled by software, of normal priority.
                sdei::INFO_TYPE | sdei::INFO_NOT_SIGNALLED | sdei::INFO_PRIORITY => 0,
                _ => INVALID_PARAMETERS,
            },
            // A private event has no routing.
            sdei::EVENT_ROUTING_SET => INVALID_PARAMETERS,
            sdei::PE_MASK => i64::from(!core::mem::replace(&mut events.masked, true)),
            sdei::PE_UNMASK => {
                events.masked = false;
                redeliver = events.take_deliverable();
                SUCCESS
            }
            sdei::EVENT_CONTEXT => match (&events.running, usize::try_from(a1)) {
                (_, Err(_)) => INVALID_PARAMETERS,
                (_, Ok(register)) if register >= CONTEXT_REGISTERS => INVALID_PARAMETERS,
                (None, _) => DENIED,
                (Some(interrupted), Ok(register)) => {
                    interrupted.x.get(register).map_or(INVALID_PARAMETERS, |x| *x as i64)
                }
            },
            sdei::EVENT_COMPLETE => match events.running.take() {
                None => DENIED,
                Some(interrupted) => {
                    frame.restore(&interrupted.x);
                    (frame.pc, frame.pstate) = (interrupted.pc, interrupted.pstate);
                    hardware.end_event();
                    return None;
                }
            },
            sdei::EVENT_COMPLETE_AND_RESUME if !events.is_running() => DENIED,
            sdei::EVENT_COMPLETE_AND_RESUME if !enters_a1 => INVALID_PARAMETERS,
            sdei::EVENT_COMPLETE_AND_RESUME => {
                let interrupted = events.running.take()?;
                frame.restore(&interrupted.x);
                (frame.pc, frame.pstate) = (a1, client.start_pstate());
                hardware.set_exception_return(client, interrupted.pc, interrupted.pstate);
                hardware.end_event();
                return None;
            }
            sdei::EVENT_SIGNAL => return Some(self.signal(target, hardware)),
            sdei::INTERRUPT_BIND if PERIPHERAL_INTERRUPTS.contains(&a1) => OUT_OF_RESOURCE,
            sdei::INTERRUPT_BIND | sdei::INTERRUPT_RELEASE => INVALID_PARAMETERS,
            sdei::PRIVATE_RESET => match events.unregister() {
                PENDING => DENIED,
                // Resetting what was never registered is no error.
                _ => SUCCESS,
            },
            // There are no shared events.
            sdei::SHARED_RESET => SUCCESS,
            _ => NOT_SUPPORTED,
        };
        if redeliver {
            hardware.signal_event(mpidr);
        }
        Some(result)
    }

    /// Sends event 0 to another CPU, or to the calling one.
    fn signal(&mut self, target: Option<usize>, hardware: &mut impl Hardware) -> i64 {
        match target.and_then(|target| self.cpu(target)) {
            Some(cpu) if cpu.power == Power::On => {
                hardware.signal_event(cpu.mpidr);
                SUCCESS
            }
            // A CPU that is off takes no interrupt, and none is kept for it.
            _ => INVALID_PARAMETERS,
        }
    }

    /// Takes the event interrupt on the CPU number `cpu`, which has acknowledged it and
    /// interrupted `frame`. Enters the handler by changing `frame`; or ends the interrupt at
    /// once, and keeps the event pending or drops it.
    pub fn event_interrupt(&mut self, cpu: usize, frame: &mut Frame, hardware: &mut impl Hardware) {
        let Settings { mode, client, nmi, .. } = self.settings.clone();
        let Some(cpu) = self.cpu(cpu) else { return hardware.end_event() };
        let events = &mut cpu.events;
        let Some(handler) = events.ready().filter(|_| !events.is_running()) else {
            let lost = mode == Mode::DropWhenMasked && events.masked;
            events.pending |= events.handler.is_some() && !lost;
            return hardware.end_event();
        };
        events.running =
            Some(Interrupted { x: frame.context(), pc: frame.pc, pstate: frame.pstate });
        frame.x[0] = sdei::SIGNALLED_EVENT;
        frame.x[1] = handler.argument;
        frame.x[2] = frame.pc;
        frame.x[3] = frame.pstate;
        frame.pstate = client.handler_pstate(frame.pstate, nmi);
        frame.pc = handler.entry;
    }
}

/// Returns true if x1 of `function` is the number of an event.
fn names_event(function: u32) -> bool {
    matches!(
        function,
        sdei::EVENT_REGISTER
            | sdei::EVENT_ENABLE
            | sdei::EVENT_DISABLE
            | sdei::EVENT_UNREGISTER
            | sdei::EVENT_STATUS
            | sdei::EVENT_GET_INFO
            | sdei::EVENT_ROUTING_SET
            | sdei::EVENT_SIGNAL
            | sdei::INTERRUPT_RELEASE
    )
}
