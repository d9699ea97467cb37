//! The QEMU command line of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::disk::create_data;
use super::iso::make_iso;
use super::outside::processor;
use super::qmp::QEMU;
use super::{Boot, Bus, Disk, Images, Module, Options, Screen};

/// OVMF as distributions name it: code, and the variables to copy.
const OVMF: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

/// The pipe in a run's folder that the console takes input from.
pub(super) const CONSOLE_INPUT: &str = "console.in";

/// The words that start QEMU for `options`. Makes the boot medium where one is needed.
///
/// By emulation unless asked otherwise, whether the host offers `/dev/kvm` or not: a run is to
/// mean the same on every host, and nested or software KVM differs in speed by orders of
/// magnitude.
///
/// # Errors
/// A file the boot needs is missing.
pub(super) fn command(
    options: &Options,
    images: &Images,
    disks: &[PathBuf],
) -> Result<Vec<String>> {
    let mut words = vec![QEMU.to_owned()];
    let mut add = |list: &[&str]| words.extend(list.iter().map(|word| (*word).to_owned()));
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    if !options.comes_back {
        add(&["-no-reboot"]);
    }
    if options.boot == Boot::Microvm {
        // SeaBIOS keeps the ACPI tables at the end of memory, which is where QEMU puts the
        // module on this machine, over them; qboot keeps them below 1 MiB.
        add(&["-machine", "microvm,acpi=on,pcie=on,rtc=on", "-bios", "qboot.rom"]);
    } else {
        add(&["-machine", "q35"]);
    }
    for word in options.accelerator.words(processor(options.crash.as_deref())) {
        add(&[&word]);
    }
    add(&["-smp", &options.cpus.to_string()]);
    add(&["-m", &format!("{}K", options.memory >> 10)]);
    if options.serial {
        let mut console = "file,id=console,path=/dev/stdout".to_owned();
        if options.talk {
            let input = word(&options.out.join(CONSOLE_INPUT))?;
            console.push_str(&format!(",input-path={input}"));
        }
        add(&["-chardev", &console, "-serial", "chardev:console"]);
    }
    add(&["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"]);
    if options.screen != Screen::None {
        // What is shown last is looked at before the machine goes.
        add(&["-device", "VGA", "-action", "shutdown=pause"]);
    }
    let mut sata = SATA_PORTS.iter();
    for (index, (disk, file)) in options.disks.iter().zip(disks).enumerate() {
        add(&["-drive", &drive(index, disk, file)?]);
        for device in devices(index, disk, &mut sata)? {
            add(&["-device", &device]);
        }
        // Namespaces in front of the disk's own: present and blank.
        for before in 1..disk.namespace {
            let drive = format!("if=none,id=blank{index}-{before},driver=null-co,size=16M");
            let blank =
                format!("nvme-ns,bus=nvme{index},nsid={before},drive=blank{index}-{before}");
            add(&["-drive", &drive, "-device", &blank]);
        }
    }
    if let (Some(disk), Some(file)) = (options.data_disk(), create_data(options)?) {
        // The burst is for whoever has to look at the disk first.
        let throttle = disk.reads_per_second.map_or_else(String::new, |reads| {
            format!(",throttling.iops-read={reads},throttling.iops-read-max=160")
        });
        let file = word(&file)?;
        let drive = format!("if=none,id=data,format=raw,cache=unsafe{throttle},file={file}");
        add(&["-drive", &drive, "-device", "virtio-blk-pci,drive=data,serial=data"]);
    }
    let capture = match &options.module {
        Module::Built => Some(images.capture.as_path()),
        Module::File(path) => Some(path.as_path()),
        Module::Absent => None,
    };
    let command_line = options.kernel_command_line();
    if matches!(options.boot, Boot::Pvh | Boot::Microvm) {
        add(&["-kernel", &text(&images.bootable)?, "-append", &command_line]);
        if let Some(capture) = capture {
            add(&["-initrd", &text(capture)?]);
        }
    } else {
        let iso = options.out.join("boot.iso");
        let text_mode = options.screen == Screen::Text;
        let cut = options.cut_memory;
        make_iso(&images.bootable, capture, &command_line, text_mode, cut, &iso)?;
        for word in medium(options.boot, &iso)? {
            add(&[&word]);
        }
    }
    if options.boot.by_uefi() {
        let (code, variables) = firmware(&options.out)?;
        let code = format!("if=pflash,format=raw,readonly=on,file={}", word(&code)?);
        let variables = format!("if=pflash,format=raw,file={}", word(&variables)?);
        add(&["-drive", &code, "-drive", &variables]);
    }
    words.extend(options.qemu_args.iter().cloned());
    Ok(words)
}

