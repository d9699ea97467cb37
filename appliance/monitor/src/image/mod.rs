//! QEMU's `virt` machine under the state machines.

mod entry;
mod fw_cfg;
mod gic;
mod mmio;
mod power;
mod processor;
mod state;
mod uart;

use core::fmt;
use core::panic::PanicInfo;

use epitaph_monitor::boot::{self, ImageHeader, Placement};
use epitaph_monitor::devicetree::{self, DeviceTree};
use epitaph_monitor::{After, Frame, Mode, Monitor, Settings};

/// Start of the client's memory, with QEMU's device tree. All addresses of this machine are
/// from QEMU's `hw/arm/virt.c`, `base_memmap`.
const MEMORY: u64 = 0x4000_0000;
/// Room for the device tree; behind it is the scratch memory of `fw_cfg`.
const TREE_ROOM: usize = 0x1f_0000;
/// Where kernels may go.
const CLIENT: u64 = MEMORY + boot::KERNEL_ALIGN;

/// Starts the client on the boot CPU. `cpu` is its number.
extern "C" fn boot(cpu: usize) -> ! {
    let client = processor::set_up();
    gic::set_up_distributor();
    let mode = mode();
    let mut tree = match DeviceTree::open(mmio::tree(MEMORY as usize, TREE_ROOM)) {
        Ok(tree) => tree,
        Err(error) => fatal(format_args!("{error}")),
    };
    let memory = match devicetree::memory(&tree, MEMORY) {
        Ok(Some(memory)) => CLIENT..memory.end,
        Ok(None) => fatal(format_args!("the device tree has no memory at {MEMORY:#x}")),
        Err(error) => fatal(format_args!("{error}")),
    };
    let placed = load(&memory);
    let initrd = Some(&placed.initrd).filter(|initrd| !initrd.is_empty());
    if let Err(error) = devicetree::describe(&mut tree, mode != Mode::NoSdei, initrd) {
        fatal(format_args!("{error}"));
    }
    let settings = Settings { mode, client, entries: memory, nmi: processor::has_nmi() };
    match Monitor::new(settings, gic::cpus(), cpu) {
        Ok(monitor) => state::put(cpu, monitor),
        Err(error) => fatal(format_args!("{error}")),
    }
    gic::set_up_cpu(cpu);
    gic::open();
    entry::enter(cpu, &Frame::starting(client, placed.kernel, MEMORY))
}

/// Waits, on every CPU but the boot CPU, until a `CPU_ON` names it. `cpu` is its number.
extern "C" fn wait(cpu: usize) -> ! {
    processor::set_up();
    gic::set_up_cpu(cpu);
    let mut frame = Frame::default();
    power::wait(cpu, &mut frame);
    entry::enter(cpu, &frame)
}

/// Returns the mode that `-fw_cfg name=opt/epitaph/monitor,string=MODE` selects.
fn mode() -> Mode {
    let mut name = [0; 32];
    match fw_cfg::read_file(boot::fw_cfg::MODE_FILE, &mut name) {
        None => Mode::default(),
        Some(name) => match Mode::from_name(name) {
            Some(mode) => mode,
            None => fatal(format_args!("opt/epitaph/monitor names no mode")),
        },
    }
}

/// Reads kernel and initrd into memory.
fn load(memory: &core::ops::Range<u64>) -> Placement {
    let [kernel, initrd] = fw_cfg::sizes();
    if kernel == 0 {
        fatal(format_args!("no client: start QEMU with -kernel"));
    }
    let mut header = [0; boot::IMAGE_HEADER];
    let placed = ImageHeader::read(fw_cfg::kernel_header(&mut header))
        .and_then(|header| Placement::choose(memory, header, u64::from(kernel), u64::from(initrd)));
    match placed {
        Ok(placed) => {
            fw_cfg::load(&placed, kernel, initrd);
            placed
        }
        Err(error) => fatal(format_args!("{error}")),
    }
}

/// Handles an `smc` of the lower exception level.
extern "C" fn call(frame: &mut Frame) {
    let syndrome = processor::syndrome();
    if !processor::is_smc(syndrome) {
        let pc = frame.pc;
        fatal(format_args!("trap to EL3 at {pc:#x}, ESR_EL3 {syndrome:#x}"));
    }
    let cpu = entry::current_cpu();
    let after = state::with(cpu, |monitor, hardware| monitor.call(cpu, frame, hardware));
    match after {
        After::Return => {}
        After::PowerOff => power::wait(cpu, frame),
        After::SystemOff => power::system_off(),
        After::SystemReset => power::system_reset(),
    }
}

/// Handles a Group 0 interrupt that was taken from the lower exception level.
extern "C" fn interrupt(frame: &mut Frame) {
    let cpu = entry::current_cpu();
    match gic::acknowledge() {
        Some(gic::EVENT) => {
            state::with(cpu, |monitor, hardware| monitor.event_interrupt(cpu, frame, hardware));
        }
        // A wake-up for a CPU that is on by now.
        Some(other) => gic::end(other),
        None => {}
    }
}

/// Ends the machine on an exception that nothing is meant to cause.
extern "C" fn unexpected(vector: u64) -> ! {
    let syndrome = processor::syndrome();
    let pc = processor::return_address();
    fatal(format_args!("exception by vector {vector:#x} at {pc:#x}, ESR_EL3 {syndrome:#x}"))
}

/// Says on the secure serial line why the monitor cannot go on, and switches the machine off.
fn fatal(why: fmt::Arguments<'_>) -> ! {
    uart::say(format_args!("monitor: {why}\n"));
    power::system_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fatal(format_args!("{info}"))
}
