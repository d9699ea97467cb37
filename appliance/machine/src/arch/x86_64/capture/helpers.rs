//! CPUs called back to work: those that the stop interrupt found wait in the park area.
//!
//! A helper runs on the image's page tables and on a stack of the image, with the park
//! area's descriptor tables, interrupts masked. A fault of its own stops it for good; its
//! job is then never done, so whoever waits for one does so with a bound.

use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use handoff::devices::{Mailbox, MailboxState, Mailboxes};
use handoff::{MAX_CPUS, Range};

use super::cell::TryCell;
use super::memory;
use crate::apic::{self, Ipi};
use crate::paging::{Flags, PAGE};
use crate::park::VECTOR_CALL;

/// Helpers at most: more than a disk can be kept busy with.
pub const MOST: usize = 16;
/// Pages of a helper's stack.
const STACK_PAGES: usize = 8;

/// What a helper is told to do: called with its number and what the caller passed.
pub type Job = fn(helper: usize, argument: u64);

#[derive(Clone, Copy)]
struct Helper {
    mailbox: u64,
    stack: u64,
}

struct Crew {
    helpers: [Helper; MOST],
    count: usize,
}

static CREW: TryCell<Crew> =
    TryCell::new(Crew { helpers: [Helper { mailbox: 0, stack: 0 }; MOST], count: 0 });

/// The job of one helper; written before the call that it belongs to.
struct Order {
    job: AtomicPtr<()>,
    argument: AtomicU64,
}

static ORDERS: [Order; MOST] =
    [const { Order { job: AtomicPtr::new(core::ptr::null_mut()), argument: AtomicU64::new(0) } };
        MOST];

/// Where a helper enters, with its number.
extern "C" fn enter(helper: u64) {
    let Some(order) = ORDERS.get(helper as usize) else { return };
    let job = order.job.load(Ordering::Acquire);
    if job.is_null() {
        return;
    }
    // SAFETY: not null, so it was made from a `Job` by `call`.
    let job = unsafe { core::mem::transmute::<*mut (), Job>(job) };
    job(helper as usize, order.argument.load(Ordering::Relaxed));
}

fn field(mailbox: u64, offset: usize) -> *mut u32 {
    (mailbox + offset as u64) as *mut u32
}

fn read(mailbox: u64, offset: usize) -> u32 {
    // SAFETY: `mailbox` is one that `muster` found inside the park area and mapped; the
    // offset is that of one of its words.
    unsafe { field(mailbox, offset).read_volatile() }
}

/// Gets ready to call the CPUs that wait in `mailboxes`, which lie in the park area `park`.
/// Returns how many wait; up to [`MOST`] of them become helpers.
pub fn muster(mailboxes: Mailboxes, park: Range) -> usize {
    let stride = u64::from(mailboxes.stride);
    let range = Range { start: mailboxes.address, bytes: stride * u64::from(mailboxes.count) };
    let sound = stride == size_of::<Mailbox>() as u64
        && range.start.is_multiple_of(stride)
        && (1..=MAX_CPUS as u32).contains(&mailboxes.count)
        && park.holds(range.start, range.bytes);
    let code = Range { start: park.start, bytes: PAGE };
    if !sound || !memory::map(range, Flags::READ_WRITE) || !memory::map(code, Flags::READ_EXECUTE) {
        return 0;
    }
    apic::adopt();
    if apic::registers().is_some_and(|registers| !memory::map_device(registers)) {
        return 0;
    }
    let boxes = (range.start..range.end()).step_by(stride as usize);
    let waits =
        |mailbox: &u64| read(*mailbox, offset_of!(Mailbox, state)) == MailboxState::WAITING.0;
    let hire = |mailbox: u64| {
        let stack = memory::pages(STACK_PAGES)?;
        let stack = stack.as_ptr() as u64 + stack.len() as u64;
        CREW.with(|crew| {
            if let Some(place) = crew.helpers.get_mut(crew.count) {
                *place = Helper { mailbox, stack };
                crew.count += 1;
            }
        })
    };
    // Those beyond the number, or without memory for a stack, go on waiting.
    let _ = boxes.clone().filter(waits).take(MOST).try_for_each(hire);
    boxes.filter(waits).count()
}

/// How many helpers there are.
#[must_use]
pub fn count() -> usize {
    CREW.with(|crew| crew.count).unwrap_or(0)
}

fn mailbox(helper: usize) -> Option<Helper> {
    CREW.with(|crew| crew.helpers.get(..crew.count)?.get(helper).copied()).flatten()
}

/// Whether `helper` has nothing to do.
#[must_use]
pub fn idle(helper: usize) -> bool {
    mailbox(helper).is_some_and(|Helper { mailbox, .. }| {
        let idle =
            read(mailbox, offset_of!(Mailbox, done)) == read(mailbox, offset_of!(Mailbox, call));
        // What its job wrote is read after this.
        core::sync::atomic::fence(Ordering::Acquire);
        idle
    })
}

/// Has `helper` run `job` with `argument`; false when there is no such helper, or it is busy.
/// It is done when the helper is [`idle`] again.
#[must_use]
pub fn call(helper: usize, job: Job, argument: u64) -> bool {
    let (Some(Helper { mailbox, stack }), Some(order), Some(root)) =
        (mailbox(helper), ORDERS.get(helper), memory::root())
    else {
        return false;
    };
    if !idle(helper) {
        return false;
    }
    order.job.store(job as *mut (), Ordering::Relaxed);
    order.argument.store(argument, Ordering::Release);
    let put = |offset: usize, value: u64| {
        // SAFETY: as in `read`; mapped for writing. The CPU reads these only once `call`
        // has changed, and writes none of them.
        unsafe { ((mailbox + offset as u64) as *mut u64).write_volatile(value) };
    };
    put(offset_of!(Mailbox, root), root);
    put(offset_of!(Mailbox, entry), enter as *const () as u64);
    put(offset_of!(Mailbox, stack), stack);
    put(offset_of!(Mailbox, argument), helper as u64);
    let number = read(mailbox, offset_of!(Mailbox, call)).wrapping_add(1);
    core::sync::atomic::fence(Ordering::Release);
    // SAFETY: as in `read`; mapped for writing, and the caller's own word.
    unsafe { field(mailbox, offset_of!(Mailbox, call)).write_volatile(number) };
    // An APIC ID has 32 bits, the lower half of the hardware id.
    apic::send(read(mailbox, offset_of!(Mailbox, hardware_id)), Ipi::Fixed(VECTOR_CALL));
    true
}