/// The boot medium in the drive it is booted from. It comes first, or the firmware would
/// try the disks for dumps before it.
fn medium(boot: Boot, iso: &Path) -> Result<Vec<String>> {
    let drive = |more: &str| -> Result<[String; 2]> {
        Ok(["-drive".into(), format!("if=none,id=medium,format=raw{more},file={}", word(iso)?)])
    };
    let device = |words: &str| ["-device".to_owned(), words.to_owned()];
    Ok(match boot {
        Boot::DiskBios | Boot::DiskUefi => {
            let disk = format!("ide-hd,bus=ide.{CD_PORT},drive=medium,bootindex=0");
            [drive("")?, device(&disk)].concat()
        }
        Boot::Usb | Boot::UsbUefi => {
            let stick = "usb-storage,bus=usb.0,drive=medium,bootindex=0";
            let controller = device("qemu-xhci,id=usb");
            [drive(",readonly=on")?, controller, device(stick)].concat()
        }
        Boot::Pvh | Boot::Microvm | Boot::Bios | Boot::Uefi => vec!["-cdrom".into(), text(iso)?],
    })
}

/// The host's side of a disk.
fn drive(index: usize, disk: &Disk, file: &Path) -> Result<String> {
    // Where nobody wants to know, flushes go no further than to QEMU: the host stays up.
    let cache = if disk.recorded || disk.flushed { "writeback" } else { "unsafe" };
    let drive = format!("if=none,id=disk{index},cache={cache}");
    let drive = match disk.bytes_per_second {
        Some(rate) => format!("{drive},throttling.bps-total={rate}"),
        None => drive,
    };
    if disk.kept_bytes.is_some() {
        // /dev/null takes any write and fails any flush.
        return Ok(format!(
            "{drive},format=vmdk,extents.0.driver=file,extents.1.driver=host_device,\
             extents.1.cache.no-flush=on,file={}",
            word(&file.with_extension("vmdk"))?
        ));
    }
    let access = if disk.read_only { ",readonly=on" } else { "" };
    let drive = format!("{drive},format=raw{access}");
    if let Some(port) = disk.served_at {
        let server = "file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1";
        return Ok(format!("{drive},{server},file.server.port={port}"));
    }
    let file = word(file)?;
    // blkdebug counts in sectors of 512 bytes. With `report` the guest hears of the error;
    // the default for some errors is to stop it.
    Ok(match disk.fails_at {
        None if disk.recorded => format!(
            "{drive},file.driver=blklogwrites,file.log-sector-size={},file.log.driver=file,\
             file.log.filename={file}.writes,file.file.driver=file,file.file.filename={file}",
            disk.block_bytes
        ),
        None => format!("{drive},file={file}"),
        Some(byte) => format!(
            "{drive},werror=report,file.driver=blkdebug,file.image.driver=file,\
             file.image.filename={file},file.inject-error.0.event=none,\
             file.inject-error.0.iotype=write,file.inject-error.0.errno={},\
             file.inject-error.0.sector={}",
            disk.fails_with,
            byte / 512
        ),
    })
}

/// The port of the machine's SATA controller that the boot medium is at.
const CD_PORT: u8 = 2;
/// Those that disks go to.
const SATA_PORTS: [u8; 5] = [0, 1, 3, 4, 5];

/// The guest's side of it; SATA disks take their ports off `sata`.
fn devices(index: usize, disk: &Disk, sata: &mut std::slice::Iter<'_, u8>) -> Result<Vec<String>> {
    let block = disk.block_bytes;
    let drive = format!("drive=disk{index},logical_block_size={block},physical_block_size={block}");
    let serial = format!("serial=epitaph{index}");
    let mut devices = Vec::new();
    let drive = if let Some(bus) = disk.own_root_bus {
        devices.push(format!("pxb-pcie,id=pxb{index},bus_nr={bus},bus=pcie.0"));
        let chassis = index + 1;
        devices
            .push(format!("pcie-root-port,id=rp{index},bus=pxb{index},chassis={chassis},slot=1"));
        format!("{drive},bus=rp{index}")
    } else {
        drive
    };
    devices.extend(match disk.bus {
        Bus::Nvme if disk.namespace > 0 => vec![
            format!("nvme,id=nvme{index},{serial}"),
            format!("nvme-ns,bus=nvme{index},nsid={},{drive}", disk.namespace),
        ],
        Bus::Virtio => vec![format!("virtio-blk-pci,{drive},{serial}")],
        Bus::Nvme => vec![format!("nvme,{drive},{serial}")],
        Bus::Ahci => {
            let port = sata.next().context("more SATA disks than ports")?;
            vec![format!("ide-hd,bus=ide.{port},{drive},{serial}")]
        }
    });
    Ok(devices)
}

/// OVMF's code, and a copy of its variables in `folder`: firmware writes them, and two
/// runs must not share that.
fn firmware(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let Some((code, variables)) = OVMF.iter().find(|(code, _)| Path::new(code).is_file()) else {
        bail!("no OVMF firmware on this host: `cargo xtask setup` installs it");
    };
    let copy = folder.join("ovmf-variables.fd");
    std::fs::copy(variables, &copy).with_context(|| format!("copy {variables}"))?;
    Ok((code.into(), copy))
}

/// Whether this host has UEFI firmware for the machine.
#[must_use]
pub fn has_firmware() -> bool {
    OVMF.iter().any(|(code, _)| Path::new(code).is_file())
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8, QEMU's options are", path.display()))
}

/// A path inside a comma-separated option: QEMU reads a doubled comma as one.
fn word(path: &Path) -> Result<String> {
    Ok(text(path)?.replace(',', ",,"))
}
