//! An ELF core, byte by byte.

use super::bytes::Record;
pub use super::records::stamped_page;
use super::{image, records};

/// A run of memory.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Physical address.
    pub address: u64,
    /// What is in the file; whole pages.
    pub bytes: Vec<u8>,
    /// Zero bytes behind it that are memory, but not in the file.
    pub zeros: u64,
}

/// One CPU. Numbers are those of the hand-off records.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Its hardware id, the APIC ID: 32 bits of it up to version 4.
    pub hardware_id: u64,
    /// 0 never started, 1 crash, 2 IRQ, 3 NMI, 4 INIT, 5 itself, 6 not stopped.
    pub stopped_by: u32,
    /// 0 none, 1 interrupted, 2 itself, 3 last known.
    pub registers_from: u32,
    /// Time to its acknowledgement; all ones for none.
    pub latency_ns: u64,
    /// NMIs seen.
    pub nmi_count: u32,
    /// Of these, the stop's.
    pub stop_nmi_count: u32,
    /// NMIs of live backtraces.
    pub live_nmi_count: u32,
    /// 1 counted, 2 interrupts known, 4 interrupts on, 8 reclaimable.
    pub flags: u32,
    /// Locks held.
    pub locks_held: u32,
    /// When it acknowledged; 0 when it did not.
    pub stopped_tsc: u64,
    /// Name of the workload; at most 16 bytes.
    pub workload: &'static str,
    /// Unit in progress; all ones for none.
    pub unit: u64,
    /// Start and length of its stack.
    pub stack: (u64, u64),
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Frame pointer.
    pub rbp: u64,
}

/// A lock.
#[derive(Clone, Debug)]
pub struct Lock {
    /// At most 16 bytes.
    pub name: &'static str,
    /// Where it is.
    pub address: u64,
    /// Index of who holds it; all ones for nobody.
    pub owner: u32,
    /// Behind the instruction that acquired it.
    pub acquired_at: u64,
    /// When.
    pub acquired_tsc: u64,
    /// CPUs 0 to 63 that wait, one bit each.
    pub waiters: u64,
    /// How often someone waited.
    pub contended: u64,
}

/// A dump to build.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of the hand-off records")]
pub struct Core {
    /// 1 to 5: of the hand-off and the CPU records; the facts have the same or the one before.
    pub version: u32,
    pub cause: u32,
    pub crashed: u32,
    pub vector: u32,
    pub line: u32,
    pub error_code: u64,
    pub address: u64,
    pub message: &'static str,
    pub file: &'static str,
    pub crash_tsc: u64,
    pub tsc_hz: u64,
    pub boot_time: u64,
    pub command_line: &'static str,
    pub build_id: Vec<u8>,
    pub cpus: Vec<Cpu>,
    pub memory: Vec<Memory>,
    /// Address, capacity and bytes ever written of the log ring.
    pub log: (u64, u64, u64),
    /// Start, pages, writer, epoch and next of each slice of stamped memory.
    pub stamps: Vec<(u64, u32, u32, u32, u32)>,
    pub locks: Vec<Lock>,
    /// Name and words of workloads.
    pub words: Vec<(&'static str, &'static str)>,
    /// Start, bytes and reason of each excluded range.
    pub excluded: Vec<(u64, u64, u64)>,
    /// What the capture itself ended with; empty for nothing.
    pub fault: &'static str,
    pub paging: Paging,
    pub stages: u32,
    pub stage: u32,
}

/// Address spaces of a core, which has one for all of its CPUs.
#[derive(Clone, Debug, Default)]
pub struct Paging {
    /// CR3, CR4 and EFER of every CPU with registers.
    pub registers: (u64, u64, u64),
    /// Virtual and physical address, bytes and `p_flags` of each of the image's segments, for
    /// the facts of version 5 and the program headers.
    pub segments: Vec<(u64, u64, u64, u32)>,
}

impl Paging {
    /// The virtual address that the program header of memory at `physical` has.
    fn address(&self, physical: u64) -> u64 {
        let segment = self.segments.iter().find_map(|&(address, start, bytes, _)| {
            let inside = physical.checked_sub(start).filter(|&inside| inside < bytes)?;
            Some(address + inside)
        });
        segment.unwrap_or(physical)
    }
}

