//! The rate of the counter on machines that are modelled by their timers.

use std::cell::Cell;

use epitaph_firmware::acpi::PmTimer;
use epitaph_firmware::clock::{Rate, Source, Timers, find, nanoseconds, stated};
use epitaph_firmware::hardware::{Ports, Processor};

const TIMER: PmTimer = PmTimer { port: 0x608, wide: false };

/// A machine whose every port access takes 2000 ticks of a counter of `hz`.
#[derive(Default)]
struct Machine {
    hz: u64,
    now: Cell<u64>,
    leaves: Vec<(u32, [u32; 4])>,
    has_timer: bool,
    /// The gate of channel 2, which was opened at `opened`.
    has_pit: bool,
    opened: Cell<Option<u64>>,
}

impl Machine {
    fn counted(&self, since: u64, hz: u64) -> u64 {
        (u128::from(self.now.get() - since) * u128::from(hz) / u128::from(self.hz)) as u64
    }
}

impl Ports for Machine {
    fn read8(&self, port: u16) -> u8 {
        self.now.set(self.now.get() + 2000);
        match (port, self.opened.get()) {
            (0x61, Some(opened)) if self.has_pit => {
                // 2386 counts of 1193182 Hz.
                if self.counted(opened, 1_193_182) >= 2386 { 0x20 } else { 0 }
            }
            (0x61, _) if self.has_pit => 0,
            _ => 0xff,
        }
    }
    fn read16(&self, _: u16) -> u16 {
        u16::MAX
    }
    fn read32(&self, port: u16) -> u32 {
        self.now.set(self.now.get() + 2000);
        let hz = 3_579_545;
        if port == TIMER.port && self.has_timer { self.counted(0, hz) as u32 } else { u32::MAX }
    }
    fn write8(&self, port: u16, value: u8) {
        self.now.set(self.now.get() + 2000);
        if port == 0x61 {
            self.opened.set((value & 1 != 0).then(|| self.now.get()));
        }
    }
    fn write16(&self, _: u16, _: u16) {}
    fn write32(&self, _: u16, _: u32) {}
}

impl Processor for Machine {
    fn counter(&self) -> u64 {
        self.now.set(self.now.get() + 20);
        self.now.get()
    }
    fn cpuid(&self, leaf: u32) -> Option<[u32; 4]> {
        self.leaves.iter().find(|(number, _)| *number == leaf).map(|(_, registers)| *registers)
    }
}

fn by_leaves(leaves: &[(u32, [u32; 4])]) -> Option<(Source, u64)> {
    let machine = Machine { leaves: leaves.to_vec(), ..Machine::default() };
    stated(&machine).map(|rate| (rate.source, rate.hz))
}

#[test]
fn the_processor_goes_before_the_hypervisor() {
    let ratio = (0x15, [2, 176, 24_000_000, 0]);
    let virtual_ = (1, [0, 0, 1 << 31, 0]);
    let hypervisor = (0x4000_0010, [2_500_000, 0, 0, 0]);
    assert_eq!(by_leaves(&[ratio, virtual_, hypervisor]), Some((Source::Cpuid, 2_112_000_000)));
    // Without the crystal's rate by the base frequency, 3 GHz; the upper half is reserved.
    let unknown = (0x15, [2, 176, 0, 0]);
    let base = (0x16, [0xabcd_0bb8, 0, 0, 0]);
    assert_eq!(by_leaves(&[unknown, base]), Some((Source::Cpuid, 3_000_000_000)));
    assert_eq!(by_leaves(&[unknown]), None);
    assert_eq!(by_leaves(&[(0x15, [0, 1, 1, 0])]), None);
    // A rate that no processor has; a hypervisor's leaf on a machine that says it has none.
    let absurd = (0x15, [1, u32::MAX, u32::MAX, 0]);
    let said = by_leaves(&[absurd, virtual_, hypervisor]);
    assert_eq!(said, Some((Source::Hypervisor, 2_500_000_000)));
    assert_eq!(by_leaves(&[hypervisor]), None);
}

/// Returns true if `rate` is within a part in 64 of `hz`, and was confirmed.
fn is_near(rate: Rate, hz: u64) -> bool {
    rate.unsure.is_none() && rate.hz.abs_diff(hz) < hz / 64
}

#[test]
fn the_rate_is_measured_by_the_timer_that_is_there() {
    for hz in [800_000_000, 2_650_000_000, 5_000_000_000] {
        let machine = Machine { hz, has_timer: true, ..Machine::default() };
        let rate = find(&machine, Some(TIMER), Timers::Quick);
        assert!(rate.source == Source::PmTimer && is_near(rate, hz), "{rate:?}");
        let machine = Machine { hz, has_pit: true, ..Machine::default() };
        let rate = find(&machine, None, Timers::Quick);
        assert!(rate.source == Source::Pit && is_near(rate, hz), "{rate:?}");
    }
}

#[test]
fn a_machine_without_timers_is_given_up_in_time() {
    let machine = Machine { hz: 2_000_000_000, ..Machine::default() };
    let rate = find(&machine, Some(TIMER), Timers::Quick);
    assert_eq!((rate.source, rate.unsure), (Source::Assumed, Some(u64::MAX)));
    assert!(machine.now.get() < 2_000_000_000, "{} ticks", machine.now.get());
}

#[test]
fn ticks_become_nanoseconds_without_overflow() {
    assert_eq!(nanoseconds(3_000, 2_000_000_000), 1_500);
    assert_eq!(nanoseconds(u64::MAX, 1), u64::MAX);
    assert_eq!(nanoseconds(1, 0), 0);
}
