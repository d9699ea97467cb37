//! The records of the CPUs, and how those of every version are read.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::crash::{RegistersFrom, StoppedBy, cpu_flags, text};
use crate::registers::REGISTER_WORDS;
use crate::{Range, X86Registers};

/// ELF `e_machine` of x86_64: the architecture tag of its registers.
pub const X86_64: u32 = 62;
/// A [`CpuRecord::hardware_id`] that is not known.
pub const UNKNOWN_ID: u64 = u64::MAX;
/// Most bytes that a CPU record of a later version may have.
pub const MAX_CPU_RECORD_BYTES: u32 = 16 << 10;

/// One CPU, whether it ran or not.
///
/// The head has a fixed size in this version. The registers stand where `registers_at` says,
/// `register_bytes` long, in the layout of `architecture`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuRecord {
    /// Number by which the hardware knows the CPU: the APIC ID on x86_64, MPIDR's affinity on
    /// AArch64; [`UNKNOWN_ID`] when it is not known.
    pub hardware_id: u64,
    /// Index: 0 for the boot processor, the others in the order of the firmware's table.
    pub index: u32,
    /// Architecture of the registers, as an ELF `e_machine`.
    pub architecture: u32,
    /// Offset of the registers in the record, a multiple of 8.
    pub registers_at: u32,
    /// Bytes of registers.
    pub register_bytes: u32,
    /// One of [`StoppedBy`].
    pub stopped_by: StoppedBy,
    /// One of [`RegistersFrom`].
    pub registers_from: RegistersFrom,
    /// Nanoseconds from the first stop request to the CPU's acknowledgement, or to the sending
    /// of INIT for a CPU stopped by it, which cannot acknowledge; `u64::MAX` for none.
    pub latency_ns: u64,
    /// The workload's unit in progress; `u64::MAX` for none.
    pub unit: u64,
    /// Name of the workload that the CPU was running, zero padded; empty when idle.
    pub workload: [u8; 16],
    /// Bounds of the stack that the CPU was given, by virtual address, for unwinders; the pages may
    /// lie anywhere in memory. Zero when it is not known.
    pub stack: Range,
    /// Bits of [`cpu_flags`](crate::crash::cpu_flags).
    pub flags: u32,
    /// NMIs this CPU has seen since boot, the stop's included, without those of a live
    /// backtrace.
    pub nmi_count: u32,
    /// Of `nmi_count`, those that came once a stop was under way.
    pub stop_nmi_count: u32,
    /// NMIs of live backtraces, after which the CPU went on.
    pub live_nmi_count: u32,
    /// Machine checks.
    pub mce_count: u32,
    /// Locks that the CPU held when the stop reached it, or when it crashed.
    pub locks_held: u32,
    /// Time-stamp counter when the CPU acknowledged the stop; 0 when it did not.
    pub stopped_tsc: u64,
    /// Zero.
    pub reserved: [u64; 10],
    /// The registers: room for the largest set. AArch64's takes 31 general registers, SP, PC
    /// and PSTATE, and some 25 system registers, 472 bytes; that of x86_64 takes 320.
    pub registers: [u64; REGISTER_WORDS],
}

/// Offset of the registers in a record of this version, and bytes of its head.
const HEAD_BYTES: usize = offset_of!(CpuRecord, registers);

/// The record of versions 1 to 4.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CpuRecordV4 {
    index: u32,
    apic_id: u32,
    stopped_by: StoppedBy,
    registers_from: RegistersFrom,
    latency_ns: u64,
    nmi_count: u32,
    machine: u32,
    unit: u64,
    workload: [u8; 16],
    stack: Range,
    flags: u32,
    locks_held: u32,
    stop_nmi_count: u32,
    live_nmi_count: u32,
    mce_count: u32,
    reserved_word: u32,
    stopped_tsc: u64,
    reserved: [u64; 8],
    registers: X86Registers,
}

/// Bytes of a CPU record of versions 1 to 4.
pub(crate) const V4_BYTES: usize = size_of::<CpuRecordV4>();

const _: () = {
    assert!(offset_of!(CpuRecordV4, flags) == 72);
    assert!(offset_of!(CpuRecordV4, registers) == 168);
    assert!(V4_BYTES == 168 + 320);
    assert!(offset_of!(CpuRecord, latency_ns) == 32);
    assert!(offset_of!(CpuRecord, workload) == 48);
    assert!(offset_of!(CpuRecord, flags) == 80);
    assert!(offset_of!(CpuRecord, stopped_tsc) == 104);
    assert!(HEAD_BYTES == 192);
    assert!(size_of::<CpuRecord>() == 192 + 512);
};

impl CpuRecord {
    /// Offset of the registers in a record of this version.
    pub const REGISTERS_AT: u32 = HEAD_BYTES as u32;

