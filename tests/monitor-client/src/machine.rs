//! Entry, registers and devices.

#![expect(unsafe_code, reason = "assembly, system registers and device registers")]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_monitor::abi::sdei;
use epitaph_monitor::boot::IMAGE_MAGIC;

use crate::handler::{Action, handle, resumed};
use crate::{jobs, story};

/// CPUs of the machine.
pub const CPUS: usize = 5;
/// Bytes of a stack.
const STACK: usize = 16 << 10;
/// The SGI of the client.
pub const SGI: u32 = 1;

/// What the event handler saves of what it interrupted, and the stack that it runs on.
#[repr(C, align(16))]
pub struct Block {
    /// x0–x30 as the handler found them. x0–x3 are its arguments.
    pub x: [AtomicU64; 31],
    /// The stack pointer as the handler found it.
    pub sp: AtomicU64,
    /// v0–v31, two words each.
    pub v: [AtomicU64; 64],
    /// FPSR and FPCR.
    pub status: [AtomicU64; 2],
    stack: UnsafeCell<[u8; STACK]>,
}

// SAFETY: the stack is known to assembly only, and each CPU has a block of its own.
unsafe impl Sync for Block {}

impl Block {
    const fn new() -> Self {
        Self {
            x: [const { AtomicU64::new(0) }; 31],
            sp: AtomicU64::new(0),
            v: [const { AtomicU64::new(0) }; 64],
            status: [const { AtomicU64::new(0) }; 2],
            stack: UnsafeCell::new([0; STACK]),
        }
    }
}

/// One block for each CPU.
pub static BLOCKS: [Block; CPUS] = [const { Block::new() }; CPUS];

/// Stacks outside of handlers.
#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; CPUS]>);

// SAFETY: known to assembly only; each CPU uses its own element.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; CPUS]));

/// The registers of a wedged CPU: x0–x30, a word that is not used, v0–v31.
#[repr(C, align(16))]
pub struct Pattern {
    /// x0–x30.
    pub x: [u64; 31],
    unused: u64,
    /// v0–v31, two words each.
    pub v: [u64; 64],
}

/// No two words are equal, and no word is small.
pub static PATTERN: Pattern = {
    let mut pattern = Pattern { x: [0; 31], unused: 0, v: [0; 64] };
    let mut index = 0;
    while index < 31 {
        pattern.x[index] = 0x1111_2222_0000_5555 + ((index as u64 + 1) << 16);
        index += 1;
    }
    index = 0;
    while index < 64 {
        pattern.v[index] = 0x9999_aaaa_0000_dddd + ((index as u64 + 1) << 16);
        index += 1;
    }
    pattern
};
/// FPSR of a wedged CPU: all cumulative flags.
pub const PATTERN_FPSR: u64 = 0x0800_009f;
/// FPCR of a wedged CPU: round towards zero, flush to zero.
pub const PATTERN_FPCR: u64 = 0x01c0_0000;

