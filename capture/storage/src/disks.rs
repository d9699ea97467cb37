//! The disks of the machine, one after the other, in the order they are wanted.

use core::cell::Cell;
use core::fmt;

use block::{BlockDevice, Error, Platform, ahci, nvme, pci, virtio};
use vmcore_format::gpt::Guid;

use crate::target::{ALL, Step, Target};

/// Functions looked at, of each kind.
const MAX_FUNCTIONS: usize = 64;
/// Controllers without a driver that are named.
const MAX_FOREIGN: usize = 8;

/// What came of trying a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It took the dump: the search is over.
    Took,
    /// It did not; another may.
    Next,
    /// It missed a deadline, and nothing at its controller is touched again.
    GivenUp,
}

/// What of a disk is wanted, and what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// This partition of it and no other.
    pub partition: Option<Guid>,
    /// What is to share the work with it.
    pub with: Option<Target>,
}

/// Tries a disk, or a partition of it, or hears why it could not be opened.
pub type Attempt<'a> =
    dyn FnMut(pci::Address, Wanted, Result<&mut dyn BlockDevice, Error>) -> Tried + 'a;

/// Where a line about the search goes.
pub type Report<'a> = &'a mut dyn FnMut(fmt::Arguments<'_>);

/// Functions that are left alone, by their [numbers](pci::Address::number); 0, which is the host
/// bridge's, for none.
#[derive(Debug)]
pub struct Avoided(Cell<[u32; 2 * MAX_FUNCTIONS]>);

impl Avoided {
    /// Those of `numbers` that are not 0.
    #[must_use]
    pub fn new(numbers: impl IntoIterator<Item = u32>) -> Self {
        let mut list = [0; 2 * MAX_FUNCTIONS];
        list.iter_mut().zip(numbers).for_each(|(to, from)| *to = from);
        Self(Cell::new(list))
    }

    /// Whether a function is one of them.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.0.get().contains(&number)
    }

    /// Adds one; `false` when there is no place left to remember it.
    pub fn add(&self, number: u32) -> bool {
        let mut list = self.0.get();
        let free = list.iter_mut().find(|place| **place == 0 || **place == number);
        let added = free.map(|place| *place = number).is_some();
        self.0.set(list);
        added
    }
}

/// The controllers of disks that a walk over the buses has met, by their kind.
#[derive(Debug, Default)]
pub struct Controllers {
    met: [Met; ALL.len()],
    /// Controllers that may have disks behind them, and that there is no driver for.
    foreign: heapless::Vec<pci::Function, MAX_FOREIGN>,
}

/// Those of one kind, in the order in which they were met.
#[derive(Debug, Default)]
struct Met {
    functions: heapless::Vec<pci::Function, MAX_FUNCTIONS>,
    /// There are more than those.
    more: bool,
}

impl Controllers {
    /// Walks over the buses for them.
    #[must_use]
    pub fn find<P: Platform>() -> Self {
        let mut controllers = Self::default();
        pci::scan::<P>(|function| {
            controllers.meet(&function);
            true
        });
        controllers
    }

    /// A function that a walk has met: remembered if it is one of them.
    pub fn meet(&mut self, function: &pci::Function) {
        let mut known = false;
        for (met, kind) in self.met.iter_mut().zip(ALL) {
            let is_one = match kind {
                Target::Virtio => virtio::is_block(function),
                Target::Nvme => nvme::is_controller(function),
                Target::Ahci => ahci::is_controller(function),
                Target::Partition(_) => false,
            };
            if is_one {
                known = true;
                met.more |= met.functions.push(*function).is_err();
            }
        }
        if !known && class_name(function.class).is_some() {
            // More than fit would be no help to anybody.
            let _ = self.foreign.push(*function);
        }
    }

    /// The controllers that may have disks behind them and that there is no driver for, for
    /// the message that there is no disk.
    pub fn without_driver(&self) -> impl Iterator<Item = Foreign> + '_ {
        self.foreign.iter().map(|function| Foreign(*function))
    }

    /// Those of a kind, as it stands in [`ALL`].
    fn of(&self, kind: Target) -> Option<&Met> {
        ALL.iter().zip(&self.met).find(|(of, _)| **of == kind).map(|(_, met)| met)
    }
}

