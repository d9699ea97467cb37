//! One machine, booted once and saved: every run goes on from there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::harness::{self, Boot, Bus, Disk, Images, Options, Running, Verdict};
use object::{Object, ObjectSymbol};
use serde_json::json;
use vmcore::Dump;

use super::damage::PAGE;

/// How long one run may take. A dump takes half a second.
const TIMEOUT: Duration = Duration::from_secs(25);
/// What the appliance says when its work is done, and it waits for a line on its console.
const IDLE: &str = "finish: idle";

/// The saved machine.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    /// All of its memory.
    memory: Vec<u8>,
    /// Physical address of the kernel's root page table.
    root: u64,
    /// Parts of the reserved region: name, address, bytes.
    region: Vec<(&'static str, u64, u64)>,
}

/// The machine of every run: small, with a CPU to stop and a disk for a dump of stage `mini`.
fn options(out: &Path) -> Options {
    Options {
        cpus: 2,
        memory: 80 << 20,
        disks: vec![Disk { bytes: Some(40 << 20), ..Disk::new(Bus::Virtio) }],
        command_line: "workload=sieve,n=100000 on_finish=idle pages=mini stop_irq_ms=300 \
                       stop_nmi_ms=200 stop_init_ms=20"
            .into(),
        timeout: TIMEOUT,
        talk: true,
        tidy: true,
        ..Options::new(Boot::Pvh, out.to_owned())
    }
}

impl State {
    /// Boots the machine in `folder`, crashes it once to learn where everything is, and saves
    /// another one that has not crashed.
    ///
    /// # Errors
    /// The machine does not do what it does without damage.
    pub fn make(folder: &Path) -> Result<Self> {
        let plain = Options { talk: false, ..options(&folder.join("plain")) };
        let plain = Options { crash: Some("panic,cpu=1,at=round-done".into()), ..plain };
        let outcome = harness::run(&plain, &mut |_| ())?;
        ensure!(
            outcome.report.verdict == Verdict::Captured,
            "a machine without damage: {outcome}\n{}",
            outcome.console.tail(20)
        );
        let dump = Dump::open(outcome.vmcore.as_deref().context("a dump")?)?;
        let facts = dump.facts.as_ref().context("no boot facts in the dump")?;
        let seal = u64::from(facts.size);
        let region = vec![
            ("capture", facts.image.start, facts.image.bytes),
            ("facts", facts.region.start + (2 << 20), seal),
            ("park", facts.park.start, facts.park.bytes),
            ("scratch", facts.scratch.start, facts.scratch.bytes),
        ];
        let saved = Options { tidy: false, ..options(&folder.join("saved")) };
        let mut running = harness::start(&saved)?;
        running.machine.wait_for_line(IDLE)?;
        running.say("ready")?;
        let ready = running.machine.wait_for_line("ready: yes")?;
        ensure!(ready.contains("mini"), "'{ready}' without damage");
        // The answer is the last of it: what the console still sends is not saved.
        std::thread::sleep(Duration::from_millis(300));
        let qmp = running.machine.qmp();
        qmp.save_state(&folder.join("state"))?;
        let memory = folder.join("memory");
        let size = saved.memory;
        let file = memory.display().to_string();
        qmp.execute("pmemsave", json!({ "val": 0, "size": size, "filename": file }))?;
        qmp.execute("quit", json!({}))?;
        running.finish(&mut |_| ())?;
        std::fs::rename(folder.join("saved/disk.img"), folder.join("disk.img"))
            .context("keep the disk")?;
        let memory = std::fs::read(&memory).context("the machine's memory")?;
        let root = root(&memory)?;
        Ok(Self { folder: folder.to_owned(), memory, root, region })
    }

    /// Starts the machine where it was saved, standing still, with the debugger's stub that
    /// `prepare` asks for.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restore(&self, out: &Path, prepare: impl FnOnce(&mut Options)) -> Result<Running> {
        let mut options = options(out);
        options.disk_image = Some(self.folder.join("disk.img"));
        let state = format!("file:{}", self.folder.join("state").display());
        options.qemu_args.extend(["-incoming".to_owned(), state]);
        prepare(&mut options);
        let mut running = harness::start(&options)?;
        running.machine.qmp().wait_for_state()?;
        Ok(running)
    }

    /// Returns the parts of the reserved region: name, address, bytes.
    pub fn region(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        self.region.iter().copied()
    }

    /// Returns the word at a physical address; 0 where there is no memory.
    pub fn word(&self, address: u64) -> u64 {
        word(&self.memory, address)
    }

    /// Returns true if the kernel's page tables let it write at `address`, which they map one to
    /// one.
    pub fn writable(&self, address: u64) -> bool {
        const PRESENT: u64 = 1;
        const WRITABLE: u64 = 2;
        const LARGE: u64 = 1 << 7;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let mut table = self.root;
        for level in (0..4).rev() {
            let index = address >> (12 + 9 * level) & 511;
            let entry = self.word(table + index * 8);
            if entry & (PRESENT | WRITABLE) != PRESENT | WRITABLE {
                return false;
            }
            if level > 0 && entry & LARGE != 0 {
                return true;
            }
            table = entry & ADDRESS;
        }
        table == address & !(PAGE - 1)
    }
}

fn word(memory: &[u8], address: u64) -> u64 {
    let at = address as usize;
    let bytes = at.checked_add(8).and_then(|end| memory.get(at..end));
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The root of the kernel's page tables, from where it keeps it for CPUs that it starts.
fn root(memory: &[u8]) -> Result<u64> {
    let bytes = std::fs::read(Images::find()?.appliance).context("read the appliance")?;
    let file = object::File::parse(&*bytes).context("the appliance")?;
    let symbol = file.symbols().find(|symbol| {
        symbol.name().is_ok_and(|name| {
            format!("{:#}", rustc_demangle::demangle(name)) == "machine::arch::x86_64::smp::ROOT"
        })
    });
    let root = word(memory, symbol.context("the appliance has no smp::ROOT")?.address());
    ensure!(root != 0 && root.is_multiple_of(PAGE), "{root:#x} is no page table");
    Ok(root)
}
