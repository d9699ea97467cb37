//! What a unit of work is lent.

use core::fmt;
use core::sync::atomic::AtomicU64;

/// What a kernel does for workloads; they reach it through [`Context`].
pub trait Kernel: Sync {
    /// CPUs there are.
    fn cpus(&self) -> usize;

    /// Nanoseconds since boot.
    fn now_ns(&self) -> u64;

    /// Notes a sign of life of the running CPU.
    fn beat(&self);

    /// Prints a line.
    fn log(&self, line: fmt::Arguments<'_>);

    /// Calls `work` while holding lock `lock`, which is below [`LOCKS`](crate::LOCKS).
    fn locked(&self, lock: usize, work: &mut dyn FnMut());

    /// `words` words of memory, zero, that go into no dump; see
    /// [`Setup::never_dumped`](crate::Setup::never_dumped). `None` when there is no more.
    fn never_dumped(&self, words: usize) -> Option<&'static [AtomicU64]>;

    /// Interrupts CPU `cpu`, below [`cpus`](Self::cpus), so that it calls the running
    /// workload's [`on_call`](crate::Workload::on_call). False when that CPU is not running.
    fn call(&self, cpu: usize) -> bool;
}

/// What a unit of work is lent: who and where it is, and the kernel.
pub struct Context<'a> {
    cpu: usize,
    round: u64,
    kernel: &'a dyn Kernel,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, round, .. } = self;
        f.debug_struct("Context").field("cpu", cpu).field("round", round).finish_non_exhaustive()
    }
}

impl<'a> Context<'a> {
    /// For CPU `cpu` in round `round`; called by kernels.
    #[must_use]
    pub const fn new(cpu: usize, round: u64, kernel: &'a dyn Kernel) -> Self {
        Self { cpu, round, kernel }
    }

    /// Number of the running CPU, from 0. No digest may depend on it.
    #[must_use]
    pub const fn cpu(&self) -> usize {
        self.cpu
    }

    /// The round, from 0.
    #[must_use]
    pub const fn round(&self) -> u64 {
        self.round
    }

    /// CPUs there are, the running one included. No digest may depend on it.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.kernel.cpus()
    }

    /// A sign of life: due at least every few milliseconds, from everything that lasts
    /// longer, waits included.
    pub fn beat(&self) {
        self.kernel.beat();
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.kernel.now_ns()
    }

    /// Prints a line on the console and in the log. Takes a lock: not for
    /// [`on_call`](crate::Workload::on_call).
    pub fn log(&self, line: fmt::Arguments<'_>) {
        self.kernel.log(line);
    }

    /// Calls `work` while holding lock number `lock`; `None`, and no call, when there is no
    /// such lock (see [`LOCKS`](crate::LOCKS)). Interrupts are masked meanwhile, so `work`
    /// is short. Who takes two locks takes the lower number first, everywhere; who takes
    /// one twice waits for ever.
    pub fn locked<R>(&self, lock: usize, work: impl FnOnce() -> R) -> Option<R> {
        if lock >= crate::LOCKS {
            return None;
        }
        let mut work = Some(work);
        let mut result = None;
        self.kernel.locked(lock, &mut || result = work.take().map(|work| work()));
        result
    }

    /// Interrupts CPU `cpu` of [`cpus`](Self::cpus), itself included, so that it calls
    /// [`on_call`](crate::Workload::on_call), and comes back at once. Calls that are under
    /// way to the same CPU may arrive as one, but what was written before a call is seen by
    /// the answer that follows it. False when there is no such CPU, or it does not run.
    pub fn call(&self, cpu: usize) -> bool {
        cpu < self.cpus() && self.kernel.call(cpu)
    }
}
