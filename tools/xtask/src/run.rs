//! `cargo xtask run`: one machine, one verdict.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use e2e::harness::{
    self, Accelerator, Appliance, Boot, DataDisk, Disk, Options, Policy, Refusal, Screen, Verdict,
    parse_size,
};

use crate::step::short;
use crate::{build, setup};

/// The machine to run. Names that are not built yet are refused with exit code 2.
#[derive(clap::Args)]
pub struct Arguments {
    /// Boot this appliance, an ELF file with symbols, in place of the one that `build` makes;
    /// for --crash and --wedge it has to be built with the feature `faults`
    #[arg(long)]
    image: Option<PathBuf>,
    /// How it is loaded: pvh, microvm, bios, uefi, disk-bios, disk-uefi, usb, usb-uefi
    #[arg(long, default_value = "pvh")]
    boot: Boot,
    /// tcg, the same on every host; icount, the same with a clock that counts instructions, one a
    /// nanosecond; kvm, with which time-outs may want to be longer
    #[arg(long, default_value = "tcg")]
    accel: Accelerator,
    /// Virtual CPUs
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// Memory, as 512M or 2G
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    mem: u64,
    /// virtio, nvme, ahci or none; repeatable
    #[arg(long, default_value = "virtio")]
    disk: Vec<String>,
    /// One more disk, blank, for workload=blkverify; its size, as 64M
    #[arg(long, value_parser = parse_size)]
    data_disk: Option<u64>,
    /// The fault to bring about, NAME[,cpu=K][,at=STAGE]: boots the image with faults
    #[arg(long)]
    crash: Option<String>,
    /// The bad state to put a CPU into, KIND[,cpu=K]; repeatable: boots the image with faults
    #[arg(long)]
    wedge: Vec<String>,
    /// More of the kernel command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// After a crash: poweroff, reboot, halt
    #[arg(long, default_value = "poweroff")]
    policy: Policy,
    /// The verdict that means success
    #[arg(long)]
    expect: Option<Verdict>,
    /// Give the machine a screen, and keep pictures of it: screen-running.png, screen-end.png;
    /// not with pvh and microvm
    #[arg(long)]
    screen: bool,
    /// Seconds until the run counts as hung
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Pass what is typed here on to the machine's console, which stays up when its work is
    /// done; its answer to `help` says what it understands
    #[arg(long)]
    interactive: bool,
    /// One more QEMU argument; repeatable
    #[arg(long, allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// Where everything of the run goes
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs and prints the console as it comes, the verdict at the end.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let options = arguments.options()?;
    setup::ensure()?;
    build::quiet()?;
    let running = harness::start(&options)?;
    if let Some(mut typist) = running.typist() {
        // Ends with this process, or when nobody types any more.
        std::thread::spawn(move || std::io::copy(&mut std::io::stdin(), &mut typist));
    }
    let outcome = running.finish(&mut |line| println!("{line}"))?;
    println!("{outcome}");
    println!("in {}", short(&outcome.out));
    Ok(if outcome.as_expected() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    fn options(&self) -> Result<Options, Refusal> {
        let out = self.out.clone().unwrap_or_else(|| {
            // The process id keeps runs side by side apart.
            harness::target_dir().join("runs").join(format!("run-{}", std::process::id()))
        });
        let options = Options {
            appliance: self.image.clone().map_or(Appliance::ByNeed, Appliance::File),
            accelerator: self.accel,
            cpus: self.cpus,
            memory: self.mem,
            disks: Disk::parse_list(&self.disk)?,
            data_disk: self.data_disk.map(DataDisk::blank),
            crash: self.crash.clone(),
            wedges: self.wedge.clone(),
            command_line: match self.interactive {
                true => format!("on_finish=idle {}", self.cmdline),
                false => self.cmdline.clone(),
            },
            policy: self.policy,
            expect: self.expect,
            screen: if self.screen { Screen::Pixels } else { Screen::None },
            timeout: Duration::from_secs(self.timeout),
            talk: self.interactive,
            qemu_args: self.qemu_arg.clone(),
            ..Options::new(self.boot, out)
        };
        options.check()?;
        Ok(options)
    }
}
