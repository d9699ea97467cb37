//! What a stop asks of a processor, as a list that a port is checked against.
//!
//! `capture/stop` knows no processor at all; this is the other half of the same promise. A
//! port that implements it, and adds its rungs and its entry code, has the ladder. The
//! compiler checks every processor family there is against it.

/// How a CPU is signalled: the rungs of a ladder, the gentlest first. A family that lacks one
/// refuses it, and the ladder goes on with the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A maskable interrupt: a fixed vector on x86, a software-generated interrupt on arm64.
    Interrupt,
    /// One that reaches a CPU with interrupts masked: NMI on x86; on arm64 an interrupt with
    /// the non-maskable property, where the processor has it.
    NonMaskable,
    /// One that firmware delivers: an SDEI event on arm64.
    Firmware,
    /// The CPU is reset: INIT on x86.
    Reset,
}

/// The processor that runs this.
pub trait Processor {
    /// ELF `e_machine` of its register set.
    const ELF_MACHINE: u32;

    /// Which CPU this is, asked of the processor itself and of nothing in memory.
    fn id() -> u64;

    /// Signals the CPU `id`. What was stored before is visible to it when the signal arrives:
    /// the barrier stands inside. False when this family has no such signal, or no such CPU.
    fn signal(id: u64, signal: Signal) -> bool;

    /// Says that the interrupt `token`, as the processor named it, is dealt with.
    fn end_of_interrupt(token: u64);

    /// Masks everything that can be masked.
    fn mask();

    /// Whether interrupts are masked.
    fn masked() -> bool;

    /// A hint that this is a spin loop.
    fn relax();

    /// A counter that goes up at a constant rate.
    fn counter() -> u64;

    /// Masks interrupts and halts for good.
    fn halt_forever() -> !;
}

#[cfg(target_os = "none")]
const fn supplied<P: Processor>() {}

#[cfg(all(target_os = "none", target_arch = "aarch64"))]
const _: () = supplied::<super::aarch64::Arm64>();
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
const _: () = supplied::<super::x86_64::X86>();
