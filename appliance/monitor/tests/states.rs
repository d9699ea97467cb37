//! Every state that two CPUs, their interrupt controller and a client can get into.
//!
//! The walk is breadth-first over a model of the machine: each CPU runs, is in a handler or
//! waits; its event interrupt is pending and active or not, and an active one keeps off the
//! next. From each state every CPU makes every call and takes every interrupt it can.

use std::collections::{HashSet, VecDeque};

use epitaph_monitor::abi::{psci, sdei};
use epitaph_monitor::{After, Client, Frame, Hardware, Mode, Monitor, Settings};

const CPUS: usize = 2;
const MPIDRS: [u64; CPUS] = [0, 0x100];
const ENTRY: u64 = 0x4020_0000;
const HANDLER: u64 = 0x4020_1000;
const WORK: u64 = 0x4020_2000;
const RESUME: u64 = 0x4020_3000;
/// EL1 with its own stack pointer, everything masked.
const EL1: u64 = 0x3c5;

/// What a CPU does, as the model has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Waiting,
    Working,
    Handling,
}

/// A CPU and its part of the interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cpu {
    doing: Doing,
    woken: bool,
    pending: bool,
    active: bool,
}

/// The machine. What the monitor asks of it is done to `cpus`, for the CPU `current`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Machine {
    cpus: [Cpu; CPUS],
    current: usize,
    exception_return: Option<(u64, u64)>,
}

impl Hardware for Machine {
    fn signal_event(&mut self, mpidr: u64) {
        let target = MPIDRS.iter().position(|known| *known == mpidr).expect("a known CPU");
        assert!(self.cpus[target].doing != Doing::Waiting, "signalled a CPU that is off");
        self.cpus[target].pending = true;
    }

    fn end_event(&mut self) {
        let cpu = &mut self.cpus[self.current];
        assert!(cpu.active, "ended an interrupt that is not active");
        cpu.active = false;
    }

    fn wake(&mut self, cpu: usize) {
        assert_eq!(self.cpus[cpu].doing, Doing::Waiting);
        self.cpus[cpu].woken = true;
    }

