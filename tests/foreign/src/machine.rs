//! The processor: where memory is mapped, interrupts, the console, the clock, the other CPUs.
#![expect(unsafe_code, reason = "a kernel: memory by address, registers, devices")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use handoff::entry::KIND_HANDOFF;
use handoff::{LogRange, Range};

global_asm!(include_str!("boot.S"), options(att_syntax));

/// CPUs that are started and that there are stacks for.
pub const CPUS: usize = 4;
/// Virtual minus physical address of the image, and of all memory.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
pub const LINEAR: u64 = 0xffff_8880_0000_0000;
/// Each CPU has 64 KiB of addresses for its stack; the upper half is mapped, page by page.
const STACKS: u64 = 0xffff_c900_0000_0000;
const STACK_BYTES: u64 = 0x8000;
/// Vector of the stop, behind those of the exceptions.
pub const STOP_VECTOR: u32 = 32;

unsafe extern "C" {
    static ap_page: [u8; 0x100];
    static trap_stubs: u8;
    static mut page_root: [u64; 512];
}

/// Written by the boot processor before the others are started.
static mut IDT: [[u64; 2]; 33] = [[0; 2]; 33];
/// Console output, as a ring; written by any CPU, and lines may mix.
static mut LOG: [u8; 4096] = [0; 4096];
static WRITTEN: AtomicU64 = AtomicU64::new(0);
pub static HARDWARE_IDS: [AtomicU32; CPUS] = [const { AtomicU32::new(0) }; CPUS];
static AT_WORK: AtomicU32 = AtomicU32::new(0);
pub static TSC_HZ: AtomicU64 = AtomicU64::new(1);

/// Returns the physical address of a static.
pub fn physical<T>(item: *const T) -> u64 {
    item as u64 - IMAGE
}

/// Returns `count` records at a physical address, through the linear map.
///
/// # Safety
/// They are there, and only the caller uses them or nothing changes them.
pub unsafe fn memory<T>(at: u64, count: usize) -> &'static mut [T] {
    // SAFETY: as said above.
    unsafe { core::slice::from_raw_parts_mut((LINEAR + at) as *mut T, count) }
}

/// Returns the addresses of the stack of `cpu`.
pub fn stack(cpu: usize) -> Range {
    let end = STACKS + (cpu as u64 + 1) * 0x1_0000;
    Range { start: end - STACK_BYTES, bytes: STACK_BYTES }
}

/// Returns the CPU whose stack holds `address`.
pub fn cpu_at(address: u64) -> usize {
    (address.wrapping_sub(STACKS) >> 16) as usize % CPUS
}

fn out(port: u16, value: u8) {
    // SAFETY: the ports used here are those of the UART, the interrupt controllers, the timer.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) };
}