/// Address of the stacks of [`Core::small`], a page each.
pub const STACKS: u64 = 0x10_0000;
/// Address of its stamped pages.
pub const STAMPS: u64 = 0x20_0000;
/// Address of its flight recorder's rings.
pub const RINGS: u64 = 0x12_0000;
/// Address of its log.
pub const LOG: u64 = 0x11_0000;
const NONE: u64 = u64::MAX;
/// The counter, in nanoseconds, at its crash.
const CRASH_TSC: u64 = 2_000_001_000_000;

impl Core {
    /// A small core of five CPUs: one panicked, one stopped by each rung, one never
    /// started. Its program is [`image::build`]'s; its stamped memory is intact.
    #[must_use]
    pub fn small() -> Self {
        let cpu = Cpu {
            hardware_id: 0,
            stopped_by: 2,
            registers_from: 1,
            latency_ns: 41_250,
            nmi_count: 0,
            stop_nmi_count: 0,
            live_nmi_count: 1,
            flags: 1 | 2 | 4 | 8,
            locks_held: 0,
            stopped_tsc: CRASH_TSC + 1_041_250,
            workload: "sieve",
            unit: 1234,
            stack: (STACKS, 4096),
            rip: image::WORKER + 0x30,
            rsp: STACKS + 0xf00,
            rbp: STACKS + 0xf20,
        };
        let stack = |number: u64| (STACKS + number * 4096, 4096);
        let cpus = vec![
            cpu.clone(),
            Cpu {
                hardware_id: 2,
                stopped_by: 1,
                latency_ns: NONE,
                flags: 1 | 2,
                locks_held: 1,
                stopped_tsc: 0,
                workload: "memstamp",
                unit: 7,
                stack: stack(1),
                rip: image::LEAF + 5,
                rsp: STACKS + 0x1e00,
                rbp: 0x1_0001,
                ..cpu.clone()
            },
            Cpu {
                hardware_id: 4,
                stopped_by: 3,
                latency_ns: 1_250_000,
                nmi_count: 2,
                stop_nmi_count: 1,
                flags: 1 | 2,
                locks_held: 1,
                stopped_tsc: CRASH_TSC + 2_250_000,
                workload: "",
                unit: NONE,
                stack: stack(2),
                rip: image::MAIN,
                rsp: STACKS + 0x2f00,
                rbp: 0,
                ..cpu.clone()
            },
            Cpu {
                hardware_id: 6,
                stopped_by: 4,
                registers_from: 3,
                latency_ns: 1_500_000,
                nmi_count: 1,
                flags: 1,
                stopped_tsc: 0,
                stack: stack(3),
                // It had jumped through a null pointer.
                rip: 0,
                rsp: STACKS + 0x3f00,
                rbp: STACKS + 0x3f20,
                ..cpu.clone()
            },
            Cpu {
                hardware_id: 300,
                stopped_by: 0,
                registers_from: 0,
                latency_ns: NONE,
                nmi_count: 0,
                live_nmi_count: 0,
                flags: 1,
                stopped_tsc: 0,
                workload: "",
                unit: NONE,
                stack: (0, 0),
                ..cpu
            },
        ];
        Self {
            version: 2,
            cause: 1,
            crashed: 1,
            vector: u32::MAX,
            line: 42,
            error_code: 0,
            address: 0,
            message: "index out of bounds: the length is 4 but the index is 7",
            file: "appliance/workloads/src/sieve.rs",
            crash_tsc: CRASH_TSC,
            tsc_hz: 1_000_000_000,
            boot_time: 1_767_225_600,
            command_line: "workload=sieve workload=memstamp crash=panic,cpu=1",
            build_id: image::BUILD_ID.to_vec(),
            cpus,
            memory: memory(),
            log: (LOG, 64, 100),
            stamps: vec![(STAMPS, 3, 1, 2, 1), (STAMPS + 3 * 4096, 2, u32::MAX, 1, 1)],
            locks: locks(),
            words: vec![("memstamp", "epoch 2, 3 of 5 pages stamped")],
            excluded: vec![(0x9_f000, 0x1000, 2), (0x400_0000, 0x80_0000, 1)],
            fault: "",
            paging: Paging { registers: (0x10_3000, 0, 0), segments: Vec::new() },
            stages: 1,
            stage: 1,
        }
    }

