//! The hand-off records and the notes' contents, byte by byte.

use super::bytes::{Record, crc32};
use super::core::{Core, Cpu};

/// Bytes of a CPU record up to version 4, and of version 5.
const CPU_BYTES: [usize; 2] = [488, 704];
/// Bytes of the hand-off up to version 4, and of version 5, which has more behind.
const HANDOFF_BYTES: [usize; 2] = [1384, 3000];
/// Versions of the boot facts, and their bytes: each has more behind than the one before.
const FACTS: [(u32, usize); 3] = [(1, 4728), (2, 5576), (5, 6688)];
/// Bytes of a lock record.
const LOCK_BYTES: usize = 128;
/// Bytes of what a workload said.
const WORDS_BYTES: usize = 256;
/// Bytes of the capture's account.
const CAPTURE_BYTES: usize = 128;

/// The 27 words of Linux's `user_regs_struct`.
pub(super) fn standard_registers(cpu: &Cpu) -> Vec<u8> {
    let mut words = [0u64; 27];
    // r15 r14 r13 r12 rbp rbx r11 … rip at 16, cs, eflags, rsp at 19, ss.
    for (number, word) in words[..16].iter_mut().enumerate() {
        *word = 0x1111_0000 + number as u64;
    }
    words[4] = cpu.rbp;
    words[15] = u64::MAX;
    words[16] = cpu.rip;
    words[17] = 8;
    words[18] = 0x202;
    words[19] = cpu.rsp;
    words[20] = 0x10;
    if cpu.registers_from == 0 {
        words = [0; 27];
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn cpus(core: &Core) -> Vec<u8> {
    let records = (0..).zip(&core.cpus);
    records
        .flat_map(|(index, cpu)| match core.version {
            5.. => cpu_of_version_5(index, cpu, core.paging.registers),
            version => cpu_up_to_version_4(version, index, cpu, core.paging.registers),
        })
        .collect()
}

fn cpu_up_to_version_4(version: u32, index: u32, cpu: &Cpu, paging: (u64, u64, u64)) -> Vec<u8> {
    let mut record = Record::new(CPU_BYTES[0]);
    record
        .u32(0, index)
        .u32(4, cpu.hardware_id as u32)
        .u32(8, cpu.stopped_by)
        .u32(12, cpu.registers_from)
        .u64(16, cpu.latency_ns)
        .u32(24, cpu.nmi_count)
        .u32(28, 62)
        .u64(32, cpu.unit)
        .put(40, cpu.workload.as_bytes())
        .u64(56, cpu.stack.0)
        .u64(64, cpu.stack.1)
        .put(168, &standard_registers(cpu));
    if version > 1 {
        record
            .u32(72, cpu.flags)
            .u32(76, cpu.locks_held)
            .u32(80, cpu.stop_nmi_count)
            .u32(84, cpu.live_nmi_count)
            .u64(96, cpu.stopped_tsc);
    }
    // cr0, cr2, cr3, cr4, efer behind the 27 words.
    if cpu.registers_from != 0 {
        control(&mut record, 168 + 27 * 8, paging);
    }
    record.0
}

/// CR0 with paging on, and CR3, CR4 and EFER; CR2 between them is 0.
fn control(record: &mut Record, at: usize, (cr3, cr4, efer): (u64, u64, u64)) {
    record.u64(at, 0x8000_0033).u64(at + 16, cr3).u64(at + 24, cr4).u64(at + 32, efer);
}

fn cpu_of_version_5(index: u32, cpu: &Cpu, paging: (u64, u64, u64)) -> Vec<u8> {
    let mut record = Record::new(CPU_BYTES[1]);
    record
        .u64(0, cpu.hardware_id)
        .u32(8, index)
        .u32(12, 62)
        .u32(16, 192)
        .u32(20, 320)
        .u32(24, cpu.stopped_by)
        .u32(28, cpu.registers_from)
        .u64(32, cpu.latency_ns)
        .u64(40, cpu.unit)
        .put(48, cpu.workload.as_bytes())
        .u64(64, cpu.stack.0)
        .u64(72, cpu.stack.1)
        .u32(80, cpu.flags)
        .u32(84, cpu.nmi_count)
        .u32(88, cpu.stop_nmi_count)
        .u32(92, cpu.live_nmi_count)
        .u32(100, cpu.locks_held)
        .u64(104, cpu.stopped_tsc)
        .put(192, &standard_registers(cpu));
    if cpu.registers_from != 0 {
        control(&mut record, 192 + 27 * 8, paging);
    }
    record.0
}

pub(super) fn handoff(core: &Core) -> Vec<u8> {
    let cpus = cpus(core);
    let newer = usize::from(core.version > 4);
    let mut record = Record::new(HANDOFF_BYTES[newer]);
    record
        .put(0, b"EPIHAND\x01")
        .u32(8, core.version)
        .u32(12, HANDOFF_BYTES[newer] as u32)
        .u32(20, crc32(&cpus))
        .u64(24, 0x400_0000)
        .u64(32, 0x100_8000)
        .u32(40, core.cpus.len() as u32)
        .u32(44, CPU_BYTES[newer] as u32)
        .u32(48, 2)
        .u64(56, core.crash_tsc + 3_000_000)
        .u64(64, core.log.0)
        .u64(72, core.log.1)
        .u64(80, core.log.2);
    if core.version > 1 {
        let (locks, words) = (locks(core), words(core));
        record
            .u64(104, 0x101_0000)
            .u32(112, core.locks.len() as u32)
            .u32(116, crc32(&locks))
            .u64(120, 0x101_8000)
            .u32(128, core.words.len() as u32)
            .u32(132, crc32(&words))
            .u64(136, core.crash_tsc + 2_500_000)
            .u32(144, core.locks.len() as u32);
    }
    // The cause.
    let at = 168;
    record
        .u32(at, core.cause)
        .u32(at + 4, core.crashed)
        .u32(at + 8, core.vector)
        .u32(at + 12, core.line)
        .u64(at + 16, core.error_code)
        .u64(at + 24, core.address)
        .u64(at + 32, core.crash_tsc)
        .put(at + 64, core.message.as_bytes())
        .put(at + 320, core.file.as_bytes());
    // The ladder: an IRQ to all others, an NMI to the two that did not answer.
    let at = 616;
    record
        .u32(at, 1)
        .u32(at + 4, 3)
        .u64(at + 8, core.crash_tsc + 1_000_000)
        .u64(at + 16, core.crash_tsc + 2_000_000)
        .u64(at + 24, 1_000_000_000)
        .u64(at + 32, 0b1101);
    let at = at + 96;
    record
        .u32(at, 2)
        .u32(at + 4, 2)
        .u64(at + 8, core.crash_tsc + 2_000_000)
        .u64(at + 16, core.crash_tsc + 2_500_000)
        .u64(at + 24, 10_000_000)
        .u64(at + 32, 0b1100);
    match core.version {
        // 00:03.0 had missed a deadline; 20 bytes of the log were held back.
        4 => record.put(152, &[0x18, 0]).u32(148, 20),
        5.. => record
            .u32(148, 20)
            .u64(1384, core.boot_time + 1999)
            .u32(1392, 1)
            .u32(1464, 0x0001_0018)
            .u32(1468, 1)
            .u64(1472, 0x50_0000)
            .u64(1480, 0x8_0000),
        _ => &mut record,
    };
    record.seal(16);
    record.0
}

pub(super) fn locks(core: &Core) -> Vec<u8> {
    let mut all = Vec::new();
    for lock in &core.locks {
        let mut record = Record::new(LOCK_BYTES);
        record
            .put(0, lock.name.as_bytes())
            .u64(16, lock.address)
            .u32(24, u32::from(lock.owner != u32::MAX))
            .u32(28, lock.owner)
            .u64(32, lock.acquired_at)
            .u64(40, lock.acquired_tsc)
            .u64(48, lock.waiters)
            .u64(112, lock.contended);
        all.extend(record.0);
    }
    all
}

pub(super) fn words(core: &Core) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, text) in &core.words {
        let mut record = Record::new(WORDS_BYTES);
        record.put(0, name.as_bytes()).put(16, text.as_bytes());
        all.extend(record.0);
    }
    all
}

