//! Calls and their return codes.

use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_monitor::abi::{psci, sdei, smccc};

use crate::handler::{ACTIONS, Action, EVENTS, register};
use crate::machine::{BLOCKS, handler, say, smc, within};

/// An MPIDR that no CPU has.
const NO_CPU: u64 = 0xff;
/// A CPU that is off.
const OFF_CPU: u64 = 1;
/// Secure memory.
const SECURE: u64 = 0x0e00_0000;
/// Numbers without a function, one of them in SDEI's range.
const UNKNOWN: u32 = 0x8400_0055;
const UNKNOWN_SDEI: u32 = 0xc400_0033;
/// `CPU_SUSPEND`, which the monitor does not have.
const CPU_SUSPEND: u32 = 0xc400_0001;

fn code(name: &str, function: u32, arguments: [u64; 5]) {
    say(format_args!("code {name}={}\n", smc(function, arguments)));
}

/// Makes the calls of PSCI.
pub fn psci() {
    let entry = handler();
    code("psci version", psci::VERSION, [0; 5]);
    code("psci features of CPU_ON", psci::FEATURES, [psci::CPU_ON.into(), 0, 0, 0, 0]);
    code("psci features of CPU_SUSPEND", psci::FEATURES, [CPU_SUSPEND.into(), 0, 0, 0, 0]);
    code("psci features of SMCCC_VERSION", psci::FEATURES, [smccc::VERSION.into(), 0, 0, 0, 0]);
    code("psci migration", psci::MIGRATE_INFO_TYPE, [0; 5]);
    code("psci unknown", UNKNOWN, [0; 5]);
    code("smccc version", smccc::VERSION, [0; 5]);
    code("smccc features of itself", smccc::ARCH_FEATURES, [smccc::VERSION.into(), 0, 0, 0, 0]);
    code("smccc features of unknown", smccc::ARCH_FEATURES, [0x8000_8000, 0, 0, 0, 0]);
    code("cpu_on nobody", psci::CPU_ON, [NO_CPU, entry, 0, 0, 0]);
    code("cpu_on MPIDR bit 31", psci::CPU_ON, [OFF_CPU | 1 << 31, entry, 0, 0, 0]);
    code("cpu_on itself", psci::CPU_ON, [0, entry, 0, 0, 0]);
    code("cpu_on odd entry", psci::CPU_ON, [OFF_CPU, entry + 2, 0, 0, 0]);
    code("cpu_on secure entry", psci::CPU_ON, [OFF_CPU, SECURE, 0, 0, 0]);
    code("cpu_on secure entry, 32 bits", psci::CPU_ON_32, [OFF_CPU, SECURE, 0, 0, 0]);
    code("affinity itself", psci::AFFINITY_INFO, [0; 5]);
    code("affinity off", psci::AFFINITY_INFO, [OFF_CPU, 0, 0, 0, 0]);
    code("affinity off, 32 bits", psci::AFFINITY_INFO_32, [OFF_CPU | 1 << 32, 0, 0, 0, 0]);
    code("affinity nobody", psci::AFFINITY_INFO, [NO_CPU, 0, 0, 0, 0]);
    code("affinity level 1", psci::AFFINITY_INFO, [0, 1, 0, 0, 0]);
}