/// A controller without a driver, for people:
/// `00:03.0, a SCSI controller (1af4:1048)`.
#[derive(Clone, Copy, Debug)]
pub struct Foreign(pci::Function);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pci::Function { address, vendor, device, class } = self.0;
        let name = class_name(class).unwrap_or("controller");
        write!(f, "{address}, {name} ({vendor:04x}:{device:04x}, class {class:06x})")
    }
}

/// Returns the name of a class of controllers that disks are behind (PCI Code and ID
/// Assignment 1.11, §1.2, §1.9 and §1.13); `None` for every other class.
const fn class_name(class: u32) -> Option<&'static str> {
    Some(match class >> 8 {
        0x01_00 => "SCSI controller",
        0x01_01 => "IDE controller",
        0x01_04 => "RAID controller",
        0x01_05 => "ATA controller",
        0x01_06 => "SATA controller",
        0x01_07 => "SAS controller",
        0x01_08 => "non-volatile memory controller",
        0x01_09 => "UFS controller",
        0x01_02 | 0x01_80 => "mass storage controller",
        0x08_05 => "SD host controller",
        0x0c_03 => "USB controller",
        _ => return None,
    })
}

/// Hands `attempt` every one of the `controllers` that `steps` allow, in the order in which they
/// are tried: what kind of disk it is, and what is wanted of it. Until it is content. At the
/// functions to be `avoided` nothing is touched, and those that miss a deadline are added to them.
pub fn each_function(
    controllers: &Controllers,
    steps: &[Step],
    avoided: &Avoided,
    say: Report<'_>,
    attempt: &mut dyn FnMut(Target, Wanted, &pci::Function) -> Tried,
) {
    for step in steps {
        let (kinds, partition): (&[Target], _) = match &step.target {
            Target::Partition(guid) => (&ALL, Some(*guid)),
            kind => (core::slice::from_ref(kind), None),
        };
        let wanted = Wanted { partition, with: step.with };
        for kind in kinds {
            let Some(met) = controllers.of(*kind) else { continue };
            if met.more {
                let word = kind.word();
                say(format_args!("more than {MAX_FUNCTIONS} of {word}: not all are tried"));
            }
            for function in &met.functions {
                let at = function.address;
                if avoided.has(at.number()) {
                    say(format_args!("{at} missed a deadline before: not touched again"));
                    continue;
                }
                match attempt(*kind, wanted, function) {
                    Tried::Took => return,
                    Tried::Next => {}
                    // With no place left to remember it, no other disk may be opened.
                    Tried::GivenUp if !avoided.add(at.number()) => return,
                    Tried::GivenUp => {}
                }
            }
        }
    }
}

/// Hands `attempt` every disk behind a function; there is one, or one at each port.
pub fn try_function<P: Platform>(
    kind: Target,
    wanted: Wanted,
    function: &pci::Function,
    attempt: &mut Attempt<'_>,
) -> Tried {
    match kind {
        Target::Virtio => try_virtio::<P>(wanted, function, attempt),
        Target::Nvme => try_nvme::<P>(wanted, function, attempt),
        Target::Ahci => try_ahci::<P>(wanted, function, attempt),
        Target::Partition(_) => Tried::Next,
    }
}

// One function for each kind of driver, never inlined: a driver lies on the stack while the
// dump is written, and one frame for all three would hold all three.

#[inline(never)]
fn try_virtio<P: Platform>(
    wanted: Wanted,
    function: &pci::Function,
    attempt: &mut Attempt<'_>,
) -> Tried {
    hand(function.address, wanted, virtio::open::<P>(function), attempt)
}

/// Tries one controller, which has a disk in each of its namespaces.
#[inline(never)]
fn try_nvme<P: Platform>(
    wanted: Wanted,
    function: &pci::Function,
    attempt: &mut Attempt<'_>,
) -> Tried {
    let at = function.address;
    match nvme::open::<P>(function) {
        Ok(mut controller) => {
            let mut next = 0;
            while let Some(id) = controller.namespace(next) {
                next += 1;
                match hand(at, wanted, controller.disk::<P>(id), attempt) {
                    // They share a queue: one command without an answer is in the way of all.
                    tried @ (Tried::Took | Tried::GivenUp) => return tried,
                    Tried::Next => {}
                }
            }
            Tried::Next
        }
        Err(error) => attempt(at, wanted, Err(error)),
    }
}