pub(super) fn facts(core: &Core) -> Vec<u8> {
    let known = FACTS.iter().rev().find(|(version, _)| *version <= core.version);
    let &(version, bytes) = known.expect("version 1 or later");
    let mut record = Record::new(bytes);
    record
        .put(0, b"EPIFACT\x01")
        .u32(8, version)
        .u32(12, bytes as u32)
        .u32(20, 62)
        .u64(24, 0x400_0000)
        .u64(32, 0x80_0000)
        .u64(104, 0x100_0000)
        .u64(112, 0x100_0000)
        .u32(120, 4)
        .u32(124, core.build_id.len() as u32)
        .put(128, &core.build_id)
        .u64(160, core.tsc_hz)
        .u64(168, core.boot_time)
        .u64(176, 1_000_000)
        .u32(192, 0x3f8)
        .u32(196, core.cpus.len() as u32)
        .u32(304, 3);
    let map: [(u64, u64, u32); 3] =
        [(0, 0x9_f000, 1), (0x9_f000, 0x1000, 2), (0x10_0000, 0x7f0_0000, 1)];
    for (index, (start, bytes, kind)) in map.into_iter().enumerate() {
        let at = 312 + index * 24;
        record.u64(at, start).u64(at + 8, bytes).u32(at + 16, kind);
    }
    if core.version > 1 {
        // Behind policies and frame bitmap: where the rings are.
        record
            .u64(4728 + 32, super::core::RINGS)
            .u32(4728 + 40, RING_BYTES as u32)
            .u32(4728 + 44, 2);
    }
    if version == 2 {
        // Configuration space of segment 0.
        record.u64(4728 + 120, 0xb000_0000).put(4728 + 130, &[0, 255]);
    }
    if version >= 5 {
        record
            .u64(5576, 0xb000_0000)
            .put(5576 + 10, &[0, 255])
            .u32(5576 + 256, 1)
            .u32(5576 + 260, core.paging.segments.len() as u32)
            .put(5576 + 776, b"appliance")
            .u64(5576 + 808, 0x421_0000);
        for (index, &(address, start, bytes, flags)) in core.paging.segments.iter().enumerate() {
            let at = 5576 + 264 + index * 32;
            record.u64(at, address).u64(at + 8, start).u64(at + 16, bytes).u32(at + 24, flags);
        }
    }
    record.put(3704, core.command_line.as_bytes()).seal(16);
    record.0
}

