//! The heap: what `alloc` takes its memory from, for the kernel and for workloads.
//!
//! The allocator is the `talc` crate, behind the kernel's own lock. It grows by runs of
//! frames and never gives one back. A request that cannot be met is a null pointer, as
//! `alloc` wants it, and what is known of it is kept: when the program then gives up, the
//! crash is one of kind `oom` that says who asked for how much and what was left.
//!
//! Once a crash has begun, the CPU that handles it gets nothing from here: it is refused
//! without a look at the lock, which a stopped CPU may hold. Every refusal is counted.

#![expect(unsafe_code, reason = "hands out memory by address, as `GlobalAlloc` is made")]

use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use handoff::MAX_CPUS;
use handoff::trace::EventKind;
use machine::lock::{Lock, LockGuard};
use machine::paging::PAGE;
use machine::trace;
use talc::DefaultBinning;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use crate::base::{cpus, memory};
use crate::crash;
use crate::work::workload;

/// Bytes the heap grows by, where memory allows it and the request does not need more.
const STEP: u64 = 1 << 20;
/// Bytes that a run of memory loses at its ends, more than enough: two of the allocator's
/// units and a word.
const ENDS: usize = 2 * talc::base::CHUNK_UNIT + size_of::<usize>();
/// Bytes an allocation has at least that counts as a large one.
pub const LARGE_BYTES: usize = 64 << 10;

type Heap = Talc<Frames, DefaultBinning>;

static HEAP: Lock<Heap> = Lock::new("heap", Heap::new(Frames));

/// Bytes that are handed out.
static USED: AtomicU64 = AtomicU64::new(0);
/// Bytes taken from the frame allocator.
static TAKEN: AtomicU64 = AtomicU64::new(0);
static LARGE: AtomicU64 = AtomicU64::new(0);
static LARGE_TOTAL: AtomicU64 = AtomicU64::new(0);
static REFUSED_IN_CRASH: AtomicU64 = AtomicU64::new(0);
static FAILURES: [Failure; MAX_CPUS] = [const { Failure::new() }; MAX_CPUS];

/// The last request of a CPU that could not be met. Written by that CPU only.
struct Failure {
    bytes: AtomicU64,
    align: AtomicU64,
    /// Free pages of memory at that time.
    free: AtomicU64,
}

impl Failure {
    const fn new() -> Self {
        Self { bytes: AtomicU64::new(0), align: AtomicU64::new(0), free: AtomicU64::new(0) }
    }
}

/// Frames as a source of memory for the heap.
#[derive(Debug)]
struct Frames;

