//! Addresses for the registers of functions, where the firmware has given none.
//!
//! Firmware that boots a kernel and nothing else leaves this to the kernel. Firmware that
//! has given an address to anyone has given one to everyone who was to have one, and is left
//! alone.

use super::{BAR0, BARS, COMMAND, COMMAND_MEMORY, Function, HEADER, memory_bar, scan};
use crate::Platform;
use crate::pci::Address;

/// Functions looked at; a machine that boots like this has few.
const MAX_FUNCTIONS: usize = 64;
/// No register file is larger; what asks for more is not served.
const MAX_BYTES: u64 = 1 << 30;

/// Gives every memory base address register of every ordinary function an address in
/// `[start, end)`, which the host bridge passes on to PCI; returns how many got one.
///
/// Does nothing when one has an address already. What does not fit goes without.
pub fn assign<P: Platform>(start: u64, end: u64) -> usize {
    let mut functions: heapless::Vec<Function, MAX_FUNCTIONS> = heapless::Vec::new();
    scan::<P>(|function| functions.push(function).is_ok());
    // Only ordinary functions: what lies behind a bridge would need the bridge's windows.
    functions.retain(|function| {
        function.address.bus == 0 && P::pci_read(function.address, HEADER) >> 16 & 0x7f == 0
    });
    let has_one = |function: &Function| {
        (0..BARS).any(|index| memory_bar::<P>(function.address, index).is_some())
    };
    if functions.iter().any(has_one) {
        return 0;
    }
    let (mut next, mut given) = (start, 0);
    for function in &functions {
        let mut index = 0;
        while index < BARS {
            let wide = is_wide::<P>(function.address, index);
            if let Some(bar) = Bar::measure::<P>(function.address, index, wide)
                && let Some(place) = bar.place(next, end)
            {
                bar.set::<P>(function.address, place);
                next = place + bar.bytes;
                given += 1;
            }
            index += if wide { 2 } else { 1 };
        }
    }
    given
}

/// Whether register `index` is the lower half of an address of 64 bits.
fn is_wide<P: Platform>(address: Address, index: u8) -> bool {
    P::pci_read(address, BAR0 + 4 * index) & 0b111 == 0b100 && index + 1 < BARS
}

/// A base address register for memory (PCI Local Bus Specification 3.0, §6.2.5.1).
struct Bar {
    index: u8,
    bytes: u64,
    wide: bool,
}

impl Bar {
    /// Asks register `index` how much it wants; `None` when it is none for memory.
    fn measure<P: Platform>(address: Address, index: u8, wide: bool) -> Option<Self> {
        let register = |index: u8| BAR0 + 4 * index;
        let before = P::pci_read(address, register(index));
        if before & 1 != 0 {
            return None;
        }
        // While it is asked, the function must not answer to the address that is written.
        let command = P::pci_read(address, COMMAND) & 0xffff;
        P::pci_write(address, COMMAND, command & !COMMAND_MEMORY);
        let ask = |index: u8| {
            let before = P::pci_read(address, register(index));
            P::pci_write(address, register(index), u32::MAX);
            let answer = P::pci_read(address, register(index));
            P::pci_write(address, register(index), before);
            answer
        };
        let low = ask(index) & !0xf;
        let high = if wide { ask(index + 1) } else { u32::MAX };
        P::pci_write(address, COMMAND, command);
        let mask = u64::from(high) << 32 | u64::from(low);
        // No bit of the address can be set: there is no such register.
        if low == 0 && (!wide || high == 0) {
            return None;
        }
        let bytes = mask.wrapping_neg();
        (bytes.is_power_of_two() && bytes <= MAX_BYTES).then_some(Self { index, bytes, wide })
    }

    /// Where it fits from `next` on and before `end`, naturally aligned.
    fn place(&self, next: u64, end: u64) -> Option<u64> {
        let place = next.checked_next_multiple_of(self.bytes)?;
        let end = if self.wide { end } else { end.min(1 << 32) };
        place.checked_add(self.bytes).filter(|last| *last <= end).map(|_| place)
    }

    fn set<P: Platform>(&self, address: Address, place: u64) {
        P::pci_write(address, BAR0 + 4 * self.index, place as u32);
        if self.wide {
            P::pci_write(address, BAR0 + 4 * (self.index + 1), (place >> 32) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::{CONFIG, Fake, MASKS};

    const ID: u8 = 0;

    /// Function 0 of a device whose registers take `masks`, as they read before.
    fn device(device: u8, registers: [(u32, u32); 6]) -> Address {
        let address = Address { segment: 0, bus: 0, device, function: 0 };
        Fake::pci_write(address, ID, 0x1042_1af4);
        for ((value, mask), offset) in registers.into_iter().zip((BAR0..).step_by(4)) {
            Fake::pci_write(address, offset, value);
            MASKS.with_borrow_mut(|masks| masks.insert((0, device, 0, offset), mask));
        }
        address
    }

    fn bars(address: Address) -> [u32; 6] {
        core::array::from_fn(|index| Fake::pci_read(address, BAR0 + 4 * index as u8))
    }

    #[test]
    fn registers_get_addresses_that_fit_their_size() {
        let none = (0, 0);
        let one = device(
            1,
            // I/O ports, 4 KiB, none, none, 16 KiB of 64 bits that are prefetchable.
            [(1, 0xffff_ffc0), (0, 0xffff_f000), none, none, (0xc, 0xffff_c000), (0, u32::MAX)],
        );
        // 1 MiB, and more than there is.
        let two = device(2, [(0, 0xfff0_0000), none, (0, 0x8000_0000), none, none, none]);
        Fake::pci_write(one, COMMAND, COMMAND_MEMORY);
        assert_eq!(assign::<Fake>(0xc000_0000, 0xc100_0000), 3);
        assert_eq!(bars(one), [1, 0xc000_0000, 0, 0, 0xc000_400c, 0]);
        assert_eq!(bars(two), [0xc010_0000, 0, 0, 0, 0, 0]);
        assert_eq!(Fake::pci_read(one, COMMAND), COMMAND_MEMORY);
        // Now somebody has one, so nobody is given another.
        let before = CONFIG.with_borrow(Clone::clone);
        assert_eq!(assign::<Fake>(0xd000_0000, 0xd100_0000), 0);
        assert_eq!(CONFIG.with_borrow(Clone::clone), before);
    }

    #[test]
    fn a_register_of_32_bits_gets_no_address_above_them() {
        let none = (0, 0);
        let registers = [(0, 0xffff_f000), (0x4, 0xffff_f000), (0, u32::MAX), none, none, none];
        let address = device(3, registers);
        assert_eq!(assign::<Fake>(0xc0_0000_0000, 0xc1_0000_0000), 1);
        assert_eq!(bars(address), [0, 4, 0xc0, 0, 0, 0]);
    }
}