    fn set_exception_return(&mut self, _client: Client, pc: u64, pstate: u64) {
        self.exception_return = Some((pc, pstate));
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    monitor: Monitor<CPUS>,
    machine: Machine,
}

fn settings(mode: Mode) -> Settings {
    Settings { mode, client: Client::El1, entries: 0x4000_0000..0x5000_0000, nmi: false }
}

fn first(mode: Mode) -> State {
    let cpu = |doing| Cpu { doing, woken: false, pending: false, active: false };
    State {
        monitor: Monitor::new(settings(mode), MPIDRS, 0).expect("two CPUs"),
        machine: Machine {
            cpus: [cpu(Doing::Working), cpu(Doing::Waiting)],
            current: 0,
            exception_return: None,
        },
    }
}

/// A frame of which each register tells its number.
fn frame(pc: u64) -> Frame {
    let mut frame = Frame { pc, pstate: EL1, ..Frame::default() };
    frame.x.iter_mut().enumerate().for_each(|(number, x)| *x = 0x100 + number as u64);
    frame
}

/// Calls with each argument that makes a difference. `other` is the MPIDR of the other CPU.
fn calls(other: u64) -> Vec<(u32, [u64; 3])> {
    let mut calls = vec![
        (psci::CPU_OFF, [0; 3]),
        (psci::CPU_ON, [other, ENTRY, 0]),
        (psci::CPU_ON, [other, 2, 0]),
        (psci::AFFINITY_INFO, [other, 0, 0]),
        (sdei::EVENT_REGISTER, [0, HANDLER, 0x77]),
        (sdei::EVENT_REGISTER, [0, 0, 0]),
        (sdei::EVENT_COMPLETE_AND_RESUME, [RESUME, 0, 0]),
        (sdei::EVENT_COMPLETE_AND_RESUME, [3, 0, 0]),
        (sdei::EVENT_SIGNAL, [0, other, 0]),
        (sdei::EVENT_SIGNAL, [0, 0, 0]),
        (sdei::EVENT_CONTEXT, [17, 0, 0]),
        (sdei::EVENT_CONTEXT, [18, 0, 0]),
    ];
    // Those whose arguments make no difference beyond the number of the event.
    calls.extend((sdei::FIRST..=sdei::LAST + 1).map(|function| (function, [0; 3])));
    calls.extend((sdei::FIRST..=sdei::LAST).map(|function| (function, [1; 3])));
    calls
}

/// Makes one call, and checks what must hold whatever the call is.
fn call(state: &State, cpu: usize, function: u32, arguments: [u64; 3]) -> State {
    let mut next = state.clone();
    next.machine.current = cpu;
    next.machine.exception_return = None;
    let handling = state.machine.cpus[cpu].doing == Doing::Handling;
    let mut frame = Frame { pstate: EL1, ..frame(if handling { HANDLER } else { WORK }) };
    frame.x[0] = function.into();
    frame.x[1..4].copy_from_slice(&arguments);
    frame.x[4] = 0;
    let before = frame;
    let after = next.monitor.call(cpu, &mut frame, &mut next.machine);
    match after {
        After::PowerOff => {
            assert_eq!(function, psci::CPU_OFF);
            next.machine.cpus[cpu].doing = Doing::Waiting;
            next.machine.cpus[cpu].woken = false;
            // A CPU that waits takes and ends what arrives, unless a priority keeps it off.
            if !next.machine.cpus[cpu].active {
                next.machine.cpus[cpu].pending = false;
            }
        }
        After::Return => {
            let left =
                function == sdei::EVENT_COMPLETE || function == sdei::EVENT_COMPLETE_AND_RESUME;
            if left && frame.pc != before.pc {
                assert!(handling);
                next.machine.cpus[cpu].doing = Doing::Working;
                assert!(!next.machine.cpus[cpu].active, "completed, and still active");
                let interrupted = interrupted_frame();
                assert_eq!(frame.x[..18], interrupted.x[..18], "x0-x17 come back");
                assert_eq!(frame.x[18..], before.x[18..], "x18-x30 are the handler's matter");
                if function == sdei::EVENT_COMPLETE {
                    assert_eq!((frame.pc, frame.pstate), (WORK, EL1));
                    assert_eq!(next.machine.exception_return, None);
                } else {
                    assert_eq!((frame.pc, frame.pstate), (RESUME, EL1));
                    assert_eq!(next.machine.exception_return, Some((WORK, EL1)));
                }
            } else {
                let result = frame.x[0] as i64;
                assert!(result >= 0 || [-1, -2, -3, -4, -5, -9, -10].contains(&result));
                frame.x[0] = before.x[0];
                assert_eq!(frame, before, "a call changes x0 only");
            }
        }
        other => panic!("{function:#x}: {other:?}"),
    }
    next.machine.exception_return = None;
    next
}

/// What every interrupted frame of the walk looks like.
fn interrupted_frame() -> Frame {
    frame(WORK)
}

/// Takes the event interrupt, if the interrupt controller lets it through.
fn interrupt(state: &State, cpu: usize) -> Option<State> {
    let Cpu { doing, pending, active, .. } = state.machine.cpus[cpu];
    if doing == Doing::Waiting || !pending || active {
        return None;
    }
    assert_eq!(doing, Doing::Working, "a handler runs and its interrupt is not active");
    let mut next = state.clone();
    next.machine.current = cpu;
    next.machine.cpus[cpu].pending = false;
    next.machine.cpus[cpu].active = true;
    let mut frame = interrupted_frame();
    next.monitor.event_interrupt(cpu, &mut frame, &mut next.machine);
    if next.machine.cpus[cpu].active {
        next.machine.cpus[cpu].doing = Doing::Handling;
        assert_eq!(frame.x[..4], [0, 0x77, WORK, EL1]);
        assert_eq!(frame.x[4..], interrupted_frame().x[4..]);
        assert_eq!((frame.pc, frame.pstate), (HANDLER, EL1));
        // The state before allowed it: asked by the calls that a client has.
        assert_eq!(ask(state, cpu, sdei::EVENT_STATUS), 3, "registered, enabled, not running");
        assert_eq!(ask(state, cpu, sdei::PE_MASK), 1, "was not masked");
    } else {
        assert_eq!(frame, interrupted_frame(), "no handler, no change");
    }
    Some(next)
}

/// Returns what a call of `cpu` would answer, without making it.
fn ask(state: &State, cpu: usize, function: u32) -> i64 {
    let mut copy = state.clone();
    let mut frame = Frame::calling(function, [0; 3]);
    let _ = copy.monitor.call(cpu, &mut frame, &mut copy.machine);
    frame.x[0] as i64
}

fn start(state: &State, cpu: usize) -> Option<State> {
    if state.machine.cpus[cpu].doing != Doing::Waiting || !state.machine.cpus[cpu].woken {
        return None;
    }
    let mut next = state.clone();
    let start = next.monitor.start(cpu).expect("a CPU that was woken has an order");
    assert_eq!((start.entry, start.argument), (ENTRY, 0));
    next.machine.cpus[cpu].doing = Doing::Working;
    next.machine.cpus[cpu].woken = false;
    assert_eq!(next.monitor.start(cpu), None, "an order is carried out once");
    assert_eq!(ask(&next, cpu, sdei::EVENT_STATUS).max(0), 0, "nothing is registered");
    Some(next)
}

/// Walks every state, and returns them.
fn walk(mode: Mode) -> HashSet<State> {
    let mut seen = HashSet::from([first(mode)]);
    let mut open = VecDeque::from([first(mode)]);
    while let Some(state) = open.pop_front() {
        let mut found = Vec::new();
        for cpu in 0..CPUS {
            found.extend(start(&state, cpu));
            found.extend(interrupt(&state, cpu));
            if state.machine.cpus[cpu].doing != Doing::Waiting {
                for (function, arguments) in calls(MPIDRS[1 - cpu]) {
                    found.push(call(&state, cpu, function, arguments));
                }
            }
        }
        for mut next in found {
            next.machine.current = 0;
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    seen
}

/// Whether a CPU works and its interrupt is active: nothing can end it any more.
fn is_deaf(state: &State) -> bool {
    state.machine.cpus.iter().any(|cpu| cpu.doing == Doing::Working && cpu.active)
}

#[test]
fn no_cpu_is_ever_deaf() {
    for mode in [Mode::Fixed, Mode::DropWhenMasked, Mode::NoSdei] {
        let states = walk(mode);
        assert!(states.len() > 5, "{mode:?}: {}", states.len());
        assert!(!states.iter().any(is_deaf), "{mode:?}");
        let handles =
            |state: &State| state.machine.cpus.iter().any(|cpu| cpu.doing == Doing::Handling);
        assert_eq!(states.iter().any(handles), mode != Mode::NoSdei, "{mode:?}");
    }
}

#[test]
fn a_naive_monitor_has_a_way_to_a_deaf_cpu() {
    assert!(walk(Mode::Naive).iter().any(is_deaf));
}

/// An event that was signalled at a CPU with a handler is not lost, whatever happens between,
/// unless the client unregisters the handler or switches the CPU off.
#[test]
fn a_signalled_event_arrives_once_it_may() {
    for state in walk(Mode::Fixed) {
        for (cpu, mpidr) in MPIDRS.into_iter().enumerate() {
            let registered = ask(&state, cpu, sdei::EVENT_STATUS) & 1 == 1;
            if state.machine.cpus[cpu].doing != Doing::Working || !registered {
                continue;
            }
            let mut next = call(&state, cpu, sdei::EVENT_SIGNAL, [0, mpidr, 0]);
            // Taken while it may not be delivered.
            next = call(&next, cpu, sdei::PE_MASK, [0; 3]);
            next = interrupt(&next, cpu).expect("pending");
            assert_eq!(next.machine.cpus[cpu].doing, Doing::Working);
            next = call(&next, cpu, sdei::EVENT_DISABLE, [0; 3]);
            next = call(&next, cpu, sdei::PE_UNMASK, [0; 3]);
            assert!(interrupt(&next, cpu).is_none());
            next = call(&next, cpu, sdei::EVENT_ENABLE, [0; 3]);
            next = interrupt(&next, cpu).expect("signalled anew");
            assert_eq!(next.machine.cpus[cpu].doing, Doing::Handling);
        }
    }
}

#[test]
fn a_masked_cpu_loses_an_event_in_that_mode_only() {
    for (mode, kept) in [(Mode::Fixed, true), (Mode::Naive, true), (Mode::DropWhenMasked, false)] {
        let mut state = first(mode);
        state = call(&state, 0, sdei::EVENT_REGISTER, [0, HANDLER, 0x77]);
        state = call(&state, 0, sdei::EVENT_ENABLE, [0; 3]);
        state = call(&state, 0, sdei::EVENT_SIGNAL, [0, MPIDRS[0], 0]);
        state = interrupt(&state, 0).expect("pending");
        state = call(&state, 0, sdei::PE_UNMASK, [0; 3]);
        assert_eq!(interrupt(&state, 0).is_some(), kept, "{mode:?}");
    }
}

#[test]
fn another_exception_level_gets_no_sdei_and_no_cpu_gets_a_panic() {
    let mut state = first(Mode::Fixed);
    let mut frame = Frame::calling(sdei::VERSION, [0; 3]);
    frame.pstate = 0x9;
    assert_eq!(state.monitor.call(0, &mut frame, &mut state.machine), After::Return);
    assert_eq!(frame.x[0] as i64, sdei::NOT_SUPPORTED);
    for function in 0..u32::from(u16::MAX) {
        let mut frame = Frame::calling(0x8400_0000 | function, [u64::MAX; 3]);
        let _ = state.monitor.call(usize::MAX, &mut frame, &mut state.machine);
    }
    assert_eq!(state.monitor.start(7), None);
    assert!(Monitor::<1>::new(settings(Mode::Fixed), [0, 1], 0).is_err());
    assert!(Monitor::<2>::new(settings(Mode::Fixed), [0], 1).is_err());
}
