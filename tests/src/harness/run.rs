//! One run from its options to its verdict.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use vmcore_format::last_words;

use super::disk;
use super::outside;
use super::qemu::CONSOLE_INPUT;
use super::verdict::{Evidence, judge};
use super::{Console, Event, Images, Machine, Options, Picture, Report, Screen, qemu};

/// What a machine prints when it stays where it is on purpose: the capture image, the
/// crash path without one, and the appliance at the end of its work.
const STAYS: &[&str] = &["capture: policy: halt", "crash: halted", "finish: halted", IDLE];
/// The last of them. Somebody who talks to the machine may have more to say then.
const IDLE: &str = "finish: idle";

/// What the appliance says once its first round is done.
const AT_WORK: &str = ": round 0 right";

/// A machine under way.
pub struct Running {
    /// The machine itself, for tests that talk to it.
    pub machine: Machine,
    options: Options,
    images: Images,
    command: Vec<String>,
    disks: Vec<PathBuf>,
    started: Instant,
    /// The other end of the console's input, when it takes any.
    input: Option<File>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What stands in `run.json`.
    pub report: Report,
    /// Everything the machine said.
    pub console: Console,
    /// The extracted dump.
    pub vmcore: Option<PathBuf>,
    /// What the screen showed last, where there is one.
    pub screen: Option<Picture>,
    /// The folder of the run.
    pub out: PathBuf,
    _large_files: Option<LargeFiles>,
}

/// Takes the large files of a run away when its outcome is no longer needed. A test that
/// fails drops it while it panics: then everything stays for whoever looks into it.
#[derive(Debug)]
struct LargeFiles(PathBuf);

impl Drop for LargeFiles {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for entry in self.0.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            let large = entry.metadata().is_ok_and(|file| file.is_file() && file.len() > 1 << 20);
            // One that cannot be removed only takes space.
            let _ = if large { std::fs::remove_file(path) } else { Ok(()) };
        }
    }
}

impl Outcome {
    /// Whether it ended as expected.
    #[must_use]
    pub fn as_expected(&self) -> bool {
        self.report.verdict == self.report.expected
    }
}

/// Boots, watches and judges. `watch` sees every console line as it comes.
///
/// # Errors
/// The run could not be made: a missing image or program, a file that cannot be written.
/// A run that went wrong is no error but a verdict.
pub fn run(options: &Options, watch: &mut dyn FnMut(&str)) -> Result<Outcome> {
    start(options)?.finish(watch)
}

/// Boots and hands the machine over.
///
/// # Errors
/// As [`run`].
pub fn start(options: &Options) -> Result<Running> {
    options.check()?;
    let images = Images::of(options)?;
    let mut options = options.clone();
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("create {}", options.out.display()))?;
    // QEMU, gdb and run.json outlive the current folder of this process.
    options.out = options.out.canonicalize().context("the folder of the run")?;
    // What an earlier run left must not be taken for this one's.
    for name in ["vmcore", "run.json", "console.log", "machine.txt"] {
        let path = options.out.join(name);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let images = images.kept_in(&options.out)?;
    let disks = disk::create_all(&options)?;
    let command = qemu::command(&options, &images, &disks)?;
    // Open at this end before QEMU opens the other, so that neither waits.
    let input = if options.talk { Some(console_pipe(&options.out)?.1) } else { None };
    let started = Instant::now();
    let machine = Machine::start(&command, &options.out, options.timeout)?;
    Ok(Running { machine, options, images, command, disks, started, input })
}

/// Makes a named pipe in `folder` for a console that takes input; returns its path and its
/// end to write to. That is opened for reading as well: a pipe that nobody reads yet lets
/// nobody write.
///
/// # Errors
/// It cannot be made.
pub fn console_pipe(folder: &Path) -> Result<(PathBuf, File)> {
    let path = folder.join(CONSOLE_INPUT);
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    let status = Command::new("mkfifo").arg(&path).status().context("start mkfifo")?;
    if !status.success() {
        bail!("mkfifo {} failed", path.display());
    }
    let opened = File::options().read(true).write(true).open(&path);
    let opened = opened.with_context(|| format!("open {}", path.display()))?;
    Ok((path, opened))
}

impl Running {
    /// Returns the images that are running.
    #[must_use]
    pub const fn images(&self) -> &Images {
        &self.images
    }

