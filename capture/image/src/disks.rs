//! The disks of the machine, one after the other, in the order they are wanted.

use block::{BlockDevice, Error, ahci, nvme, pci, virtio};
use capture_image::target::{ALL, Target, Targets};
use vmcore_format::gpt::Guid;

use crate::console::say;
use crate::physical::Machine;

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

/// Ends what the crashed system's devices do to memory by themselves. Each disk gets the
/// right back when it is opened, after its reset.
pub fn silence() {
    let silenced = pci::silence::<Machine>();
    say!("capture: bus mastering off, functions that had it: {silenced}");
}

/// Opens every disk that `targets` allow, one at a time, until `attempt` is content. A disk
/// that is left behind is only opened again when another partition is looked for.
pub fn each(targets: &Targets, attempt: &mut Attempt<'_>) {
    let mut given_up: heapless::Vec<pci::Address, MAX_FUNCTIONS> = heapless::Vec::new();
    for target in targets {
        let (kinds, partition): (&[Target], _) = match target {
            Target::Partition(guid) => (&ALL, Some(*guid)),
            kind => (core::slice::from_ref(kind), None),
        };
        for kind in kinds {
            for function in &functions(*kind) {
                if given_up.contains(&function.address) {
                    continue;
                }
                match try_function(*kind, partition, function, attempt) {
                    Tried::Took => return,
                    Tried::Next => {}
                    // With no place left to remember it, no other disk may be opened.
                    Tried::GivenUp if given_up.push(function.address).is_err() => return,
                    Tried::GivenUp => {}
                }
            }
        }
    }
}

fn functions(target: Target) -> heapless::Vec<pci::Function, MAX_FUNCTIONS> {
    let mut functions = heapless::Vec::new();
    pci::scan::<Machine>(|function| {
        let wanted = match target {
            Target::Virtio => virtio::is_block(&function),
            Target::Nvme => nvme::is_controller(&function),
            Target::Ahci => ahci::is_controller(&function),
            Target::Partition(_) => false,
        };
        let kept = !wanted || functions.push(function).is_ok();
        if !kept {
            say!("capture: more than {MAX_FUNCTIONS} of {}: not all are tried", target.word());
        }
        kept
    });
    functions
}

fn try_function(
    kind: Target,
    partition: Option<Guid>,
    function: &pci::Function,
    attempt: &mut Attempt<'_>,
) -> Tried {
    let at = function.address;
    match kind {
        Target::Virtio => hand(at, partition, virtio::open::<Machine>(function), attempt),
        Target::Nvme => hand(at, partition, nvme::open::<Machine>(function), attempt),
        // One controller, and a disk at each of its ports.
        Target::Ahci => match ahci::open::<Machine>(function) {
            Ok(controller) => {
                let mut worst = Tried::Next;
                for port in controller.ports() {
                    match hand(at, partition, controller.disk::<Machine>(port), attempt) {
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
