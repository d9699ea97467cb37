//! The kernel in `tests/foreign`, which is not ours: booted, crashed, captured, and what every
//! reader has to find in its dump.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use handoff::crash::{CauseKind, StoppedBy};
use vmcore::Dump;

use crate::harness::{self, Appliance, Boot, Images, Options, Outcome, Policy, Verdict};
use crate::witness::{compare, stretches, witness};

/// By CPU: how it was stopped, and the functions on its stack, innermost first.
const STACKS: [(StoppedBy, &[&str]); 4] = [
    (StoppedBy::IRQ, &["idle", "cpu_main", "cpu_entry"]),
    (StoppedBy::CRASH, &["supervise", "cpu_main", "cpu_entry"]),
    (StoppedBy::IRQ, &["compute", "cpu_main", "cpu_entry"]),
    (StoppedBy::NMI, &["spin_with_interrupts_off", "cpu_main", "cpu_entry"]),
];
/// Where the kernel puts the capture image.
const REGION: u64 = 16 << 20;
/// The kernel's linear map of physical memory.
const LINEAR: u64 = 0xffff_8880_0000_0000;
/// Most lines of code of the kernel.
const MOST_LINES: usize = 470;

/// A crash of the kernel, captured.
#[derive(Debug)]
pub struct Captured {
    /// The run.
    pub outcome: Outcome,
    /// The dump as a file.
    pub vmcore: PathBuf,
    /// Memory as QEMU saw it when the capture image was entered.
    pub memory: PathBuf,
}

/// Boots the kernel with its capture image and a prepared disk in `out`, and waits until it has
/// crashed and was captured. `watch` is given every line of the console.
///
/// # Errors
/// The run cannot be made, or there is no complete dump.
pub fn capture(out: &Path, tidy: bool, watch: &mut dyn FnMut(&str)) -> Result<Captured> {
    // Unix sockets have short names, folders may have long ones.
    let socket = std::env::temp_dir().join(format!("foreign-{}.gdb", std::process::id()));
    let gdb = format!("socket,id=gdb,path={},server=on,wait=off", socket.display());
    let options = Options {
        appliance: Appliance::File(harness::foreign_kernel()?),
        cpus: STACKS.len() as u32,
        memory: 192 << 20,
        policy: Policy::Reboot,
        expect: Some(Verdict::Captured),
        qemu_args: ["-S", "-chardev", &gdb, "-gdb", "chardev:gdb"].map(str::to_owned).into(),
        tidy,
        ..Options::new(Boot::Pvh, out.to_owned())
    };
    let images = Images::of(&options)?;
    let capture = std::fs::read(&images.capture).context("read the capture image")?;
    let entry = object::File::parse(&*capture).map(|file| object::Object::entry(&file));
    let running = harness::start(&options)?;
    let memory = out.canonicalize()?.join("memory.elf");
    let said = witness(&socket, &images.appliance, REGION + entry?, &memory);
    let outcome = running.finish(watch)?;
    // QEMU removes it when it ends in order.
    let _ = std::fs::remove_file(&socket);
    ensure!(outcome.as_expected(), "{outcome}\n{}", outcome.console.tail(20));
    ensure!(memory.is_file(), "QEMU wrote no memory: {said}");
    let vmcore = outcome.vmcore.clone().context("a vmcore")?;
    Ok(Captured { outcome, vmcore, memory })
}

impl Captured {
    /// Checks the dump with `vmcore` as a library: the cause, how each CPU was stopped, and every
    /// stack to its entry. Returns what `vmcore bt` says.
    ///
    /// # Errors
    /// Says what is not as it has to be.
    pub fn check_records(&self) -> Result<String> {
        let dump = Dump::open(&self.vmcore)?;
        ensure!(dump.is_complete() && dump.warnings.is_empty(), "incomplete: {:?}", dump.warnings);
        let cause = &dump.handoff.as_ref().context("a hand-off")?.cause;
        ensure!((cause.kind, cause.cpu) == (CauseKind::PANIC, 1), "cause: {cause:?}");
        ensure!(cause.message() == "0 units of work for 4 CPUs", "message: {}", cause.message());
        let stopped: Vec<StoppedBy> = dump.cpus.iter().map(|cpu| cpu.stopped_by).collect();
        ensure!(stopped == STACKS.map(|(how, _)| how), "stopped by {stopped:?}");
        let image = vmcore::find_image(&dump, Some(&self.outcome.report.image))?;
        let backtraces = vmcore::backtraces(&dump, &image);
        for (backtrace, (_, functions)) in backtraces.iter().zip(STACKS) {
            let names = backtrace.frames.iter().map(|frame| frame.function.as_deref());
            let names: Vec<&str> = names.map(Option::unwrap_or_default).collect();
            in_order(&names, functions)?;
            ensure!(names.last() == functions.last(), "it ends before the entry: {names:#?}");
        }
        Ok(vmcore::commands::bt::render(&dump, &backtraces)?)
    }