    /// Types `line` on the console of a machine that was started to talk.
    ///
    /// # Errors
    /// It was not, or the console is gone.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("this console takes no input")?;
        writeln!(input, "{line}").context("type on the console")
    }

    /// A handle to type on the console with from another thread; none when it takes no input.
    #[must_use]
    pub fn typist(&self) -> Option<File> {
        self.input.as_ref()?.try_clone().ok()
    }

    /// Watches until the machine ends or the time is up, then judges.
    ///
    /// # Errors
    /// As [`run`].
    pub fn finish(mut self, watch: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let end = self.watch(watch);
        self.machine.kill();
        let duration_ms = self.started.elapsed().as_millis() as u64;
        let vmcore = self.options.out.join("vmcore");
        let dump = match self.options.disks.iter().position(|disk| disk.prepared) {
            Some(index) => disk::harvest(&self.disks[index..], &vmcore),
            None => super::verdict::DumpFound::Nothing,
        };
        let console = self.machine.console().clone();
        let evidence = Evidence {
            dump,
            last_words: matches!(
                last_words::find(console.text()),
                Some(record) if record.state == last_words::State::Complete
            ),
            no_dump: console
                .after("no-dump: ")
                .or_else(|| console.after("capture: FAILED: "))
                .map(str::to_owned),
            workloads: console.after("verdict: ").map(str::to_owned),
            crash: self.options.crash.is_some(),
            timed_out: end.timed_out,
            halted: end.halted,
            shutdown: end.shutdown,
            exit_code: end.exit_code,
            policy: self.options.policy,
            finish_ends: self.options.finish_ends(),
        };
        let (verdict, why) = judge(&evidence);
        let report = Report {
            schema: vmcore::json::SCHEMA,
            verdict,
            expected: self.options.expected(),
            why,
            image: self.images.appliance.clone(),
            boot: self.options.boot.name().to_owned(),
            cpus: self.options.cpus,
            memory: self.options.memory,
            crash: self.options.crash.clone(),
            wedges: self.options.wedges.clone(),
            command: self.command.clone(),
            duration_ms,
            qemu_exit: evidence.exit_code,
        };
        let text = serde_json::to_string_pretty(&report).context("run.json")?;
        std::fs::write(self.options.out.join("run.json"), text + "\n").context("write run.json")?;
        let vmcore = vmcore.is_file().then_some(vmcore);
        let out = self.options.out.clone();
        let _large_files = self.options.tidy.then(|| LargeFiles(out.clone()));
        Ok(Outcome { report, console, vmcore, screen: end.screen, out, _large_files })
    }

    fn watch(&mut self, watch: &mut dyn FnMut(&str)) -> End {
        let mut end = End::default();
        loop {
            match self.machine.next_event() {
                Some(Event::Line(line)) => {
                    watch(&line);
                    if line.contains(AT_WORK) {
                        self.look("screen-running");
                    }
                    if let Err(error) = outside::answer(&line, self.machine.qmp()) {
                        // The fault never comes, and the machine says so itself in the end.
                        watch(&format!("run: {error:#}"));
                    }
                    let ends = |marker: &&str| !(self.options.talk && **marker == *IDLE);
                    if STAYS.iter().filter(|marker| ends(marker)).any(|stays| line.contains(stays))
                    {
                        end.halted = true;
                        end.screen = self.look("screen-end");
                        // It answers by ending; if it cannot, the time-out stands.
                        let _ = self.machine.qmp().execute("quit", serde_json::json!({}));
                    }
                }
                Some(Event::Qmp(event)) => match event["event"].as_str() {
                    // A paused machine ends when it was looked at, which is reported again.
                    Some("SHUTDOWN") if end.shutdown.is_none() => {
                        end.shutdown = event["data"]["reason"].as_str().map(str::to_owned);
                        if self.options.screen != Screen::None && !end.halted {
                            end.screen = self.look("screen-end");
                            let _ = self.machine.qmp().execute("quit", serde_json::json!({}));
                        }
                    }
                    // The machine goes on after an NMI.
                    Some("WATCHDOG") if event["data"]["action"] == "inject-nmi" => {}
                    Some("WATCHDOG") => end.timed_out = Some("a hardware watchdog fired".into()),
                    _ => {}
                },
                Some(Event::Exited(status)) => {
                    end.exit_code = status.code();
                    return end;
                }
                None => {
                    let seconds = self.options.timeout.as_secs();
                    end.timed_out = Some(format!("no end within {seconds} s"));
                    self.record_hang();
                    end.screen = self.look("screen-end");
                    return end;
                }
            }
        }
    }

    /// Keeps a picture of the screen, where there is one, as `NAME.png`.
    fn look(&mut self, name: &str) -> Option<Picture> {
        if self.options.screen == Screen::None {
            return None;
        }
        // A machine that ends meanwhile has no screen any more; whoever needs one notices.
        Picture::take(self.machine.qmp(), &self.options.out, name).ok()
    }

    /// Writes where every CPU stands to `machine.txt`, as far as QEMU still answers.
    fn record_hang(&mut self) {
        let registers = self.machine.qmp().human("info registers -a");
        let text = registers.unwrap_or_else(|error| format!("{error:#}"));
        // The verdict is "hung" with or without it.
        let _ = std::fs::write(self.options.out.join("machine.txt"), text);
    }
}

/// How the process ended.
#[derive(Default)]
struct End {
    timed_out: Option<String>,
    halted: bool,
    shutdown: Option<String>,
    exit_code: Option<i32>,
    screen: Option<Picture>,
}

/// A run of its own for every caller: a folder under `target/runs` named after what runs.
///
/// # Errors
/// The folder cannot be made.
pub fn fresh_folder(name: &str) -> Result<PathBuf> {
    let folder = super::target_dir().join("runs").join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let report = &self.report;
        write!(f, "{}: {}", report.verdict, report.why)?;
        if report.verdict != report.expected {
            write!(f, " (expected: {})", report.expected)?;
        }
        Ok(())
    }
}
