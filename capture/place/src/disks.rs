//! The disks of the machine, one after the other, in the order they are wanted.

use core::fmt;

use block::{BlockDevice, Error, Platform, ahci, nvme, pci, virtio};
use vmcore_format::gpt::Guid;

use crate::target::{ALL, Target, Targets};

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

/// Tries a disk, or a partition of it, or hears why it could not be opened.
pub type Attempt<'a> =
    dyn FnMut(pci::Address, Option<Guid>, Result<&mut dyn BlockDevice, Error>) -> Tried + 'a;

/// Where a line about the search goes.
pub type Say<'a> = &'a mut dyn FnMut(fmt::Arguments<'_>);

/// Opens every disk that `targets` allow, one at a time, until `attempt` is content. A disk
/// that is left behind is only opened again when another partition is looked for; at the
/// functions `given_up` before, by their [numbers](pci::Address::number), nothing is touched.
pub fn each<P: Platform>(
    targets: &Targets,
    given_up: &[u16],
    say: Say<'_>,
    attempt: &mut Attempt<'_>,
) {
    each_function::<P>(targets, given_up, say, &mut |kind, partition, function| {
        try_function::<P>(kind, partition, function, attempt)
    });
}

/// Hands `attempt` every function that `targets` allow, in the order in which they are tried:
/// what kind of disk it is, and the partition that is wanted, if it has to be that one. Until
/// it is content; a function that missed a deadline is not handed out again.
pub fn each_function<P: Platform>(
    targets: &Targets,
    given_up: &[u16],
    say: Say<'_>,
    attempt: &mut dyn FnMut(Target, Option<Guid>, &pci::Function) -> Tried,
) {
    let before = given_up;
    let mut given_up: heapless::Vec<u16, MAX_FUNCTIONS> = heapless::Vec::new();
    for target in targets {
        let (kinds, partition): (&[Target], _) = match target {
            Target::Partition(guid) => (&ALL, Some(*guid)),
            kind => (core::slice::from_ref(kind), None),
        };
        for kind in kinds {
            for function in &functions::<P>(*kind, say) {
                let number = function.address.number();
                if before.contains(&number) {
                    let at = function.address;
                    say(format_args!("{at} missed a deadline before: not touched again"));
                    continue;
                }
                if given_up.contains(&number) {
                    continue;
                }
                match attempt(*kind, partition, function) {
                    Tried::Took => return,
                    Tried::Next => {}
                    // With no place left to remember it, no other disk may be opened.
                    Tried::GivenUp if given_up.push(number).is_err() => return,
                    Tried::GivenUp => {}
                }
            }
        }
    }
}

fn functions<P: Platform>(
    target: Target,
    say: Say<'_>,
) -> heapless::Vec<pci::Function, MAX_FUNCTIONS> {
    let mut functions = heapless::Vec::new();
    pci::scan::<P>(|function| {
        let wanted = match target {
            Target::Virtio => virtio::is_block(&function),
            Target::Nvme => nvme::is_controller(&function),
            Target::Ahci => ahci::is_controller(&function),
            Target::Partition(_) => false,
        };
        let kept = !wanted || functions.push(function).is_ok();
        if !kept {
            say(format_args!("more than {MAX_FUNCTIONS} of {}: not all are tried", target.word()));
        }
        kept
    });
    functions
}

/// Hands `attempt` every disk behind a function; there is one, or one at each port.
pub fn try_function<P: Platform>(
    kind: Target,
    partition: Option<Guid>,
    function: &pci::Function,
    attempt: &mut Attempt<'_>,
) -> Tried {
    let at = function.address;
    match kind {
        Target::Virtio => hand(at, partition, virtio::open::<P>(function), attempt),
        Target::Nvme => hand(at, partition, nvme::open::<P>(function), attempt),
        // One controller, and a disk at each of its ports.
        Target::Ahci => match ahci::open::<P>(function) {
            Ok(controller) => {
                let mut worst = Tried::Next;
                for port in controller.ports() {
                    match hand(at, partition, controller.disk::<P>(port), attempt) {
                        Tried::Took => return Tried::Took,
                        Tried::GivenUp => worst = Tried::GivenUp,
                        Tried::Next => {}
                    }
                }
                worst
            }
            Err(error) => attempt(at, partition, Err(error)),
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
    partition: Option<Guid>,
    opened: Result<impl BlockDevice, Error>,
    attempt: &mut Attempt<'_>,
) -> Tried {
    match opened {
        // A CD drive, for one: nothing that anybody expects a dump on.
        Err(Error::NotADisk) => Tried::Next,
        Ok(mut disk) => attempt(address, partition, Ok(&mut disk)),
        Err(error) => attempt(address, partition, Err(error)),
    }
}
