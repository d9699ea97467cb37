//! QEMU's control channel: one JSON object per line, in both directions.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Error, Result};

/// How long QEMU may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection. QEMU serves one at a time on a socket: a second socket
/// (`-qmp unix:PATH,server=on,wait=off`) leaves the first to whoever manages the machine.
pub(crate) struct Qmp {
    path: PathBuf,
    stream: UnixStream,
    lines: Receiver<Value>,
    /// Events that came while an answer was waited for.
    early: Vec<Value>,
}

/// What there is to know when waiting for an event.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// An event, with its name.
    Event(String),
    /// None in that time.
    Nothing,
    /// The machine is gone.
    Closed,
}

impl Qmp {
    /// Connects, and asks for nothing special.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(Error::io(path, "connect to it"))?;
        let reader = stream.try_clone().map_err(Error::io(path, "listen to it"))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(std::io::Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else { continue };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut qmp = Self { path: path.to_owned(), stream, lines, early: Vec::new() };
        if qmp.answer()?.get("QMP").is_none() {
            return Err(Error::foreign(path, "no QMP socket: no greeting"));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it answered.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.stream, "{line}").map_err(Error::io(&self.path, "write to it"))?;
        let mut answer = self.answer()?;
        match answer.get("error") {
            Some(error) => Err(Error::foreign(&self.path, format!("{command}: {}", error["desc"]))),
            None => Ok(answer["return"].take()),
        }
    }

    fn answer(&mut self) -> Result<Value> {
        let deadline = Instant::now() + ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(value) if value.get("event").is_some() => self.early.push(value),
                Ok(value) => return Ok(value),
                Err(_) => return Err(Error::foreign(&self.path, "no answer from QEMU")),
            }
        }
    }

    /// The next event, for at most so long.
    pub(crate) fn event(&mut self, patience: Duration) -> Heard {
        let name = |value: &Value| value["event"].as_str().map(str::to_owned);
        if !self.early.is_empty() {
            return name(&self.early.remove(0)).map_or(Heard::Nothing, Heard::Event);
        }
        match self.lines.recv_timeout(patience) {
            Ok(value) => name(&value).map_or(Heard::Nothing, Heard::Event),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::Closed,
        }
    }

    /// The files behind the machine's disks, as QEMU names them.
    pub(crate) fn disks(&mut self) -> Result<Vec<PathBuf>> {
        let answer = self.execute("query-block", &json!({}))?;
        let devices = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        // What is no plain file stands there as "json:{…}" or with a protocol in front.
        let plain = |name: &&str| Path::new(name).exists();
        Ok(devices.iter().filter_map(writable).filter(plain).map(PathBuf::from).collect())
    }
}

/// The file behind a device of `query-block`, when the machine may write it.
fn writable(device: &Value) -> Option<&str> {
    let inserted = device.get("inserted")?;
    if inserted["ro"] != false {
        return None;
    }
    inserted["image"]["filename"].as_str()
}
