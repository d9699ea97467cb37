//! Page tables of a real machine: those in the saved dump, walked by the CR3 of each CPU. The
//! appliance maps memory one to one, which is what the walk has to find.

use std::path::{Path, PathBuf};

use addrspace::{AddressSpace, Extent, Level, PhysicalMemory, WalkError, X86, x86};
use handoff::CpuRecord;
use object::elf::PF_X;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSegment, SegmentFlags};
use vmcore::Dump;
use vmcore::dump::{Memory, MemoryFault};

/// Physical memory in a dump.
struct Saved<'a>(&'a Dump);

impl PhysicalMemory for Saved<'_> {
    type Error = MemoryFault;

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.0.read(address, buffer)
    }
}

fn saved(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cores/panic").join(name)
}

fn saved_core() -> Dump {
    Dump::open(saved("vmcore")).expect("the saved dump")
}

/// Returns the address space of a CPU.
fn address_space(cpu: &CpuRecord) -> AddressSpace {
    let registers = cpu.x86().expect("registers of x86-64");
    let limits = x86::Limits::default();
    X86::from_registers(registers.cr0, registers.cr3, registers.cr4, registers.efer, limits)
        .expect("long mode")
}

#[test]
fn code_and_stack_of_each_cpu() {
    let dump = saved_core();
    let memory = Saved(&dump);
    assert_eq!(dump.cpus.len(), 2);
    for cpu in &dump.cpus {
        let space = address_space(cpu);
        let registers = cpu.x86().expect("registers of x86-64");
        let translate = |address| space.translate(&memory, address);
        let code = translate(registers.rip).expect("code is mapped");
        assert_eq!(code.physical, registers.rip);
        assert!(code.rights.kernel.execute && !code.rights.kernel.write);
        assert_eq!(code.steps.first().map(|step| step.entry), Some(registers.cr3));

        let stack = translate(registers.rsp).expect("the stack is mapped");
        assert_eq!(stack.physical, registers.rsp);
        assert!(stack.rights.kernel.write && !stack.rights.kernel.execute);
        assert!(!stack.rights.user.read);
        assert_eq!(stack.attributes.dirty, Some(true));

        // The guard page below it is not.
        let guard = translate(cpu.stack.start - 1).expect_err("a guard page");
        assert!(matches!(guard, WalkError::NotPresent { level: Level::Pt, .. }), "{guard:?}");

        // From the stack pointer to the end: by virtual address what is there physically.
        let length = (cpu.stack.end() - registers.rsp) as usize;
        let mut by_virtual = vec![0; length];
        let mut by_physical = vec![1; length];
        space.read(&memory, registers.rsp, &mut by_virtual).expect("the stack is mapped");
        dump.read(registers.rsp, &mut by_physical).expect("the stack is in the dump");
        assert_eq!(by_virtual, by_physical);
    }
}

#[test]
fn all_that_is_mapped_is_mapped_one_to_one() {
    let dump = saved_core();
    let memory = Saved(&dump);
    let image = std::fs::read(saved("appliance")).expect("the image of the saved dump");
    let image = ElfFile64::<Endianness>::parse(&*image).expect("an ELF file");
    for cpu in &dump.cpus {
        let space = address_space(cpu);
        let mut listing = space.runs(&memory, 0, u64::MAX, 10_000);
        let mut runs = Vec::new();
        for extent in &mut listing {
            let Extent::Mapped(run) = extent else { panic!("{extent:?}") };
            assert_eq!(run.physical, run.first);
            assert!(!run.rights.user.read, "{run:?}");
            assert!(!(run.rights.kernel.write && run.rights.kernel.execute), "{run:?}");
            runs.push(run);
        }
        assert_eq!(listing.stopped_at(), None);

        // Of the image, code and only code is executable.
        for segment in image.segments() {
            let SegmentFlags::Elf { p_flags, .. } = segment.flags() else { panic!("not ELF") };
            let (first, end) = (segment.address(), segment.address() + segment.size());
            let inside = runs.iter().filter(|run| run.last >= first && run.first < end);
            let mut count = 0;
            for run in inside {
                assert_eq!(run.rights.kernel.execute, p_flags.0 & PF_X.0 != 0, "{run:?}");
                count += 1;
            }
            assert!(count > 0, "a segment at {first:#x} that is not mapped");
        }
    }
}