pub fn tsc() -> u64 {
    // SAFETY: every x86_64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Returns the nanoseconds from one count of the time-stamp counter to another.
pub fn ns(start: u64, end: u64) -> u64 {
    let ticks = u128::from(end.saturating_sub(start));
    (ticks * 1_000_000_000 / u128::from(TSC_HZ.load(Relaxed))) as u64
}

fn wait_us(us: u64) {
    let start = tsc();
    while ns(start, tsc()) < us * 1000 {}
}

/// Measures the counter against 50 ms of the 8254's second channel.
fn calibrate() {
    for (port, value) in [(0x61, 1), (0x43, 0xb0), (0x42, 0x0b), (0x42, 0xe9)] {
        out(port, value);
    }
    let (start, mut status) = (tsc(), 0u8);
    while status & 0x20 == 0 {
        // SAFETY: the timer's status.
        unsafe { asm!("in al, 0x61", out("al") status) };
    }
    TSC_HZ.store((tsc() - start) * 20, Relaxed);
}

/// Returns a register of the local APIC, which the linear map holds.
fn apic(offset: u64) -> *mut u32 {
    (LINEAR + 0xfee0_0000 + offset) as *mut u32
}

/// Sends an interrupt: `command` is the low half of the command register.
pub fn send(hardware_id: u32, command: u32) {
    // SAFETY: the APIC's registers. The stores are uncached, and come after all before them.
    unsafe {
        apic(0x310).write_volatile(hardware_id << 24);
        apic(0x300).write_volatile(command);
    }
}

/// Called by `cpu_entry` on every CPU: gets ready to be captured, sets up interrupts, brings up the
/// other CPUs, and gives each CPU its role.
#[unsafe(no_mangle)]
extern "C" fn cpu_main(cpu: usize, start_info: u64) -> ! {
    // SAFETY: the boot processor writes what is shared before there is another CPU.
    unsafe {
        if cpu == 0 {
            calibrate();
            let armed = crate::arm::arm(start_info).is_ok();
            say(&["foreign: ", if armed { "armed\n" } else { "not armed\n" }]);
            for vector in 0..33 {
                let stub = (&raw const trap_stubs) as u64 + vector * 16;
                let low = (stub & 0xffff) | 0x8e00_0008_0000 | ((stub >> 16 & 0xffff) << 48);
                IDT[vector as usize] = [low, stub >> 32];
            }
            memory(0x8000, 0x100).copy_from_slice(&ap_page);
            out(0x21, 0xff);
            out(0xa1, 0xff);
        }
        let pointer = [(33 * 16 - 1) << 48, &raw const IDT as u64];
        asm!("lidt [{}]", in(reg) (&raw const pointer).byte_add(6));
        apic(0xf0).write_volatile(0x1ff);
        HARDWARE_IDS[cpu].store(apic(0x20).read_volatile() >> 24, Relaxed);
        if cpu == 0 {
            // INIT, then twice a start-up IPI, to all but this CPU.
            for (command, us) in [(0xc_4500, 10_000), (0xc_4608, 200), (0xc_4608, 200)] {
                send(0, command);
                wait_us(us);
            }
        }
        AT_WORK.fetch_add(1, Relaxed);
        while AT_WORK.load(Relaxed) < CPUS as u32 {}
        match cpu {
            0 => idle(),
            1 => supervise(),
            2 => compute(),
            _ => spin_with_interrupts_off(),
        }
    }
}

#[inline(never)]
fn idle() -> ! {
    // SAFETY: no CPU is in low memory any more, so that it need not be mapped one to one.
    unsafe { page_root[0] = 0 };
    loop {
        // SAFETY: every vector has a gate.
        unsafe { asm!("sti", "hlt") };
    }
}

#[inline(never)]
fn supervise() -> ! {
    wait_us(20_000);
    panic!("{} units of work for {CPUS} CPUs", core::hint::black_box(0))
}

#[inline(never)]
fn compute() -> ! {
    // SAFETY: every vector has a gate.
    unsafe { asm!("sti") };
    let mut number = 3_u64;
    loop {
        number = core::hint::black_box(number.wrapping_mul(5));
    }
}

#[inline(never)]
fn spin_with_interrupts_off() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Halts for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing of this CPU is needed any more.
        unsafe { asm!("cli", "hlt") };
    }
}

/// Leaves for the capture image, in the state that [`handoff::entry`] asks for.
pub fn leave(entry: u64, handoff: u64) -> ! {
    // SAFETY: the first entry of the tables maps memory one to one again, and an entry that was
    // not present is in no cache. The code that runs here stays mapped.
    unsafe {
        (&raw mut page_root[0]).write_volatile(page_root[273]);
        asm!("cli", "jmp {}", in(reg) entry, in("rdi") handoff, in("rsi") KIND_HANDOFF,
             options(noreturn))
    }
}

/// Writes `texts` to the first serial port and to the log.
pub fn say(texts: &[&str]) {
    for byte in texts.iter().flat_map(|text| text.bytes()) {
        let at = WRITTEN.fetch_add(1, Relaxed) as usize % 4096;
        // SAFETY: a byte inside of the ring.
        unsafe { LOG[at] = byte };
        out(0x3f8, byte);
    }
}

pub fn log() -> LogRange {
    LogRange { address: physical(&raw const LOG), capacity: 4096, written: WRITTEN.load(Relaxed) }
}
