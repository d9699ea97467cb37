//! QEMU's own channel: one JSON object per line in both directions.
//!
//! QEMU gets its end of a socket pair as standard input. That leaves no path that two
//! runs could share, no moment in which the socket is not there yet, and nothing to clean
//! up afterwards.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use super::Event;

/// How long QEMU may take to answer. Its main loop is busy for a while when a guest's
/// memory is written to a file.
const ANSWER: Duration = Duration::from_secs(60);

/// Our end of the connection.
pub struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
}

impl Qmp {
    /// A connection, the end to hand to QEMU, and the reader, which ends when everything
    /// QEMU said has been delivered. Events go to `events`.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn pair(events: Sender<Event>) -> Result<(Self, OwnedFd, JoinHandle<()>)> {
        let (ours, theirs) = UnixStream::pair().context("a socket pair for QMP")?;
        let reader = BufReader::new(ours.try_clone().context("a second handle for QMP")?);
        let (answer, answers) = channel();
        let reader = std::thread::spawn(move || {
            for line in reader.lines() {
                let Ok(line) = line else { return };
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                // Nobody left to listen only means that the run is over.
                let delivered = match value["event"].as_str() {
                    Some(_) => events.send(Event::Qmp(value)).is_ok(),
                    None => answer.send(value).is_ok(),
                };
                if !delivered {
                    return;
                }
            }
        });
        Ok((Self { stream: ours, answers }, theirs.into(), reader))
    }

    /// Waits for the greeting and leaves negotiation mode.
    ///
    /// # Errors
    /// QEMU did not start, or speaks no QMP.
    pub fn negotiate(&mut self) -> Result<()> {
        let greeting = self.answer().context("QEMU never greeted")?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        self.execute("qmp_capabilities", json!({})).map(|_| ())
    }

    /// Runs one command and returns what it answered.
    ///
    /// # Errors
    /// The command's own error, or no answer within a minute.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.stream, "{line}").with_context(|| format!("QMP {command}"))?;
        let mut answer = self.answer().with_context(|| format!("QMP {command}"))?;
        match answer.get("error") {
            Some(error) => bail!("QMP {command}: {}", error["desc"]),
            None => Ok(answer["return"].take()),
        }
    }

    /// Hands an open file to QEMU and returns the number of the set it is in there: QEMU then
    /// opens it as `/dev/fdset/NUMBER`, with what it holds left as it is.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn lend(&mut self, file: &File) -> Result<u64> {
        let line = json!({ "execute": "add-fd" }).to_string() + "\n";
        let descriptors = [file.as_raw_fd()];
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(line.as_bytes())],
            &[ControlMessage::ScmRights(&descriptors)],
            MsgFlags::empty(),
            None,
        )
        .context("hand a file to QEMU")?;
        if sent != line.len() {
            bail!("hand a file to QEMU: cut off");
        }
        let answer = self.answer().context("QMP add-fd")?;
        answer["return"]["fdset-id"].as_u64().with_context(|| format!("QMP add-fd: {answer}"))
    }

    /// Runs one command of the human monitor.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Stops the machine and writes its state to `path`, from which a machine of the same shape
    /// goes on with `-incoming file:PATH`.
    ///
    /// # Errors
    /// As [`Self::execute`], or QEMU cannot save the machine.
    pub fn save_state(&mut self, path: &Path) -> Result<()> {
        self.execute("stop", json!({}))?;
        self.execute("migrate", json!({ "uri": format!("file:{}", path.display()) }))?;
        self.wait_while("query-migrate", &["setup", "active", "device", "completing"]).and_then(
            |status| match status.as_str() {
                "completed" => Ok(()),
                other => bail!("saving the machine ended as '{other}'"),
            },
        )
    }

    /// Waits until a machine that was started with `-incoming` has its state.
    ///
    /// # Errors
    /// As [`Self::execute`], or the state does not fit the machine.
    pub fn wait_for_state(&mut self) -> Result<()> {
        let status = self.wait_while("query-status", &["inmigrate"])?;
        if status != "paused" && status != "prelaunch" {
            bail!("the machine is '{status}' where its state was due");
        }
        Ok(())
    }

    /// Asks until the status is none of `passing`, and returns it.
    fn wait_while(&mut self, command: &str, passing: &[&str]) -> Result<String> {
        let begun = Instant::now();
        loop {
            let answer = self.execute(command, json!({}))?;
            let status = answer["status"].as_str().unwrap_or_default().to_owned();
            if !passing.contains(&status.as_str()) {
                return Ok(status);
            }
            if begun.elapsed() > ANSWER {
                bail!("QMP {command}: still '{status}'");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answer(&self) -> Result<Value> {
        self.answers.recv_timeout(ANSWER).map_err(|error| anyhow!("no answer: {error}"))
    }
}

/// The QEMU program every part uses.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// Whether this QEMU offers x2APIC without hardware virtualisation.
///
/// Asked of QEMU itself: distributions carry patches, so a version number says less.
///
/// # Errors
/// QEMU is not installed or does not answer.
pub fn probe_x2apic() -> Result<bool> {
    let (events, _ignored) = channel();
    let (mut qmp, theirs, _reader) = Qmp::pair(events)?;
    let mut child = Command::new(QEMU)
        .args(["-nodefaults", "-display", "none", "-S", "-machine", "none", "-accel", "tcg"])
        .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {QEMU}"))?;
    let asked = qmp.negotiate().and_then(|()| {
        let model = json!({ "type": "full", "model": { "name": "max" } });
        qmp.execute("query-cpu-model-expansion", model)
    });
    // It holds nothing worth a clean end.
    child.kill().context("end QEMU")?;
    child.wait().context("reap QEMU")?;
    Ok(asked?["model"]["props"]["x2apic"].as_bool().unwrap_or(false))
}
