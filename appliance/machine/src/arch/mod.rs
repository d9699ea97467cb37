//! What a processor family supplies: the porting checklist.
//!
//! What the stop needs is a trait besides, [`names::Processor`], which the compiler checks
//! for arm64 already.
//!
//! | module | what it gives |
//! |---|---|
//! | `boot` | the entry points of the appliance's ELF and the switch to the kernel's own stack |
//! | `cpu` | interrupts on and off, halt, the cycle counter, control registers |
//! | `identity` | the running CPU's index and the counter, in one cheap read; where code stands |
//! | `tables` | per-CPU descriptor tables with stacks of their own for NMI, double fault, machine check |
//! | `trap` | entry stubs that build a [`TrapFrame`](x86_64::trap::TrapFrame) and call one dispatcher |
//! | `registers` | the running CPU's registers as the hand-off holds them |
//! | `apic` | who am I, send an IPI (with the barrier inside the send), end of interrupt |
//! | `smp` | start the other CPUs |
//! | `mce` | what the processor reports of its own errors |
//! | `paging` | identity mapping with protections, 4 or 5 levels |
//! | `park` | where a stopped CPU waits: code, stack, descriptor and page tables nobody else writes |
//! | `jump` | the way into the capture image |
//! | `clock` | what finding the cycle counter's rate asks of the processor |
//! | `timer` | a periodic interrupt on each CPU |
//! | `rtc` | the calendar clock's registers, and the memory behind them |
//! | `serial`, `port`, `mmio` | the console of last resort; device registers |
//! | `pci` | configuration space by I/O ports, where there are any |
//! | `power` | reset and power-off |
//! | `hw_watchdog` | access to a hardware watchdog |
//! | `capture` | what the capture image needs at its entry |

#[cfg(all(target_os = "none", target_arch = "aarch64"))]
pub mod aarch64;
pub mod names;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub mod x86_64;