    /// The memory that holds `address`.
    ///
    /// # Panics
    /// When there is none.
    pub fn at(&mut self, address: u64) -> &mut [u8] {
        let holds = |memory: &&mut Memory| {
            (memory.address..memory.address + memory.bytes.len() as u64).contains(&address)
        };
        let memory = self.memory.iter_mut().find(holds).expect("memory of the core");
        let offset = (address - memory.address) as usize;
        &mut memory.bytes[offset..]
    }

    /// The file.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let pages = self.memory.iter().map(|memory| memory.bytes.len() as u64 / 4096).sum();
        let size = |header: usize| header as u64 + pages * 4096;
        // The account in the notes holds the size of the file, which their size decides;
        // the number itself takes the same room whatever it is.
        let programs = 64 + 56 * (1 + self.memory.len());
        let header = (programs + self.notes(0, 0).len()).next_multiple_of(4096);
        let notes = self.notes(size(header), pages);
        let mut file = Record::new(header);
        file.put(0, b"\x7fELF\x02\x01\x01")
            .put(16, &4u16.to_le_bytes())
            .put(18, &62u16.to_le_bytes())
            .u32(20, 1)
            .u64(32, 64)
            .put(52, &64u16.to_le_bytes())
            .put(54, &56u16.to_le_bytes())
            .put(56, &(1 + self.memory.len() as u16).to_le_bytes());
        file.u32(64, 4)
            .u64(64 + 8, programs as u64)
            .u64(64 + 32, notes.len() as u64)
            .u64(64 + 48, 4)
            .put(programs, &notes);
        let mut offset = header as u64;
        for (index, memory) in self.memory.iter().enumerate() {
            let at = 64 + 56 * (1 + index);
            let bytes = memory.bytes.len() as u64;
            file.u32(at, 1)
                .u32(at + 4, 7)
                .u64(at + 8, offset)
                .u64(at + 16, self.paging.address(memory.address))
                .u64(at + 24, memory.address)
                .u64(at + 32, bytes)
                .u64(at + 40, bytes + memory.zeros)
                .u64(at + 48, 4096);
            offset += bytes;
        }
        let mut file = file.0;
        for memory in &self.memory {
            file.extend(&memory.bytes);
        }
        file
    }

    fn notes(&self, bytes: u64, pages: u64) -> Vec<u8> {
        let mut notes = Vec::new();
        let crashed = self.crashed as usize;
        let others = (0..self.cpus.len()).filter(|&index| index != crashed);
        for index in std::iter::once(crashed).chain(others) {
            let cpu = &self.cpus[index];
            if cpu.stopped_by != 0 {
                let mut status = Record::new(336);
                status
                    .put(12, &6u16.to_le_bytes())
                    .u32(32, index as u32 + 1)
                    .put(112, &records::standard_registers(cpu));
                note(&mut notes, "CORE", 1, &status.0);
            }
        }
        let own = |number: u32| 0x4550_0000 + number;
        note(&mut notes, "EPITAPH", own(1), &records::handoff(self));
        note(&mut notes, "EPITAPH", own(2), &records::cpus(self));
        note(&mut notes, "EPITAPH", own(3), &records::facts(self));
        let mut slices = Vec::new();
        for &(start, pages, writer, epoch, next) in &self.stamps {
            slices.extend(start.to_le_bytes());
            for word in [pages, writer, epoch, next] {
                slices.extend(word.to_le_bytes());
            }
        }
        note(&mut notes, "EPITAPH", own(4), &slices);
        if self.version > 1 {
            note(&mut notes, "EPITAPH", own(9), &records::locks(self));
            note(&mut notes, "EPITAPH", own(10), &records::words(self));
        }
        let excluded = self.excluded.iter().flat_map(|&(start, bytes, reason)| {
            [start, bytes, reason].into_iter().flat_map(u64::to_le_bytes)
        });
        note(&mut notes, "EPITAPH", own(5), &excluded.collect::<Vec<u8>>());
        note(&mut notes, "EPITAPH", own(6), &records::capture(self, bytes, pages));
        note(&mut notes, "EPITAPH", own(7), &self.build_id);
        if !self.fault.is_empty() {
            note(&mut notes, "EPITAPH", own(11), self.fault.as_bytes());
        }
        notes
    }
}

