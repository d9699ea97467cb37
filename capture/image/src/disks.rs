//! The disks of the machine, one after the other, in the order they are wanted.

use block::{BlockDevice, Error, ahci, nvme, pci, virtio};
use capture_image::target::{Target, Targets};

use crate::console::say;
use crate::physical::Machine;

/// Functions looked at, of each kind.
const MAX_FUNCTIONS: usize = 16;

/// Tries a disk, or hears why it could not be opened; `true` ends the search.
pub type Attempt<'a> = dyn FnMut(pci::Address, Result<&mut dyn BlockDevice, Error>) -> bool + 'a;

/// Ends what the crashed system's devices do to memory by themselves. Each disk gets the
/// right back when it is opened, after its reset.
pub fn silence() {
    let silenced = pci::silence::<Machine>();
    say!("capture: bus mastering off, functions that had it: {silenced}");
}

/// Opens every disk that `targets` allow, one at a time, until `attempt` is content. A disk
/// that an attempt has left behind is not touched again.
pub fn each(targets: &Targets, attempt: &mut Attempt<'_>) {
    for target in targets {
        for function in functions(*target) {
            if try_function(*target, &function, attempt) {
                return;
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
        };
        let kept = !wanted || functions.push(function).is_ok();
        if !kept {
            say!("capture: more than {MAX_FUNCTIONS} of {}: not all are tried", target.word());
        }
        kept
    });
    functions
}

fn try_function(target: Target, function: &pci::Function, attempt: &mut Attempt<'_>) -> bool {
    match target {
        Target::Virtio => hand(function, virtio::open::<Machine>(function), attempt),
        Target::Nvme => hand(function, nvme::open::<Machine>(function), attempt),
        // One controller, and a disk at each of its ports.
        Target::Ahci => match ahci::open::<Machine>(function) {
            Ok(controller) => controller
                .ports()
                .any(|port| hand(function, controller.disk::<Machine>(port), attempt)),
            Err(error) => attempt(function.address, Err(error)),
        },
    }
}

fn hand(
    function: &pci::Function,
    opened: Result<impl BlockDevice, Error>,
    attempt: &mut Attempt<'_>,
) -> bool {
    match opened {
        // A CD drive, for one: nothing that anybody expects a dump on.
        Err(Error::NotADisk) => false,
        Ok(mut disk) => attempt(function.address, Ok(&mut disk)),
        Err(error) => attempt(function.address, Err(error)),
    }
}