    /// Returns a record in which nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        let mut record = <Self as zerocopy::FromZeros>::new_zeroed();
        record.hardware_id = UNKNOWN_ID;
        record.registers_at = Self::REGISTERS_AT;
        record.latency_ns = u64::MAX;
        record.unit = u64::MAX;
        record
    }

    /// Returns the workload's name without its padding.
    #[must_use]
    pub fn workload(&self) -> &str {
        text(&self.workload)
    }

    /// Returns the registers of an x86_64 CPU; `None` for another architecture.
    #[must_use]
    pub fn x86(&self) -> Option<&X86Registers> {
        let whole = self.architecture == X86_64
            && self.register_bytes as usize >= size_of::<X86Registers>();
        let registers = X86Registers::ref_from_prefix(self.registers.as_bytes());
        registers.ok().map(|(registers, _)| registers).filter(|_| whole)
    }

    /// Tags the record with x86_64 and returns its registers to be written.
    pub fn x86_mut(&mut self) -> Option<&mut X86Registers> {
        self.architecture = X86_64;
        self.register_bytes = size_of::<X86Registers>() as u32;
        let registers = X86Registers::mut_from_prefix(self.registers.as_mut_bytes());
        registers.ok().map(|(registers, _)| registers)
    }

    /// Writes the registers of an x86_64 CPU.
    pub fn set_x86(&mut self, registers: &X86Registers) {
        if let Some(place) = self.x86_mut() {
            *place = *registers;
        }
    }

    /// Writes the registers of a stopped x86_64 CPU, as they are in the frame of the interrupt,
    /// NMI or exception that stopped it, and notes from them whether its interrupts were on.
    pub fn set_interrupted(&mut self, registers: &X86Registers) {
        /// RFLAGS.IF (Intel SDM vol. 1, 3.4.3.3).
        const INTERRUPT_FLAG: u64 = 1 << 9;
        self.set_x86(registers);
        self.registers_from = RegistersFrom::INTERRUPTED;
        self.flags |= cpu_flags::INTERRUPTS_KNOWN;
        if registers.rflags & INTERRUPT_FLAG != 0 {
            self.flags |= cpu_flags::INTERRUPTS_ON;
        }
    }

    /// Reads a record of version 5 or later; `bytes` are all of it. What a later version has
    /// behind the known head and the known registers is left out.
    fn lift(bytes: &[u8]) -> Option<Self> {
        let mut record = Self::new();
        let head = bytes.get(..HEAD_BYTES)?;
        record.as_mut_bytes().iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        let at = record.registers_at as usize;
        let end = at.checked_add(record.register_bytes as usize);
        match end.and_then(|end| bytes.get(at..end)).filter(|_| at >= HEAD_BYTES) {
            Some(block) => {
                let room = record.registers.as_mut_bytes();
                let taken = block.len().min(room.len());
                room.iter_mut().zip(block).for_each(|(to, from)| *to = *from);
                record.register_bytes = taken as u32;
            }
            None => {
                (record.register_bytes, record.registers_from) = (0, RegistersFrom::NONE);
            }
        }
        record.registers_at = Self::REGISTERS_AT;
        Some(record)
    }

    /// Reads a record of versions 1 to 4.
    fn lift_v4(bytes: &[u8]) -> Option<Self> {
        let old = CpuRecordV4::read_from_bytes(bytes).ok()?;
        let mut record = Self {
            hardware_id: old.apic_id.into(),
            index: old.index,
            stopped_by: old.stopped_by,
            registers_from: old.registers_from,
            latency_ns: old.latency_ns,
            unit: old.unit,
            workload: old.workload,
            stack: old.stack,
            flags: old.flags,
            nmi_count: old.nmi_count,
            stop_nmi_count: old.stop_nmi_count,
            live_nmi_count: old.live_nmi_count,
            mce_count: old.mce_count,
            locks_held: old.locks_held,
            stopped_tsc: old.stopped_tsc,
            ..Self::new()
        };
        record.set_x86(&old.registers);
        // Cores made of last words did not say.
        if old.machine != 0 {
            record.architecture = old.machine;
        }
        Some(record)
    }
}

impl Default for CpuRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// The CPU records of a hand-off, checksum right, in the bytes of their version.
///
/// Each record is read by itself, with the stride that its hand-off names.
#[derive(Clone, Copy, Debug)]
pub struct CpuRecords<'a> {
    bytes: &'a [u8],
    stride: usize,
    /// The records are those of versions 1 to 4.
    old: bool,
}

impl<'a> CpuRecords<'a> {
    pub(crate) const fn new(bytes: &'a [u8], stride: usize, version: u32) -> Self {
        Self { bytes, stride, old: version < crate::crash::OPEN_VERSION }
    }

    /// Views records of this version that were made here.
    #[must_use]
    pub fn of(records: &'a [CpuRecord]) -> Self {
        Self { bytes: records.as_bytes(), stride: size_of::<CpuRecord>(), old: false }
    }

    /// Returns the bytes of all records, as they were handed over.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns how many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len().checked_div(self.stride).unwrap_or(0)
    }

    /// Returns true if there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads record number `number`, in the order in which they lie.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<CpuRecord> {
        let start = number.checked_mul(self.stride)?;
        let bytes = self.bytes.get(start..start.checked_add(self.stride)?)?;
        if self.old { CpuRecord::lift_v4(bytes) } else { CpuRecord::lift(bytes) }
    }

    /// Reads one record after the other.
    pub fn iter(&self) -> impl Iterator<Item = CpuRecord> + Clone + use<'a> {
        let records = *self;
        (0..self.len()).map_while(move |number| records.get(number))
    }
}
