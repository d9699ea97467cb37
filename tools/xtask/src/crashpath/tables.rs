//! What the proof takes on trust: where crash code begins and ends, where calls whose target
//! is computed may lead, and which waits have an end.
//!
//! Each line has its reason, and each has to match something in the image: one that has
//! become needless is an error. In names `*` stands for anything.

/// One image, and what is declared about it.
#[derive(Debug)]
pub struct Declared {
    /// What to call it.
    pub name: &'static str,
    /// Where crash code begins: by which function, what is on the stack before it in bytes,
    /// and the member of `StackBlock` that it must fit into.
    pub entries: &'static [(&'static str, u64, &'static str)],
    /// Functions that crash code calls and that are not crash code, and why that is so.
    pub boundaries: &'static [(&'static str, &'static str)],
    /// Calls through pointers: the function of the source that makes the call, and what it
    /// may reach out of all functions whose address is taken.
    pub indirect: &'static [(&'static str, &'static [&'static str])],
    /// Functions of the source that may panic all the same, and why they do not, or what
    /// happens when they do.
    pub allowed: &'static [(&'static str, &'static str)],
    /// Functions of the source that wait, and what ends each wait.
    pub waits: &'static [(&'static str, &'static str)],
}

/// Functions that must not be reached, and what is wrong with each. They are looked for among
/// inlined functions as well.
pub const FORBIDDEN: &[(&str, &str)] = &[
    ("core::panicking::*", "can panic"),
    ("core::option::*_failed", "can panic"),
    ("core::result::*_failed", "can panic"),
    ("core::slice::*_fail", "can panic"),
    ("core::str::slice_error_fail*", "can panic"),
    ("core::cell::panic_*", "can panic"),
    ("__rustc::rust_begin_unwind", "can panic"),
    ("__rustc::__rust_*alloc*", "can allocate"),
    ("__rust_*alloc*", "can allocate"),
    ("alloc::*", "can allocate"),
    ("* as core::alloc::global::GlobalAlloc>::*", "can allocate"),
    ("machine::lock::Lock<*>::lock", "can wait for a lock without end"),
];

/// Functions that are entered more than once along one path, and how often at most those of
/// one line together.
pub const AGAIN: &[(&str, usize, &str)] = &[
    ("core::fmt::write", 4, "a line, a value in it with a `Display` of its own, one in that"),
    ("<core::fmt::builders::PadAdapter as core::fmt::Write>::*", 3, "nested `{:#?}`"),
    (
        "<epitaph_block::device_slice::DeviceSlice as epitaph_block::device::BlockDevice>::*",
        1,
        "a partition is on a disk",
    ),
    (
        "<capture::rescue::OnLoan as epitaph_block::device::BlockDevice>::*",
        1,
        "what is lent is a disk",
    ),
    (
        "<capture::rehearsal::ReadOnly as epitaph_block::device::BlockDevice>::*",
        1,
        "what is not to be written is a disk",
    ),
    ("epitaph_storage::disks::*", 2, "a second disk is looked for while the first is open"),
    ("capture::search::*", 2, "the same: what is done with the first is never done with it"),
    ("* as core::fmt::Debug>::fmt", 4, "a value in a value, in the text of a panic"),
    ("machine::arch::x86_64::paging::Space::set", 5, "once for each level of the page tables"),
];

/// Values that format themselves, and what they write to.
const FORMATS: &[&str] = &["* as core::fmt::*>::fmt", "core::fmt::*::fmt", "core::fmt::num::*"];
const WRITERS: &[&str] = &["* as core::fmt::Write>::*", "core::fmt::Write::*"];

const BOTH: &[&str] = &[FORMATS[0], FORMATS[1], FORMATS[2], WRITERS[0], WRITERS[1]];
/// What a workload is asked in a crash.
const SAYS: &[&str] =
    &["* as epitaph_workload::Workload>::name", "* as epitaph_workload::Workload>::last_words"];
/// Whatever disk there is, and whoever gives the capture image time, memory and a console.
const DISKS: &[&str] = &[
    "* as epitaph_block::device::BlockDevice>::*",
    "* as capture_engine::stream::Host>::*",
    "* as capture_engine::host::Host>::*",
    "* as capture_engine::stream::Memory>::*",
];