/// A cycle of two, one lock that is waited for by a CPU outside it, and one that is free.
fn locks() -> Vec<Lock> {
    let lock = Lock {
        name: "frames",
        address: 0x102_0000,
        owner: u32::MAX,
        acquired_at: image::MAIN + 8,
        acquired_tsc: CRASH_TSC - 5_000_000,
        waiters: 0,
        contended: 3,
    };
    vec![
        Lock {
            name: "console",
            address: 0x102_0040,
            owner: 1,
            acquired_at: image::LEAF + 5,
            acquired_tsc: CRASH_TSC - 1_000_000,
            waiters: 0b101,
            contended: 12,
        },
        Lock {
            name: "workload-7",
            address: 0x102_0080,
            owner: 2,
            acquired_at: image::WORKER + 0x30,
            acquired_tsc: CRASH_TSC - 2_000_000,
            waiters: 0b10,
            contended: 1,
        },
        lock,
    ]
}

fn note(notes: &mut Vec<u8>, owner: &str, kind: u32, desc: &[u8]) {
    notes.extend((owner.len() as u32 + 1).to_le_bytes());
    notes.extend((desc.len() as u32).to_le_bytes());
    notes.extend(kind.to_le_bytes());
    notes.extend(owner.as_bytes());
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend(desc);
    notes.resize(notes.len().next_multiple_of(4), 0);
}

fn memory() -> Vec<Memory> {
    let mut stacks = Record::new(4 * 4096);
    let ret = |function: u64| function + image::RETURN;
    // CPU 0, in `worker`, which only has a frame pointer: its frame, then that of `main`.
    stacks.u64(0xf20, STACKS + 0xf40).u64(0xf28, ret(image::MAIN));
    stacks.u64(0xf40, 0).u64(0xf48, ret(image::START));
    // CPU 1, in `leaf`: its return address on top, then what `helper` left without a
    // frame, so that only a search finds `worker` and `main`.
    stacks.u64(0x1e00, ret(image::HELPER)).u64(0x1e08, 0x1234).u64(0x1e10, image::MAIN);
    stacks.u64(0x1e28, ret(image::WORKER)).u64(0x1e48, ret(image::MAIN));
    stacks.u64(0x1e88, ret(image::START));
    // CPU 2, at the first instruction of `main`: nothing pushed yet.
    stacks.u64(0x2f00, ret(image::START));
    // CPU 3: called through a null pointer from `worker`.
    stacks.u64(0x3f00, ret(image::WORKER)).u64(0x3f20, 0).u64(0x3f28, ret(image::MAIN));
    // A ring of 64 bytes of which 100 were written: the oldest left is at 36.
    let mut log = Record::new(4096);
    log.put(36, b"ed\nboot: 4 CPUs, 2 workloads");
    log.put(0, b"\nsieve: unit 1234\nCPU 1 panicked\n...");
    let stamps = [(0, 2), (1, 1), (2, 1), (3, 1), (4, 0)];
    let stamps = stamps.iter().flat_map(|&(page, epoch)| match epoch {
        0 => vec![0; 4096],
        _ => stamped_page(STAMPS + page * 4096, epoch),
    });
    vec![
        Memory { address: 0, bytes: vec![0x5a; 4096], zeros: 0 },
        Memory { address: STACKS, bytes: stacks.0, zeros: 0 },
        Memory { address: LOG, bytes: log.0, zeros: 0xf000 },
        Memory { address: RINGS, bytes: records::rings(CRASH_TSC), zeros: 0x7_1000 },
        Memory { address: STAMPS, bytes: stamps.collect(), zeros: 0 },
        Memory { address: image::TEXT, bytes: image::text(), zeros: 0x1000 },
    ]
}