/// Tries one controller, which has a disk at each of its ports.
#[inline(never)]
fn try_ahci<P: Platform>(
    wanted: Wanted,
    function: &pci::Function,
    attempt: &mut Attempt<'_>,
) -> Tried {
    let at = function.address;
    match ahci::open::<P>(function) {
        Ok(controller) => {
            let ports = controller.ports();
            first_to_take(ports, |port| hand(at, wanted, controller.disk::<P>(port), attempt))
        }
        Err(error) => attempt(at, wanted, Err(error)),
    }
}

/// Tries the disks of one controller in turn until one takes the dump. Otherwise returns
/// `GivenUp` if one of them missed a deadline.
fn first_to_take<T>(disks: impl Iterator<Item = T>, mut attempt: impl FnMut(T) -> Tried) -> Tried {
    let mut worst = Tried::Next;
    for disk in disks {
        match attempt(disk) {
            Tried::Took => return Tried::Took,
            Tried::GivenUp => worst = Tried::GivenUp,
            Tried::Next => {}
        }
    }
    worst
}

/// Resets a function that has answered so far, and takes its way to memory from it: it is as
/// quiet as before it was opened.
///
/// # Errors
/// When it does not come to rest; its way to memory is taken all the same.
pub fn quiet<P: Platform>(kind: Target, function: &pci::Function) -> Result<(), Error> {
    let rested = match kind {
        Target::Virtio => virtio::quiet::<P>(function),
        Target::Nvme => nvme::quiet::<P>(function),
        Target::Ahci => ahci::quiet::<P>(function),
        Target::Partition(_) => Ok(()),
    };
    pci::disable_bus_master::<P>(function.address);
    rested
}

fn hand(
    address: pci::Address,
    wanted: Wanted,
    opened: Result<impl BlockDevice, Error>,
    attempt: &mut Attempt<'_>,
) -> Tried {
    match opened {
        // A CD drive, for one: nothing that anybody expects a dump on.
        Err(Error::NotADisk) => Tried::Next,
        Ok(mut disk) => attempt(address, wanted, Ok(&mut disk)),
        Err(error) => attempt(address, wanted, Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(device: u8, vendor: u16, id: u16, class: u32) -> pci::Function {
        let address = pci::Address { segment: 0, bus: 0, device, function: 0 };
        pci::Function { address, vendor, device: id, class }
    }

    #[test]
    fn controllers_without_a_driver_are_named_by_class_and_ids() {
        let mut controllers = Controllers::default();
        for function in [
            function(0, 0x8086, 0x29c0, 0x06_00_00),
            function(1, 0x1af4, 0x1042, 0x01_00_00),
            function(2, 0x1af4, 0x1048, 0x01_00_00),
            function(3, 0x1b36, 0x0010, 0x01_08_02),
            function(4, 0x8086, 0x7010, 0x01_01_80),
            function(5, 0x1b36, 0x0007, 0x08_05_01),
            function(6, 0x1b36, 0x000d, 0x0c_03_30),
            function(7, 0x8086, 0x100e, 0x02_00_00),
        ] {
            controllers.meet(&function);
        }
        let named: Vec<_> = controllers.without_driver().map(|it| it.to_string()).collect();
        assert_eq!(
            named,
            [
                "00:02.0, SCSI controller (1af4:1048, class 010000)",
                "00:04.0, IDE controller (8086:7010, class 010180)",
                "00:05.0, SD host controller (1b36:0007, class 080501)",
                "00:06.0, USB controller (1b36:000d, class 0c0330)",
            ]
        );
    }

    #[test]
    fn the_eighteenth_disk_is_tried() {
        let mut controllers = Controllers::default();
        (1..19).for_each(|at| controllers.meet(&function(at, 0x1af4, 0x1042, 0x01_00_00)));
        let mut tried = 0;
        let (steps, avoided) = ([Step { target: Target::Virtio, with: None }], Avoided::new([]));
        each_function(&controllers, &steps, &avoided, &mut |_| (), &mut |_, _, _| {
            tried += 1;
            Tried::Next
        });
        assert_eq!(tried, 18);
    }
}