/// Makes the calls of SDEI outside of a handler, on a CPU that has registered nothing.
pub fn sdei() {
    let (entry, any) = (handler(), sdei::ROUTE_ANY);
    let register = sdei::EVENT_REGISTER;
    code("sdei version", sdei::VERSION, [0; 5]);
    code("sdei unknown", UNKNOWN_SDEI, [0; 5]);
    code("bind slots", sdei::FEATURES, [0; 5]);
    code("features 1", sdei::FEATURES, [1, 0, 0, 0, 0]);
    code("status, fresh", sdei::EVENT_STATUS, [0; 5]);
    code("status of event 1", sdei::EVENT_STATUS, [1, 0, 0, 0, 0]);
    code("enable, unregistered", sdei::EVENT_ENABLE, [0; 5]);
    code("disable, unregistered", sdei::EVENT_DISABLE, [0; 5]);
    code("unregister, unregistered", sdei::EVENT_UNREGISTER, [0; 5]);
    code("register event 1", register, [1, entry, 0, any, 0]);
    code("register at 0", register, [0, 0, 0, any, 0]);
    code("register at an odd entry", register, [0, entry + 1, 0, any, 0]);
    code("register with routing 2", register, [0, entry, 0, 2, 0]);
    code("register for nobody", register, [0, entry, 0, sdei::ROUTE_ONE, NO_CPU]);
    code("register", register, [0, entry, 0, any, 0]);
    code("register twice", register, [0, entry, 0, any, 0]);
    code("status, registered", sdei::EVENT_STATUS, [0; 5]);
    code("enable", sdei::EVENT_ENABLE, [0; 5]);
    code("enable twice", sdei::EVENT_ENABLE, [0; 5]);
    code("status, enabled", sdei::EVENT_STATUS, [0; 5]);
    code("disable", sdei::EVENT_DISABLE, [0; 5]);
    for (name, info) in [
        ("info type", sdei::INFO_TYPE),
        ("info not signalled", sdei::INFO_NOT_SIGNALLED),
        ("info priority", sdei::INFO_PRIORITY),
        ("info routing", sdei::INFO_ROUTING),
        ("info affinity", sdei::INFO_AFFINITY),
        ("info 5", 5),
    ] {
        code(name, sdei::EVENT_GET_INFO, [0, info, 0, 0, 0]);
    }
    code("info of event 1", sdei::EVENT_GET_INFO, [1, 0, 0, 0, 0]);
    code("routing", sdei::EVENT_ROUTING_SET, [0; 5]);
    code("mask, masked", sdei::PE_MASK, [0; 5]);
    code("unmask", sdei::PE_UNMASK, [0; 5]);
    code("mask", sdei::PE_MASK, [0; 5]);
    code("context outside", sdei::EVENT_CONTEXT, [0; 5]);
    code("context of x18", sdei::EVENT_CONTEXT, [18, 0, 0, 0, 0]);
    code("complete outside", sdei::EVENT_COMPLETE, [0; 5]);
    code("complete and resume outside", sdei::EVENT_COMPLETE_AND_RESUME, [entry, 0, 0, 0, 0]);
    code("signal event 1", sdei::EVENT_SIGNAL, [1, 0, 0, 0, 0]);
    code("signal nobody", sdei::EVENT_SIGNAL, [0, NO_CPU, 0, 0, 0]);
    code("signal a CPU that is off", sdei::EVENT_SIGNAL, [0, OFF_CPU, 0, 0, 0]);
    code("bind an SGI", sdei::INTERRUPT_BIND, [8, 0, 0, 0, 0]);
    code("bind a PPI", sdei::INTERRUPT_BIND, [27, 0, 0, 0, 0]);
    code("bind an SPI", sdei::INTERRUPT_BIND, [33, 0, 0, 0, 0]);
    code("bind no interrupt", sdei::INTERRUPT_BIND, [1020, 0, 0, 0, 0]);
    code("release event 0", sdei::INTERRUPT_RELEASE, [0; 5]);
    code("private reset", sdei::PRIVATE_RESET, [0; 5]);
    code("status, reset", sdei::EVENT_STATUS, [0; 5]);
    code("private reset twice", sdei::PRIVATE_RESET, [0; 5]);
    code("shared reset", sdei::SHARED_RESET, [0; 5]);
}

const INSIDE: [(&str, u32, u64); 7] = [
    ("inside: status", sdei::EVENT_STATUS, 0),
    ("inside: context of x18", sdei::EVENT_CONTEXT, 18),
    ("inside: resume at 1", sdei::EVENT_COMPLETE_AND_RESUME, 1),
    ("inside: unregister", sdei::EVENT_UNREGISTER, 0),
    ("inside: register", sdei::EVENT_REGISTER, 0),
    ("inside: private reset", sdei::PRIVATE_RESET, 0),
    ("inside: status, unregistered", sdei::EVENT_STATUS, 0),
];
static RESULTS: [AtomicU64; INSIDE.len()] = [const { AtomicU64::new(0) }; INSIDE.len()];

/// Makes the calls that a running handler is to make.
pub fn inside_of_a_handler() {
    for ((_, function, argument), result) in INSIDE.iter().zip(&RESULTS) {
        let arguments = [*argument, handler(), 0, sdei::ROUTE_ANY, 0];
        result.store(smc(*function, arguments) as u64, Ordering::Relaxed);
    }
}

/// Signals the boot CPU itself, whose handler makes those calls, and prints their results.
pub fn in_own_handler() {
    ACTIONS[0].store(Action::Calls as u64, Ordering::Relaxed);
    register(true);
    code("signal itself", sdei::EVENT_SIGNAL, [0; 5]);
    let came = within(5000, || EVENTS[0].load(Ordering::Acquire) == 1);
    say(format_args!("code handled by itself={}\n", u64::from(came)));
    for ((name, ..), result) in INSIDE.iter().zip(&RESULTS) {
        say(format_args!("code {name}={}\n", result.load(Ordering::Relaxed) as i64));
    }
    code("status, completed", sdei::EVENT_STATUS, [0; 5]);
    code("register again", sdei::EVENT_REGISTER, [0, handler(), 0, sdei::ROUTE_ANY, 0]);
    let block = BLOCKS[0].x[1].load(Ordering::Relaxed);
    say(format_args!(
        "code argument arrived={}\n",
        u64::from(block == &raw const BLOCKS[0] as u64)
    ));
}
