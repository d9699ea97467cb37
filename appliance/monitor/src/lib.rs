//! PSCI and SDEI for an EL3 monitor, without the hardware.
//!
//! * [`abi`]: function numbers, return codes and limits, for a monitor and for its clients.
//! * [`Monitor`]: the state of every CPU, and what a call or an event interrupt does to it.
//! * [`Hardware`]: the four operations that the state machines ask of the machine.
//! * [`Frame`]: registers of the interrupted lower exception level.
//! * [`BakeryLock`]: a lock for memory without caches, which exclusive accesses do not work on.
//! * [`devicetree`]: adds nodes and properties to a device tree where it lies.
//! * [`boot`]: where a Linux arm64 Image and its initrd go, and what QEMU's `fw_cfg` offers.
//!
//! Promises: `no_std`, no allocation, no `unsafe`, no global state, no panic on any input. The
//! package's second half, the program `monitor`, puts QEMU's `virt` machine under it.
//!
//! # Example
//! ```
//! use epitaph_monitor::abi::{psci, sdei};
//! use epitaph_monitor::{After, Client, Frame, Hardware, Mode, Monitor, Settings};
//!
//! /// A machine that only notes what it was asked for.
//! #[derive(Default)]
//! struct Notes {
//!     signalled: Vec<u64>,
//!     woken: Vec<usize>,
//!     ended: u32,
//! }
//!
//! impl Hardware for Notes {
//!     fn signal_event(&mut self, mpidr: u64) {
//!         self.signalled.push(mpidr);
//!     }
//!     fn end_event(&mut self) {
//!         self.ended += 1;
//!     }
//!     fn wake(&mut self, cpu: usize) {
//!         self.woken.push(cpu);
//!     }
//!     fn set_exception_return(&mut self, _client: Client, _pc: u64, _pstate: u64) {}
//! }
//!
//! let settings = Settings {
//!     mode: Mode::Fixed,
//!     client: Client::El1,
//!     entries: 0x4000_0000..0x8000_0000,
//!     nmi: false,
//! };
//! let mut monitor = Monitor::<2>::new(settings, [0, 1], 0).unwrap();
//! let mut machine = Notes::default();
//!
//! // CPU 0 starts CPU 1 at 0x4020_0000 with 7 in x0.
//! let mut frame = Frame::calling(psci::CPU_ON, [1, 0x4020_0000, 7]);
//! assert_eq!(monitor.call(0, &mut frame, &mut machine), After::Return);
//! assert_eq!(frame.x[0] as i64, psci::SUCCESS);
//! assert_eq!(machine.woken, [1]);
//! let start = monitor.start(1).unwrap();
//! assert_eq!((start.entry, start.argument), (0x4020_0000, 7));
//!
//! // CPU 1 takes event 0 at 0x4020_1000, whatever its interrupt flags say.
//! for (function, arguments) in [
//!     (sdei::EVENT_REGISTER, [0, 0x4020_1000, 0x99]),
//!     (sdei::EVENT_ENABLE, [0, 0, 0]),
//!     (sdei::PE_UNMASK, [0, 0, 0]),
//! ] {
//!     let mut frame = Frame::calling(function, arguments);
//!     monitor.call(1, &mut frame, &mut machine);
//!     assert_eq!(frame.x[0] as i64, sdei::SUCCESS);
//! }
//! let mut frame = Frame::calling(sdei::EVENT_SIGNAL, [0, 1, 0]);
//! monitor.call(0, &mut frame, &mut machine);
//! assert_eq!(machine.signalled, [1]);
//!
//! // The interrupt of that signal reaches CPU 1 at 0x4020_2000, and its handler runs.
//! let mut frame = Frame { pc: 0x4020_2000, ..Frame::default() };
//! monitor.event_interrupt(1, &mut frame, &mut machine);
//! assert_eq!((frame.pc, frame.x[1], frame.x[2]), (0x4020_1000, 0x99, 0x4020_2000));
//!
//! // The handler completes: CPU 1 goes on where it was, and only now the interrupt ends.
//! assert_eq!(machine.ended, 0);
//! frame.x[0] = u64::from(sdei::EVENT_COMPLETE);
//! monitor.call(1, &mut frame, &mut machine);
//! assert_eq!((frame.pc, machine.ended), (0x4020_2000, 1));
//! ```
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod boot;
pub mod devicetree;

mod bakery;
mod frame;
mod mode;
mod monitor;
mod psci;
mod sdei;

pub use bakery::{BakeryLock, Held};
pub use frame::{Client, Frame};
pub use mode::Mode;
pub use monitor::{After, Hardware, Monitor, Settings, SetupError, Start};
