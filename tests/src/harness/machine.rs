//! A running QEMU, seen as a stream of events.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use shared_child::SharedChild;

use super::Console;
use super::qmp::Qmp;

/// Something the machine did.
#[derive(Debug)]
pub enum Event {
    /// A console line, without its line break.
    Line(String),
    /// An event QEMU reported.
    Qmp(Value),
    /// QEMU is gone, and everything it said was delivered before.
    Exited(ExitStatus),
}

/// QEMU with its console and its QMP connection. Dropping it kills and reaps.
pub struct Machine {
    child: Arc<SharedChild>,
    qmp: Qmp,
    events: Receiver<Event>,
    /// Taken off `events` while looking for something else.
    early: VecDeque<Event>,
    threads: Vec<JoinHandle<()>>,
    console: Console,
    deadline: Instant,
    exited: bool,
}

impl Machine {
    /// Starts `command`, logging the console to `console.log` and QEMU's own complaints
    /// to `qemu.log` in `folder`. The time-out counts from here.
    ///
    /// # Errors
    /// QEMU cannot be started or refuses its command line; holds what it said.
    pub fn start(command: &[String], folder: &Path, timeout: Duration) -> Result<Self> {
        let create =
            |name: &str| File::create(folder.join(name)).with_context(|| format!("create {name}"));
        let (sender, events) = channel();
        let (qmp, theirs, reports) = Qmp::pair(sender.clone())?;
        let mut command = with_parent(command);
        command.stdin(theirs).stdout(Stdio::piped()).stderr(create("qemu.log")?);
        let child = SharedChild::spawn(&mut command)
            .with_context(|| format!("start {}", command.get_program().display()))?;
        // Its copy of our end of the socket pair would keep QMP open after QEMU is gone.
        drop(command);
        let child = Arc::new(child);
        let pipe = child.take_stdout().context("QEMU's standard output")?;
        let log = create("console.log")?;
        let lines = sender.clone();
        let console = std::thread::spawn(move || follow_console(pipe, log, &lines));
        let waited = Arc::clone(&child);
        let waiter = std::thread::spawn(move || {
            let status = waited.wait();
            // QEMU was the only writer of both, so they are at their ends, and all lines and
            // reports are sent.
            let _ = console.join();
            let _ = reports.join();
            if let Ok(status) = status {
                let _ = sender.send(Event::Exited(status));
            }
        });
        let mut machine = Self {
            child,
            qmp,
            events,
            early: VecDeque::new(),
            threads: vec![waiter],
            console: Console::default(),
            deadline: Instant::now() + timeout,
            exited: false,
        };
        if let Err(error) = machine.qmp.negotiate() {
            machine.kill();
            let said = std::fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
            bail!("{error:#}\n{}", said.trim());
        }
        Ok(machine)
    }

    /// Stops QEMU as a whole, or lets it go on.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn pause(&self, stopped: bool) -> Result<()> {
        let signal = if stopped { "-STOP" } else { "-CONT" };
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status().context("start kill")?;
        if !status.success() {
            bail!("kill {signal} {id} failed");
        }
        Ok(())
    }

    /// The next event, or `None` when the time is up.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.early.pop_front() {
            return Some(event);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        let event = match self.events.recv_timeout(left) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        match &event {
            Event::Line(line) => self.console.push(line),
            Event::Exited(_) => self.exited = true,
            Event::Qmp(_) => {}
        }
        Some(event)
    }

    /// Waits for a console line that holds `marker` and returns the line. What came
    /// before it is delivered again by [`Self::next_event`].
    ///
    /// # Errors
    /// The machine ended or the time was up; holds the end of the console.
    pub fn wait_for_line(&mut self, marker: &str) -> Result<String> {
        let found = self.wait_for(true, |event| match event {
            Event::Line(line) if line.contains(marker) => Some(line.clone()),
            _ => None,
        });
        found.with_context(|| {
            format!("'{marker}' never came; the console ends:\n{}", self.console.tail(12))
        })
    }

    /// Waits for a console line that `wanted` takes, for `time` at most, and returns the line.
    /// `None` when the time is up or the machine ended. What came before the line, and the line
    /// itself, are delivered again by [`Self::next_event`].
    pub fn line_within(&mut self, time: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = self.deadline;
        self.deadline = deadline.min(Instant::now() + time);
        let found = self.wait_for(true, |event| match event {
            Event::Line(line) if wanted(line) => Some(line.clone()),
            _ => None,
        });
        self.deadline = deadline;
        found
    }

    /// Waits for QEMU to report `name`, and returns the report, which is not delivered
    /// again; what came before it is.
    ///
    /// # Errors
    /// As [`Self::wait_for_line`].
    pub fn wait_for_report(&mut self, name: &str) -> Result<Value> {
        let found = self.wait_for(false, |event| match event {
            Event::Qmp(report) if report["event"] == name => Some(report.clone()),
            _ => None,
        });
        found.with_context(|| format!("QEMU never reported {name}"))
    }

    /// What `wanted` makes of the first event that it takes. Those before it are delivered
    /// again, and with `again` that one as well.
    fn wait_for<T>(&mut self, again: bool, wanted: impl Fn(&Event) -> Option<T>) -> Option<T> {
        let mut seen = VecDeque::new();
        let found = loop {
            match self.next_event() {
                Some(Event::Exited(status)) => {
                    seen.push_back(Event::Exited(status));
                    break None;
                }
                Some(event) => {
                    let found = wanted(&event);
                    if found.is_none() || again {
                        seen.push_back(event);
                    }
                    if found.is_some() {
                        break found;
                    }
                }
                None => break None,
            }
        };
        // What was put aside before and not looked at this time comes behind it.
        seen.append(&mut self.early);
        self.early = seen;
        found
    }

    /// The console so far.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// QEMU's control channel.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Ends QEMU at once.
    pub fn kill(&mut self) {
        // It fails only when QEMU is gone already, which is what was wanted.
        let _ = self.child.kill();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command, made to die with this process: a runner that is killed itself cannot
/// clean up. `setpriv` (util-linux) asks the system for that and becomes QEMU; without it
/// everything but that one case still holds.
fn with_parent(words: &[String]) -> Command {
    let guarded = Path::new("/usr/bin/setpriv").is_file();
    let mut command = Command::new(if guarded { "/usr/bin/setpriv" } else { &words[0] });
    if guarded {
        command.args(["--pdeathsig", "KILL", "--"]).arg(&words[0]);
    }
    command.args(&words[1..]);
    command
}

/// Copies the console to its log as it comes and sends every line.
fn follow_console(mut pipe: impl Read, mut log: File, lines: &Sender<Event>) {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    let send = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
        line.clear();
        // Nobody left to listen only means that the run is over; the log goes on.
        let _ = lines.send(Event::Line(text));
    };
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        // A full disk must not stop the machine: the lines still arrive.
        let _ = log.write_all(&buffer[..count]);
        for &byte in &buffer[..count] {
            match byte {
                b'\n' => send(&mut line),
                _ => line.push(byte),
            }
        }
    }
    if !line.is_empty() {
        send(&mut line);
    }
}
