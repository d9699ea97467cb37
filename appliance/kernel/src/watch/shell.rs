//! The console one can talk to: a line comes in by the serial port, an answer goes out.
//!
//! Every CPU's tick looks for input, so the console answers as long as any CPU ticks, and
//! just then it is wanted most. What is asked for is done in the tick's handler, where the
//! CPU holds no lock; no answer waits for one that another CPU may hold for ever. Once a
//! crash is claimed nobody listens any more.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use handoff::TraceEvent;
use machine::serial::Uart;
use machine::trace;

use crate::arming::ready;
use crate::base::{clock, console, cpus, memory, power};
use crate::trial::faults;
use crate::watch::backtrace;
use crate::work::workload;

/// Letters of a line; what is longer is cut.
const LINE: usize = 96;
/// Events shown of each CPU.
const EVENTS: u64 = 8;
/// Letters taken at one tick: what a UART keeps while nobody looks.
const AT_ONCE: usize = 64;

static LISTENING: AtomicBool = AtomicBool::new(false);
static LETTERS: [AtomicU8; LINE] = [const { AtomicU8::new(0) }; LINE];
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// What can be asked for: the word, what it does, and what it is followed by.
struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&str),
}

static COMMANDS: &[Command] = &[
    Command { name: "help", help: "what can be asked for", run: help },
    Command { name: "cpus", help: "every CPU: its ticks, its work", run: cpus },
    Command { name: "workloads", help: "what is being worked on, and how far", run: workloads },
    Command { name: "memory", help: "how much is free", run: memory },
    Command { name: "log", help: "the last lines of the log", run: log },
    Command { name: "trace", help: "what every CPU did last", run: trace },
    Command { name: "bt", help: "where every CPU stands, by an NMI that returns", run: bt },
    Command { name: "ready", help: "would a crash now be captured? rehearses it", run: ready },
    Command {
        name: "crash",
        help: "takes a dump; crash FAULT[,cpu=K] brings a fault about",
        run: crash,
    },
    Command { name: "reboot", help: "stops every CPU and resets the machine", run: reboot },
];

/// An answer's line: whole unless another CPU prints in the same moment.
macro_rules! say {
    ($($arguments:tt)*) => { console::emergency(format_args!($($arguments)*)) };
}

/// Takes what has come in, and does what a finished line asks for. Called at every tick of
/// every CPU; one of them listens at a time.
pub fn listen() {
    let uart = Uart::new(console::port());
    if LISTENING.swap(true, Ordering::Acquire) {
        return;
    }
    for _ in 0..AT_ONCE {
        let Some(letter) = uart.read_byte() else { break };
        take(uart, letter);
    }
    LISTENING.store(false, Ordering::Release);
}

fn take(uart: Uart, letter: u8) {
    let length = LENGTH.load(Ordering::Relaxed);
    match letter {
        b'\r' | b'\n' => {
            uart.write_text(b"\n");
            let mut line = [0; LINE];
            for (to, from) in line.iter_mut().zip(&LETTERS[..length]) {
                *to = from.load(Ordering::Relaxed);
            }
            LENGTH.store(0, Ordering::Relaxed);
            obey(core::str::from_utf8(&line[..length]).unwrap_or_default().trim());
        }
        // Backspace, as either kind of terminal sends it.
        8 | 0x7f if length > 0 => {
            LENGTH.store(length - 1, Ordering::Relaxed);
            uart.write_text(b"\x08 \x08");
        }
        b' '..=b'~' if length < LINE => {
            LETTERS[length].store(letter, Ordering::Relaxed);
            LENGTH.store(length + 1, Ordering::Relaxed);
            // What is typed is shown, and is none of the log's business.
            uart.write_byte(letter);
        }
        _ => {}
    }
}

fn obey(line: &str) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match COMMANDS.iter().find(|command| command.name == word) {
        Some(command) => (command.run)(rest.trim()),
        None if word.is_empty() => {}
        None => say!("console: no such word: {word}; try help"),
    }
}

fn help(_: &str) {
    for command in COMMANDS {
        say!("help: {:<10} {}", command.name, command.help);
    }
}

fn cpus(_: &str) {
    for (index, cpu) in cpus::all().iter().enumerate() {
        let apic_id = cpus::apic_id(index);
        if !cpus::running(index) {
            say!("cpus: {index} (APIC {apic_id}) does not run");
            continue;
        }
        let (ticks, beats) = (cpu.ticks.load(Ordering::Relaxed), cpu.beats.load(Ordering::Relaxed));
        let name = workload::name_of(cpu.workload.load(Ordering::Relaxed));
        match (name, cpu.unit.load(Ordering::Relaxed)) {
            (Some(name), unit) if unit != u64::MAX => say!(
                "cpus: {index} (APIC {apic_id}) unit {unit} of {name}, {ticks} ticks, {beats} beats"
            ),
            _ => say!("cpus: {index} (APIC {apic_id}) idle, {ticks} ticks, {beats} beats"),
        }
    }
}

fn workloads(_: &str) {
    match workload::progress() {
        Some((name, round, done, units)) => {
            say!("workloads: {name}, round {round}, {done} of {units} units done");
        }
        None => say!("workloads: none is being worked on"),
    }
}

fn memory(_: &str) {
    match memory::counts_if_free() {
        Some((free, total)) => say!("memory: {} of {} MiB free", free >> 8, total >> 8),
        None => say!("memory: somebody is allocating; ask again"),
    }
}

fn log(_: &str) {
    console::tail(&mut |line: fmt::Arguments<'_>| say!("log: {line}"));
}

fn trace(_: &str) {
    for index in (0..cpus::count()).filter(|&index| cpus::running(index)) {
        let events = (0..EVENTS).rev().filter_map(|back| trace::event(index, back));
        for TraceEvent { tsc, kind, first, second, .. } in events {
            let us = clock::ns(tsc.wrapping_sub(clock::start_tsc())) / 1000;
            say!("trace: {index} at {us} us: {kind} {first:#x} {second:#x}");
        }
    }
}

fn bt(_: &str) {
    backtrace::show_all();
}

fn ready(_: &str) {
    ready::check(&mut |line| say!("{line}"));
}

/// Crashes on the CPU that has read the line, in its tick: a dump on request, which every image
/// has. With the name of a fault, that fault is brought about where the image has faults.
fn crash(what: &str) {
    if what.is_empty() {
        panic!("asked for on the console");
    }
    match faults::request(what) {
        Ok((name, cpu)) => say!("console: {name} will strike on cpu {cpu} at its next beat"),
        Err(reason) => say!("console: {reason}"),
    }
}

fn reboot(_: &str) {
    say!("console: rebooting, {} s after boot", clock::now_ns() / 1_000_000_000);
    power::reset()
}