global_asm!(
    include_str!("entry.S"),
    MAGIC = const u32::from_le_bytes(IMAGE_MAGIC),
    // 4 KiB pages, anywhere in memory.
    FLAGS = const 0b1010,
    CPACR = const 0b11 << 20,
    CPU_MASK = const 0xff,
    STACKS = sym STACKS,
    STACK = const STACK,
    PAIR = const 16,
    VECTOR_ALIGN = const 7,
    TABLE_ALIGN = const 11,
    IRQ_FRAME = const 20 * 8,
    I0 = const 0, I2 = const 2 * 8, I4 = const 4 * 8, I6 = const 6 * 8, I8 = const 8 * 8,
    I10 = const 10 * 8, I12 = const 12 * 8, I14 = const 14 * 8, I16 = const 16 * 8,
    I18 = const 18 * 8,
    X0 = const offset_of!(Block, x),
    X2 = const offset_of!(Block, x) + 2 * 8, X4 = const offset_of!(Block, x) + 4 * 8,
    X6 = const offset_of!(Block, x) + 6 * 8, X8 = const offset_of!(Block, x) + 8 * 8,
    X10 = const offset_of!(Block, x) + 10 * 8, X12 = const offset_of!(Block, x) + 12 * 8,
    X14 = const offset_of!(Block, x) + 14 * 8, X16 = const offset_of!(Block, x) + 16 * 8,
    X18 = const offset_of!(Block, x) + 18 * 8, X20 = const offset_of!(Block, x) + 20 * 8,
    X22 = const offset_of!(Block, x) + 22 * 8, X24 = const offset_of!(Block, x) + 24 * 8,
    X26 = const offset_of!(Block, x) + 26 * 8, X28 = const offset_of!(Block, x) + 28 * 8,
    X30 = const offset_of!(Block, x) + 30 * 8,
    SP = const offset_of!(Block, sp),
    V = const offset_of!(Block, v),
    STATUS = const offset_of!(Block, status),
    BLOCK = const size_of::<Block>(),
    Q = const 32,
    PATTERN = sym PATTERN,
    PATTERN_V = const offset_of!(Pattern, v),
    FPSR = const PATTERN_FPSR,
    FPCR = const PATTERN_FPCR,
    ALL = const 0b1111,
    COMPLETE = const Action::Complete as u64,
    PARK = const Action::Park as u64,
    EVENT_COMPLETE = const sdei::EVENT_COMPLETE,
    EVENT_COMPLETE_AND_RESUME = const sdei::EVENT_COMPLETE_AND_RESUME,
    JUNK = const 0x0bad,
    story = sym story::tell,
    job = sym jobs::run,
    irq = sym irq,
    handle = sym handle,
    resumed = sym resumed,
    unexpected = sym unexpected,
);

unsafe extern "C" {
    fn client_secondary();
    fn client_handler();
    fn client_wedge_loop();
    fn client_wedge(sp: &AtomicU64) -> !;
}

/// Returns where `CPU_ON` starts a CPU.
pub fn entry() -> u64 {
    client_secondary as *const () as u64
}

/// Returns the event handler.
pub fn handler() -> u64 {
    client_handler as *const () as u64
}

/// Returns the one instruction that a wedged CPU executes.
pub fn wedge_pc() -> u64 {
    client_wedge_loop as *const () as u64
}

/// Masks every exception, leaves the stack pointer in `sp`, loads all registers with the
/// pattern and never ends.
pub fn wedge(sp: &AtomicU64) -> ! {
    // SAFETY: the assembly writes one word to `sp` and does not return.
    unsafe { client_wedge(sp) }
}

/// Calls EL3. Only x0 changes.
pub fn smc(function: u32, arguments: [u64; 5]) -> i64 {
    let [a1, a2, a3, a4, a5] = arguments;
    let result: i64;
    // SAFETY: the functions called here change no memory of Rust; `CPU_OFF` and `CPU_ON` start
    // and end whole CPUs.
    unsafe {
        asm!("smc #0", inout("x0") u64::from(function) => result, in("x1") a1, in("x2") a2,
             in("x3") a3, in("x4") a4, in("x5") a5, options(nostack));
    }
    result
}

/// Reads a system register.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading this register changes nothing that Rust knows of.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: these registers rule interrupts, never memory.
        unsafe { asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) }
    }};
}

/// Returns the number of this CPU, which is its MPIDR as well.
pub fn cpu() -> usize {
    (read!("mpidr_el1") & 0xff) as usize
}

/// Returns ELR_EL1 and SPSR_EL1.
pub fn exception_return() -> [u64; 2] {
    [read!("elr_el1"), read!("spsr_el1")]
}

/// Returns the time, in milliseconds.
pub fn now() -> u64 {
    read!("cntpct_el0") * 1000 / read!("cntfrq_el0").max(1)
}