// SAFETY: `acquire` touches the frame allocator only, which allocates nothing.
unsafe impl Source for Frames {
    fn acquire<B: Binning>(heap: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // What the heap itself needs of a fresh run: its bins in the first one, a little at
        // both ends of each.
        let bins =
            if heap.is_metadata_established() { 0 } else { talc::min_first_heap_size::<B>() };
        let own = bins + ENDS;
        let needed = layout.size().checked_add(layout.align()).and_then(|n| n.checked_add(own));
        let needed = (needed.ok_or(())? as u64).next_multiple_of(PAGE);
        let (start, bytes) = [needed.next_multiple_of(STEP), needed]
            .into_iter()
            .find_map(|bytes| memory::allocate(bytes / PAGE).map(|start| (start, bytes)))
            .ok_or(())?;
        if !memory::is_mapped(start, bytes) {
            // RAM above what the boot tables map: not before the kernel has its own.
            memory::free(start, bytes / PAGE);
            return Err(());
        }
        // SAFETY: frames that were free until now and belong to the heap from here on,
        // mapped one to one for reading and writing.
        unsafe { heap.claim(start as *mut u8, bytes as usize) }.ok_or(())?;
        TAKEN.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// The appliance's allocator.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Whether the running CPU is the one that handles a crash.
fn crashing() -> bool {
    crash::stopper().is_some_and(|stopper| stopper == cpus::current_index())
}

/// Whether the request must be refused for that reason. Counts it.
fn refuse_in_crash() -> bool {
    let refuse = crashing();
    if refuse {
        REFUSED_IN_CRASH.fetch_add(1, Ordering::Relaxed);
    }
    refuse
}

fn count(layout: Layout) {
    let bytes = layout.size() as u64;
    USED.fetch_add(bytes, Ordering::Relaxed);
    if layout.size() >= LARGE_BYTES {
        LARGE.fetch_add(1, Ordering::Relaxed);
        LARGE_TOTAL.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn keep_failure(layout: Layout) {
    let failure = &FAILURES[cpus::current_index()];
    failure.align.store(layout.align() as u64, Ordering::Relaxed);
    failure.free.store(memory::counts().0, Ordering::Relaxed);
    failure.bytes.store(layout.size() as u64, Ordering::Relaxed);
}

// SAFETY: all memory comes from `talc`, behind a lock that masks interrupts, so that no
// handler on the same CPU can come in between; or the answer is no.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuse_in_crash() {
            return ptr::null_mut();
        }
        // SAFETY: the caller's layout has a size, which is all that is asked.
        let memory = unsafe { HEAP.lock().allocate(layout) };
        match memory {
            Some(memory) => {
                count(layout);
                if layout.size() >= LARGE_BYTES {
                    let address = memory.as_ptr() as u64;
                    trace::record(EventKind::ALLOCATE, address, layout.size() as u64);
                }
                memory.as_ptr()
            }
            None => {
                keep_failure(layout);
                ptr::null_mut()
            }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // In a crash the memory is left as it is, for the dump.
        if refuse_in_crash() {
            return;
        }
        if layout.size() >= LARGE_BYTES {
            trace::record(EventKind::FREE, memory as u64, layout.size() as u64);
        }
        // SAFETY: the caller got it from here with this layout.
        unsafe { HEAP.lock().deallocate(memory, layout) };
        USED.fetch_sub(layout.size() as u64, Ordering::Relaxed);
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if refuse_in_crash() {
            return ptr::null_mut();
        }
        // SAFETY: as in `dealloc`, and the new size is not 0.
        if unsafe { HEAP.lock().try_realloc_in_place(memory, layout, bytes) } {
            USED.fetch_add(bytes as u64, Ordering::Relaxed);
            USED.fetch_sub(layout.size() as u64, Ordering::Relaxed);
            return memory;
        }
        // SAFETY: the caller promised that the new size fits a layout with this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        // SAFETY: as in `alloc`.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both are allocations of at least so many bytes, and apart; the old
            // one is given back after it was copied.
            unsafe {
                ptr::copy_nonoverlapping(memory, moved, layout.size().min(bytes));
                self.dealloc(memory, layout);
            }
        }
        moved
    }
}

/// A request for memory that could not be met.
#[derive(Clone, Copy, Debug)]
pub struct OutOfMemoryError {
    bytes: u64,
    align: u64,
    free: u64,
}

impl fmt::Display for OutOfMemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, align, free } = *self;
        let [used, taken] = [&USED, &TAKEN].map(|figure| figure.load(Ordering::Relaxed) >> 10);
        write!(f, "no memory for {bytes} bytes (aligned to {align})")?;
        let workload = cpus::current().workload.load(Ordering::Relaxed);
        if let Some(name) = workload::name_of(workload) {
            write!(f, ", asked for by {name}")?;
        }
        f.write_str(": ")?;
        write!(f, "{used} of the heap's {taken} KiB are in use, {free} pages are free")
    }
}

/// What was wanted, when `message` is how a program gives up that the heap could not serve;
/// nothing when it is any other panic. For crash code: takes no lock.
///
/// The text is the standard library's own, of the compiler that is pinned for the image.
#[must_use]
pub fn out_of_memory(message: &str) -> Option<OutOfMemoryError> {
    let bytes = message.strip_prefix("memory allocation of ")?.strip_suffix(" bytes failed")?;
    let bytes = bytes.parse::<u64>().ok()?;
    let failure = &FAILURES[cpus::current_index()];
    (failure.bytes.load(Ordering::Relaxed) == bytes).then(|| OutOfMemoryError {
        bytes,
        align: failure.align.load(Ordering::Relaxed),
        free: failure.free.load(Ordering::Relaxed),
    })
}

/// Requests refused because they came from the CPU that handles a crash.
#[must_use]
pub fn refused_in_crash() -> u64 {
    REFUSED_IN_CRASH.load(Ordering::Relaxed)
}

/// The heap in figures.
#[derive(Debug)]
pub struct Figures;

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (used, taken) = (figure(&USED) >> 10, figure(&TAKEN) >> 10);
        let (large, total) = (figure(&LARGE), figure(&LARGE_TOTAL) >> 10);
        write!(f, "{used} of {taken} KiB in use; {large} large allocations so far, {total} KiB")
    }
}

/// Keeps everyone from the heap until it is dropped, for a fault on request.
#[derive(Debug)]
pub struct Held {
    _guard: LockGuard<Heap>,
}

/// Holds the heap.
pub fn hold() -> Held {
    Held { _guard: HEAP.lock() }
}