/// Bytes of a ring: a header and four events.
const RING_BYTES: usize = 32 + 4 * 32;

/// The rings of CPUs 0 and 1: the first has gone round once and was stopped in the middle of
/// its last event, the second has begun two.
pub(super) fn rings(crash_tsc: u64) -> Vec<u8> {
    let mut record = Record::new(4096);
    let event = |record: &mut Record, at: usize, tsc: u64, words: [u32; 2], data: [u64; 2]| {
        record.u64(at, tsc).u32(at + 8, words[0]).u32(at + 12, words[1]);
        record.u64(at + 16, data[0]).u64(at + 24, data[1]);
    };
    record.put(0, b"EPITRAC\x01").u64(8, 6).u32(16, 0).u32(20, 1);
    // Numbers 4 and 5 in the first two slots, 2 and 3 behind them.
    event(&mut record, 32, crash_tsc + 1_030_000, [12, 2], [2, super::image::WORKER + 0x30]);
    event(&mut record, 64, crash_tsc - 40_000, [0, 1], [1234, 1]);
    event(&mut record, 96, crash_tsc - 30_000, [6, 1], [1234, 1]);
    event(&mut record, 128, crash_tsc - 20_000, [1, 1], [0xef, super::image::WORKER + 4]);
    let at = RING_BYTES;
    record.put(at, b"EPITRAC\x01").u64(at + 8, 2).u32(at + 16, 1).u32(at + 20, 1);
    event(&mut record, at + 32, crash_tsc - 25_000, [3, 1], [0x102_0040, super::image::LEAF + 5]);
    event(&mut record, at + 64, crash_tsc + 10, [10, 1], [1, 0]);
    record.0
}

pub(super) fn capture(core: &Core, bytes: u64, pages: u64) -> Vec<u8> {
    let mut record = Record::new(CAPTURE_BYTES);
    record
        .u32(0, 1)
        .u32(4, CAPTURE_BYTES as u32)
        .u32(8, core.stages)
        .u32(12, core.stage)
        .u32(16, 2)
        .u64(24, core.tsc_hz)
        .u64(32, core.crash_tsc + 3_000_000)
        .u64(40, core.crash_tsc + 3_100_000)
        .u64(48, core.crash_tsc + 4_000_000)
        .u64(56, bytes)
        .u64(64, pages)
        .u64(72, 512 << 10);
    record.0
}

/// A stamped page, as the memstamp workload fills it: magic, address, epoch, checksum,
/// and a sequence that starts from both.
pub fn stamped_page(address: u64, epoch: u64) -> Vec<u8> {
    let mut words = Vec::with_capacity(512);
    words.extend([u64::from_le_bytes(*b"EPISTAMP"), address, epoch, 0]);
    let mut word = (address ^ epoch.rotate_left(40)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut sum = 0u64;
    while words.len() < 512 {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        words.push(word);
        sum = sum.rotate_left(1) ^ word;
    }
    words[3] = sum;
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