/// Waits until `done` or for `ms` milliseconds; returns whether it is done.
pub fn within(ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + ms;
    loop {
        if done() {
            return true;
        }
        if now() > end {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// The distributor, and its control register: Group 1 on, routing by affinity.
const DISTRIBUTOR: usize = 0x0800_0000;
const GROUP_1_BY_AFFINITY: u32 = 1 << 1 | 1 << 4;
/// The redistributors: SGI frame of each CPU, and registers in it.
const SGI_FRAMES: usize = 0x080b_0000;
const FRAME_STRIDE: usize = 0x2_0000;
const ENABLE: usize = 0x100;
const ACTIVE: usize = 0x300;
const CLEAR_ACTIVE: usize = 0x380;
const PRIORITY: usize = 0x400;

fn poke<T>(address: usize, value: T) {
    // SAFETY: all callers name registers of devices.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Sets up the distributor.
pub fn set_up_distributor() {
    poke(DISTRIBUTOR, GROUP_1_BY_AFFINITY);
}

/// ICC_RPR_EL1 while no interrupt is active.
const IDLE: u64 = 0xff;

/// Makes this CPU take the client's SGI. `clear` ends what an earlier life of this CPU may
/// have left active, in the redistributor and in the CPU interface.
pub fn set_up_interrupts(clear: bool) {
    let frame = SGI_FRAMES + cpu() * FRAME_STRIDE;
    if clear {
        // SAFETY: reads a register of the redistributor.
        let active = unsafe { ((frame + ACTIVE) as *const u32).read_volatile() };
        write!("icc_ap1r0_el1", 0);
        // QEMU 10 ignores that write of non-secure code where there is an EL3. The end of the
        // interrupt that was acknowledged drops its priority as well.
        if read!("icc_rpr_el1") != IDLE {
            end_interrupt(active.trailing_zeros());
        }
        poke(frame + CLEAR_ACTIVE, u32::MAX);
    }
    poke(frame + PRIORITY + SGI as usize, 0xa0_u8);
    poke(frame + ENABLE, 1_u32 << SGI);
    write!("icc_sre_el1", 7);
    write!("icc_pmr_el1", 0xff);
    write!("icc_igrpen1_el1", 1);
}

/// Unmasks interrupts on this CPU.
pub fn open_interrupts() {
    // SAFETY: the vectors are set, and their handler touches atomics only.
    unsafe { asm!("msr daifclr, {}", const 0b10, options(nostack)) };
}

/// Sends the client's SGI.
pub fn send_sgi(cpu: usize) {
    write!("icc_sgi1r_el1", u64::from(SGI) << 24 | 1 << cpu);
}

/// Acknowledges an interrupt of the client.
pub fn acknowledge() -> u32 {
    read!("icc_iar1_el1") as u32
}

/// Ends an interrupt of the client.
pub fn end_interrupt(interrupt: u32) {
    write!("icc_eoir1_el1", u64::from(interrupt));
}

extern "C" fn irq() {
    jobs::interrupt();
}

extern "C" fn unexpected(vector: u64) -> ! {
    let [pc, pstate] = exception_return();
    let (syndrome, cpu) = (read!("esr_el1"), cpu());
    say(format_args!(
        "unexpected=exception {vector:#x} at {pc:#x}, {pstate:#x}, ESR_EL1 {syndrome:#x}, CPU {cpu}\n"
    ));
    power_off()
}

/// Switches the machine off.
pub fn power_off() -> ! {
    smc(epitaph_monitor::abi::psci::SYSTEM_OFF, [0; 5]);
    park()
}

/// Returns true if the processor has FEAT_NMI.
pub fn has_nmi() -> bool {
    read!("id_aa64pfr1_el1") >> 36 & 0xf != 0
}

/// Waits for ever.
pub fn park() -> ! {
    loop {
        // SAFETY: waits.
        unsafe { asm!("wfi", options(nostack)) };
    }
}

struct Line;

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| poke(UART, u32::from(byte)));
        Ok(())
    }
}

/// The PL011, its control register, and on with its transmitter.
const UART: usize = 0x0900_0000;
const UART_CONTROL: usize = UART + 0x30;
const UART_ON: u32 = 1 << 0 | 1 << 8;

/// Prints.
pub fn say(text: fmt::Arguments<'_>) {
    poke(UART_CONTROL, UART_ON);
    // This writer never fails.
    let _ = Line.write_fmt(text);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say(format_args!("unexpected={info}\n"));
    power_off()
}

/// Adds one to a counter that only this CPU writes.
pub fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Release);
}
