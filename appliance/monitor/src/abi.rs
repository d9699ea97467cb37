//! The numbers of the interfaces, for a monitor and for its clients.
//!
//! A call puts the function's number into w0 and up to five arguments into x1–x5, executes
//! `smc #0` and finds the result in x0, as the SMC calling convention (Arm DEN0028) says.
//! Negative results are errors. The monitor leaves all registers but x0 as they were.

/// The calling convention itself (Arm DEN0028).
pub mod smccc {
    /// `SMCCC_VERSION`: version of the convention, major number in bits 30–16.
    pub const VERSION: u32 = 0x8000_0000;
    /// `SMCCC_ARCH_FEATURES`: whether a function of the same range is there.
    pub const ARCH_FEATURES: u32 = 0x8000_0001;

    /// Version 1.1, in which a call changes x0–x3 at most.
    pub const VERSION_1_1: i64 = 0x1_0001;
    /// The function is there.
    pub const SUCCESS: i64 = 0;
    /// No function of this number is there, for any caller or for this one.
    pub const NOT_SUPPORTED: i64 = -1;
}

/// Power State Coordination Interface (Arm DEN0022).
pub mod psci {
    /// `PSCI_VERSION`: version of the interface, major number in bits 31–16.
    pub const VERSION: u32 = 0x8400_0000;
    /// `CPU_OFF`: switches the calling CPU off.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// `CPU_ON` with arguments of 32 bits.
    pub const CPU_ON_32: u32 = 0x8400_0003;
    /// `CPU_ON`: starts the CPU with MPIDR x1 at the address x2, with x3 in its x0.
    pub const CPU_ON: u32 = 0xc400_0003;
    /// `AFFINITY_INFO` with arguments of 32 bits.
    pub const AFFINITY_INFO_32: u32 = 0x8400_0004;
    /// `AFFINITY_INFO`: whether the CPU with MPIDR x1 is on; x2 is 0, the level of a CPU.
    pub const AFFINITY_INFO: u32 = 0xc400_0004;
    /// `MIGRATE_INFO_TYPE`: whether a trusted OS is tied to a CPU.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// `SYSTEM_OFF`: switches the machine off.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// `SYSTEM_RESET`: resets the machine.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// `PSCI_FEATURES`: whether the function x1 is there.
    pub const FEATURES: u32 = 0x8400_000a;

    /// Version 1.1.
    pub const VERSION_1_1: i64 = 0x1_0001;
    /// No trusted OS that would have to be moved.
    pub const NO_MIGRATION: i64 = 2;

    /// Answer of `AFFINITY_INFO`: the CPU is on.
    pub const ON: i64 = 0;
    /// Answer of `AFFINITY_INFO`: the CPU is off.
    pub const OFF: i64 = 1;
    /// Answer of `AFFINITY_INFO`: `CPU_ON` succeeded and the CPU is on its way.
    pub const ON_IS_PENDING: i64 = 2;

