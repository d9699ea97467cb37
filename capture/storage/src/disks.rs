//! The disks of the machine, one after the other, in the order they are wanted.

use core::cell::Cell;
use core::fmt;

use block::{BlockDevice, Error, Platform, ahci, nvme, pci, virtio};
use vmcore_format::gpt::Guid;

use crate::target::{ALL, Step, Target};

/// Functions looked at, of each kind.
const MAX_FUNCTIONS: usize = 16;

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
pub struct Controllers([Met; ALL.len()]);

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
        for (met, kind) in self.0.iter_mut().zip(ALL) {
            let is_one = match kind {
                Target::Virtio => virtio::is_block(function),
                Target::Nvme => nvme::is_controller(function),
                Target::Ahci => ahci::is_controller(function),
                Target::Partition(_) => false,
            };
            if is_one {
                met.more |= met.functions.push(*function).is_err();
            }
        }
    }

    /// Those of a kind, as it stands in [`ALL`].
    fn of(&self, kind: Target) -> Option<&Met> {
        ALL.iter().zip(&self.0).find(|(of, _)| **of == kind).map(|(_, met)| met)
    }
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
    let at = function.address;
    match kind {
        Target::Virtio => hand(at, wanted, virtio::open::<P>(function), attempt),
        Target::Nvme => hand(at, wanted, nvme::open::<P>(function), attempt),
        // One controller, and a disk at each of its ports.
        Target::Ahci => match ahci::open::<P>(function) {
            Ok(controller) => {
                let mut worst = Tried::Next;
                for port in controller.ports() {
                    match hand(at, wanted, controller.disk::<P>(port), attempt) {
                        Tried::Took => return Tried::Took,
                        Tried::GivenUp => worst = Tried::GivenUp,
                        Tried::Next => {}
                    }
                }
                worst
            }
            Err(error) => attempt(at, wanted, Err(error)),
        },
        Target::Partition(_) => Tried::Next,
    }
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