/// A disk, and what is done with it or with one that is to share the work.
const SEARCH: &[&str] = &[DISKS[0], DISKS[1], DISKS[2], DISKS[3], "capture::search::*{{closure}}*"];

/// The same, and how much room has to stay.
const RUN: &[&str] =
    &[DISKS[0], DISKS[1], DISKS[2], DISKS[3], "capture_engine::stage::*{{closure}}*"];

/// The same, and what is left of the lists.
const CLOSES: &[&str] = &[
    DISKS[0],
    DISKS[2],
    "* as capture_engine::close::InterruptedLists>::*",
    "* as capture_engine::extents::UsedPages>::*",
];

/// How `core` writes into whatever it was given, wherever the compiler has put it.
const FORMATTING: [(&str, &[&str]); 5] = [
    ("<core::fmt::rt::Argument>::fmt", FORMATS),
    ("* as core::fmt::Display>::fmt*", WRITERS),
    ("* as core::fmt::Debug>::fmt", BOTH),
    ("*core::fmt::builders::*", BOTH),
    ("*core::fmt::*", WRITERS),
];

/// The appliance.
pub const APPLIANCE: Declared = Declared {
    name: "appliance",
    entries: &[
        // The return address of whoever panicked.
        ("__rustc::rust_begin_unwind", 8, "nmi"),
        // What the processor pushes and what the stub adds, and up to a word of alignment.
        ("trap_common", 64, "nmi"),
        ("kernel::crash::on_lockup", 8, "nmi"),
    ],
    boundaries: &[("kernel::start::on_interrupt", "interrupts of a system that is well")],
    indirect: &[
        FORMATTING[0],
        FORMATTING[1],
        FORMATTING[2],
        FORMATTING[3],
        FORMATTING[4],
        // What the workload says: any of the image's.
        ("kernel::work::workload::report::ask", SAYS),
        ("core::ops::function::FnOnce::call_once", &["* as epitaph_workload::Workload>::name"]),
        ("* as epitaph_workload::Workload>::last_words", WRITERS),
        // The page tables of the park area, built again.
        (
            "machine::arch::x86_64::paging::Space::*",
            &["* as machine::arch::x86_64::paging::FrameSource>::frame"],
        ),
        // The way into the capture image, of which nothing returns.
        ("machine::arch::x86_64::jump::leave", &[]),
    ],
    allowed: &[],
    waits: &[
        ("kernel::crash::stop::Climb::step", "the ladder counts time and polls"),
        ("kernel::crash::stop::park_after_init", "CPUs that INIT stopped: a fixed time, twice"),
        ("kernel::crash::drill::take_part", "counts time and looks"),
        ("kernel::crash::await_beginning", "counts time and looks"),
        ("kernel::crash::machine_check::wait_for_another", "counts time and looks"),
        ("machine::arch::x86_64::apic::await_delivery", "counts its polls"),
        ("machine::arch::x86_64::power::wait", "counts its polls"),
        ("machine::arch::x86_64::cpu::halt_forever", "the end"),
    ],
};

/// The appliance with faults on request: the same, and the faults that its crash path calls. They
/// do nothing unless the command line asks for them.
pub const APPLIANCE_WITH_FAULTS: Declared = Declared {
    name: "appliance with faults",
    boundaries: &[
        APPLIANCE.boundaries[0],
        ("kernel::trial::inject::on_nmi", "faults on request"),
        ("kernel::trial::inject::crashes::in_crash_path", "faults on request"),
        ("kernel::trial::inject::crashes::in_last_words", "faults on request"),
        ("kernel::trial::inject::wedges::in_funnel", "faults on request"),
    ],
    ..APPLIANCE
};