    /// Success.
    pub const SUCCESS: i64 = 0;
    /// No such function.
    pub const NOT_SUPPORTED: i64 = -1;
    /// No CPU has this MPIDR, or the level is not that of a CPU.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// The CPU is on.
    pub const ALREADY_ON: i64 = -4;
    /// An earlier `CPU_ON` succeeded and the CPU is still on its way.
    pub const ON_PENDING: i64 = -5;
    /// The entry is no address that a client may start at.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// Software Delegated Exception Interface (Arm DEN0054), version 1.0.
pub mod sdei {
    /// `SDEI_VERSION`: major number in bits 62–48, minor in 47–32, the vendor's own in 31–0.
    pub const VERSION: u32 = 0xc400_0020;
    /// `SDEI_EVENT_REGISTER`: event x1, handler x2, its argument x3, routing x4 and x5.
    pub const EVENT_REGISTER: u32 = 0xc400_0021;
    /// `SDEI_EVENT_ENABLE`: event x1.
    pub const EVENT_ENABLE: u32 = 0xc400_0022;
    /// `SDEI_EVENT_DISABLE`: event x1.
    pub const EVENT_DISABLE: u32 = 0xc400_0023;
    /// `SDEI_EVENT_CONTEXT`: register x1 (0–17) of what the running handler interrupted.
    pub const EVENT_CONTEXT: u32 = 0xc400_0024;
    /// `SDEI_EVENT_COMPLETE`: ends the handler and resumes what it interrupted.
    pub const EVENT_COMPLETE: u32 = 0xc400_0025;
    /// `SDEI_EVENT_COMPLETE_AND_RESUME`: ends the handler and goes on at x1, as if an
    /// exception had led there.
    pub const EVENT_COMPLETE_AND_RESUME: u32 = 0xc400_0026;
    /// `SDEI_EVENT_UNREGISTER`: event x1.
    pub const EVENT_UNREGISTER: u32 = 0xc400_0027;
    /// `SDEI_EVENT_STATUS`: event x1; the answer is made of the `STATUS_` bits.
    pub const EVENT_STATUS: u32 = 0xc400_0028;
    /// `SDEI_EVENT_GET_INFO`: event x1, property x2, one of the `INFO_` numbers.
    pub const EVENT_GET_INFO: u32 = 0xc400_0029;
    /// `SDEI_EVENT_ROUTING_SET`: for shared events only.
    pub const EVENT_ROUTING_SET: u32 = 0xc400_002a;
    /// `SDEI_PE_MASK`: the calling CPU takes no event from here on.
    pub const PE_MASK: u32 = 0xc400_002b;
    /// `SDEI_PE_UNMASK`: the calling CPU takes events. Every CPU starts masked.
    pub const PE_UNMASK: u32 = 0xc400_002c;
    /// `SDEI_INTERRUPT_BIND`: makes an event of the interrupt x1.
    pub const INTERRUPT_BIND: u32 = 0xc400_002d;
    /// `SDEI_INTERRUPT_RELEASE`: takes that back.
    pub const INTERRUPT_RELEASE: u32 = 0xc400_002e;
    /// `SDEI_EVENT_SIGNAL`: event x1, which must be 0, to the CPU with MPIDR x2.
    pub const EVENT_SIGNAL: u32 = 0xc400_002f;
    /// `SDEI_FEATURES`: property x1 of the interface.
    pub const FEATURES: u32 = 0xc400_0030;
    /// `SDEI_PRIVATE_RESET`: unregisters the private events of the calling CPU.
    pub const PRIVATE_RESET: u32 = 0xc400_0031;
    /// `SDEI_SHARED_RESET`: unregisters shared events and releases bound interrupts.
    pub const SHARED_RESET: u32 = 0xc400_0032;

    /// The first number that belongs to the interface.
    pub const FIRST: u32 = VERSION;
    /// The last number that belongs to the interface.
    pub const LAST: u32 = 0xc400_003f;

    /// What `SDEI_VERSION` answers: 1.0, and 1 for this implementation.
    pub const VERSION_1_0: i64 = 1 << 48 | 1;

    /// The event that software signals; the only one of this monitor.
    pub const SIGNALLED_EVENT: u64 = 0;
    /// Registers that a handler finds changed and `SDEI_EVENT_CONTEXT` hands out: x0–x17.
    pub const CONTEXT_REGISTERS: usize = 18;

    /// Routing of `SDEI_EVENT_REGISTER`: to any CPU.
    pub const ROUTE_ANY: u64 = 0;
    /// Routing of `SDEI_EVENT_REGISTER`: to the CPU whose MPIDR is in x5.
    pub const ROUTE_ONE: u64 = 1;

    /// Bit of `SDEI_EVENT_STATUS`: registered.
    pub const STATUS_REGISTERED: i64 = 1;
    /// Bit of `SDEI_EVENT_STATUS`: enabled.
    pub const STATUS_ENABLED: i64 = 2;
    /// Bit of `SDEI_EVENT_STATUS`: its handler is running.
    pub const STATUS_RUNNING: i64 = 4;

    /// Property: 0 private to a CPU, 1 shared.
    pub const INFO_TYPE: u64 = 0;
    /// Property: 0 if software may signal the event, 1 if not.
    pub const INFO_NOT_SIGNALLED: u64 = 1;
    /// Property: 0 normal, 1 critical.
    pub const INFO_PRIORITY: u64 = 2;
    /// Property: routing of a shared event.
    pub const INFO_ROUTING: u64 = 3;
    /// Property: target of a shared event.
    pub const INFO_AFFINITY: u64 = 4;

    /// Property of `SDEI_FEATURES`: slots for bound interrupts, private in bits 15–0, shared
    /// in 31–16.
    pub const FEATURE_BIND_SLOTS: u64 = 0;

    /// Success.
    pub const SUCCESS: i64 = 0;
    /// No such function, or no SDEI.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument is wrong: no such event, CPU, property or register.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// The state does not allow it.
    pub const DENIED: i64 = -3;
    /// Unregistered, but the handler is still running.
    pub const PENDING: i64 = -5;
    /// No slot is left to bind an interrupt.
    pub const OUT_OF_RESOURCE: i64 = -10;
}