    /// Checks with gdb, which knows the program headers alone, that every stack can be read by its
    /// virtual addresses, from its lowest byte to its entry, and memory at the linear map. Returns
    /// the stacks as gdb shows them.
    ///
    /// # Errors
    /// Says what is not as it has to be.
    pub fn check_gdb(&self) -> Result<String> {
        let dump = Dump::open(&self.vmcore)?;
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", "gdb", "-nx", "-batch", "-ex", "set width 0"]);
        for cpu in &dump.cpus {
            let number = format!("printf \"CPU {}\\n\"", cpu.index);
            let thread = format!(
                "python [t.switch() for t in gdb.selected_inferior().threads() if t.ptid[1] == {}]",
                cpu.index + 1
            );
            command.args(["-ex", &number, "-ex", &thread, "-ex", "bt"]);
            for at in [cpu.stack.start, cpu.stack.end() - 8] {
                command.args(["-ex", &format!("x/gx {at:#x}")]);
            }
        }
        command.args(["-ex", &format!("x/4bx {LINEAR:#x} + 0x200000")]);
        let said = run(command.arg(&self.outcome.report.image).arg(&self.vmcore))?;
        for wrong in ["Cannot access memory", "Backtrace stopped", "corrupt stack"] {
            ensure!(!said.contains(wrong), "{said}");
        }
        ensure!(said.contains("0x7f\t0x45\t0x4c\t0x46"), "no ELF header at the linear map: {said}");
        by_cpu(&said, "CPU ")?;
        Ok(said)
    }

    /// Checks with drgn that it finds every stack, with the names of its functions. Returns what
    /// drgn says.
    ///
    /// # Errors
    /// Says what is not as it has to be.
    pub fn check_drgn(&self, drgn: &Path) -> Result<String> {
        let script = "for t in sorted(prog.threads(), key=lambda t: t.tid):\n    \
                      print('CPU', t.tid - 1)\n    print(t.stack_trace())\n";
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60"]).arg(drgn).arg("-c").arg(&self.vmcore);
        command.arg("-s").arg(&self.outcome.report.image).args(["-q", "-e", script]);
        let said = run(&mut command)?;
        by_cpu(&said, "CPU ")?;
        Ok(said)
    }

    /// Compares the dump with QEMU's own memory; returns how many pages were compared.
    ///
    /// # Errors
    /// A page differs.
    pub fn check_memory(&self) -> Result<u64> {
        let dump = Dump::open(&self.vmcore)?;
        let memory = File::open(&self.memory)?;
        let (different, compared) = compare(&dump, &memory, &stretches(&memory));
        ensure!(compared > 40_000, "only {compared} pages were compared");
        ensure!(different.is_empty(), "{} pages differ: {different:#x?}", different.len());
        Ok(compared)
    }
}

/// Looks for drgn: on the path, or where `cargo xtask foreign` installs it.
#[must_use]
pub fn find_drgn() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&paths).chain([drgn_folder().join("bin")]);
    folders.map(|folder| folder.join("drgn")).find(|path| path.is_file())
}

/// Returns the folder of the Python environment that drgn is installed into.
#[must_use]
pub fn drgn_folder() -> PathBuf {
    harness::target_dir().join("drgn")
}

/// Counts the kernel's lines of code, Rust and assembly, without comments and blank lines.
///
/// # Errors
/// There are more than a small kernel may have, or the sources cannot be read.
pub fn count_lines() -> Result<usize> {
    let mut lines = 0;
    for entry in harness::root().join("tests/foreign/src").read_dir()? {
        let text = std::fs::read_to_string(entry?.path())?;
        let code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        lines += text.lines().filter(code).count();
    }
    ensure!(lines <= MOST_LINES, "{lines} lines of code, more than {MOST_LINES}");
    Ok(lines)
}

/// Checks the stacks of all CPUs in the output of a debugger, each behind a line with its number.
fn by_cpu(said: &str, label: &str) -> Result<()> {
    for (cpu, (_, functions)) in STACKS.iter().enumerate() {
        let start = said.find(&format!("{label}{cpu}\n"));
        let rest = &said[start.with_context(|| format!("no CPU {cpu} in\n{said}"))?..];
        let end = rest.find(&format!("{label}{}\n", cpu + 1)).unwrap_or(rest.len());
        in_order(&rest[..end].lines().collect::<Vec<_>>(), functions)?;
    }
    Ok(())
}

/// Checks that `lines` hold `functions` in their order.
fn in_order(lines: &[&str], functions: &[&str]) -> Result<()> {
    let mut rest = lines.iter();
    for function in functions {
        ensure!(
            rest.any(|line| line.contains(function)),
            "no {function} in its place in {lines:#?}"
        );
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let [out, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    if !output.status.success() {
        bail!("{command:?} failed:\n{out}{errors}");
    }
    Ok(format!("{out}{errors}"))
}