/// The capture image.
pub const CAPTURE: Declared = Declared {
    name: "capture image",
    entries: &[
        ("capture_entry", 0, "main"),
        ("trap_common", 64, "nmi"),
        // After a fault, on the main stack below whatever was interrupted: there are 96 KiB,
        // which is looked at before.
        ("capture::fault::instead", (96 << 10) + 8, "main"),
        // A helper, called by the park code. Its own stack is twice as large.
        ("machine::arch::x86_64::capture::helpers::enter", 8, "main"),
    ],
    boundaries: &[],
    indirect: &[
        FORMATTING[0],
        FORMATTING[2],
        FORMATTING[3],
        FORMATTING[4],
        ("epitaph_storage::area::*", DISKS),
        ("epitaph_storage::slot::*", DISKS),
        ("epitaph_storage::partition::*", DISKS),
        // What is done with a disk that was found.
        ("epitaph_storage::disks::*", &["capture::search::*{{closure}}*"]),
        ("capture::search::*", SEARCH),
        ("capture_engine::stage::*", DISKS),
        ("capture_engine::lanes::*", DISKS),
        ("capture_engine::stream::Stream::run", RUN),
        ("capture_engine::stream::*", DISKS),
        // What a helper runs, how one is woken, and the clock.
        (
            "machine::arch::x86_64::capture::helpers::enter",
            &["capture::helpers::join", "capture::helpers::be_watched"],
        ),
        (
            "capture_engine::worker_pool::*",
            &[DISKS[2], "* as capture_engine::worker_pool::Helpers>::*"],
        ),
        // The list of CPUs, and the crashed memory while the dump is planned.
        ("capture_engine::crash::*", &["* as capture_engine::crash::Cpus>::*"]),
        ("*capture_engine::mini::*", &["* as capture_engine::crash::MemoryWords>::*"]),
        (
            "<capture::physical::Old as capture_engine::crash::MemoryWords>::words",
            &["capture_engine::mini::*{{closure}}*"],
        ),
        ("capture_engine::extents::*", &["* as capture_engine::extents::UsedPages>::*"]),
        // A partition is a disk, and hands on to the disk it is on.
        (
            "<epitaph_block::device_slice::DeviceSlice as epitaph_block::device::BlockDevice>::*",
            DISKS,
        ),
        ("epitaph_block::device_slice::DeviceSlice::new", DISKS),
        ("capture::rescue::lend", DISKS),
        ("<capture::rescue::OnLoan as epitaph_block::device::BlockDevice>::*", DISKS),
        ("<capture::rehearsal::ReadOnly as epitaph_block::device::BlockDevice>::*", DISKS),
        ("capture_engine::close::*", CLOSES),
        // Memory for the header of a stage that a disk has ended.
        (
            "<capture_engine::stage::salvage::Lists as capture_engine::close::InterruptedLists>::*",
            &["capture::rescue::memory"],
        ),
        ("epitaph_block::device::drain", DISKS),
        (
            "machine::arch::x86_64::paging::Space::*",
            &["* as machine::arch::x86_64::paging::FrameSource>::frame"],
        ),
    ],
    allowed: &[
        (
            "*virtio_drivers::queue::*",
            "looks things up in tables of its own; the one number from the device is compared \
             with what was asked before it is used",
        ),
        ("virtio_drivers::hal::Dma<*>::vaddr", "at offsets of the layout the pages are for"),
        (
            "* as virtio_drivers::transport::Transport>::notify",
            "a device that names a doorbell outside its own registers: the panic ends in last \
             words",
        ),
        (
            "* as virtio_drivers::hal::Hal>::mmio_phys_to_virt",
            "the library leaves no way to say no; without a page for a table there is no disk \
             to be had, and the panic ends in last words",
        ),
        ("lz4_flex::*", "writes into room that `codec::pack` has found to hold the worst case"),
    ],
    waits: &[
        ("epitaph_block::platform::Deadline<P>::wait", "its deadline"),
        ("epitaph_block::polled::Polled<P,E>::transfer", "the deadline of its request"),
        ("epitaph_block::device::drain", "the deadlines of the requests in flight"),
        ("machine::arch::x86_64::apic::await_delivery", "counts its polls"),
        ("capture_engine::stream::*collect", "the deadlines of the requests in flight"),
        ("capture_engine::worker_pool::work", "counts its looks"),
        ("capture::helpers::watch", "its deadline"),
        (
            "capture_engine::worker_pool::WorkerPool::recall",
            "each job is done, or given up when it is late",
        ),
        ("machine::arch::x86_64::power::wait", "counts its polls"),
        ("machine::arch::x86_64::cpu::halt_forever", "the end"),
    ],
};
