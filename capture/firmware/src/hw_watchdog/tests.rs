//! Both watchdogs as models of their registers.

extern crate std;

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

/// Registers by space and address; a write is remembered and read back.
#[derive(Default)]
struct Machine {
    config: RefCell<BTreeMap<u32, u32>>,
    selected: RefCell<u32>,
    ports: RefCell<BTreeMap<u16, u32>>,
    memory: RefCell<BTreeMap<u64, u32>>,
    writes: RefCell<std::vec::Vec<(u64, u32)>>,
}

impl Machine {
    fn read(&self, port: u16) -> u32 {
        match port {
            CONFIG_DATA => {
                self.config.borrow().get(&self.selected.borrow()).copied().unwrap_or(u32::MAX)
            }
            _ => self.ports.borrow().get(&port).copied().unwrap_or(u32::MAX),
        }
    }

    fn write(&self, port: u16, value: u32) {
        match port {
            CONFIG_ADDRESS => *self.selected.borrow_mut() = value,
            CONFIG_DATA => {
                self.config.borrow_mut().insert(*self.selected.borrow(), value);
                self.writes.borrow_mut().push((u64::from(*self.selected.borrow()), value));
            }
            _ => {
                self.ports.borrow_mut().insert(port, value);
                self.writes.borrow_mut().push((port.into(), value));
            }
        }
    }

    fn put(&self, selector: u32, value: u32) {
        self.config.borrow_mut().insert(selector, value);
    }

    /// An ICH9 with its ACPI ports at 600h, and chipset registers at FED1_C000h.
    fn ich9(no_reboot: bool) -> Self {
        let machine = Self::default();
        machine.put(LPC | CONFIG_ID, 0x2918_8086);
        machine.put(LPC | LPC_ACPI_BASE, 0x601);
        machine.put(LPC | LPC_ACPI_CONTROL, 0x80);
        machine.put(LPC | LPC_ROOT_COMPLEX, 0xfed1_c001);
        machine.memory.borrow_mut().insert(0xfed1_f410, if no_reboot { NO_REBOOT } else { 0 });
        machine.ports.borrow_mut().insert(0x660 + TCO_CONTROL_1, TCO_HALT.into());
        machine.ports.borrow_mut().insert(0x660 + TCO_COUNT, 0xfc04);
        machine
    }

    fn esb() -> Self {
        let machine = Self::default();
        let function = CONFIG_ENABLE | 4 << 11;
        machine.put(function, ID_6300ESB);
        machine.put(function | CONFIG_COMMAND, 0);
        machine.put(function | CONFIG_BAR0, 0xfea0_0000);
        machine.put(function | ESB_LOCK, 0);
        machine
    }
}

impl Ports for Machine {
    fn read8(&self, port: u16) -> u8 {
        self.read(port) as u8
    }
    fn read16(&self, port: u16) -> u16 {
        self.read(port) as u16
    }
    fn read32(&self, port: u16) -> u32 {
        self.read(port)
    }
    fn write8(&self, port: u16, value: u8) {
        self.write(port, value.into());
    }
    fn write16(&self, port: u16, value: u16) {
        self.write(port, value.into());
    }
    fn write32(&self, port: u16, value: u32) {
        self.write(port, value);
    }
}

impl Registers for Machine {
    fn read_memory8(&self, address: u64) -> u8 {
        self.read_memory32(address) as u8
    }
    fn read_memory16(&self, address: u64) -> u16 {
        self.read_memory32(address) as u16
    }
    fn read_memory32(&self, address: u64) -> u32 {
        self.memory.borrow().get(&address).copied().unwrap_or(0)
    }
    fn write_memory8(&self, address: u64, value: u8) {
        self.write_memory32(address, value.into());
    }
    fn write_memory16(&self, address: u64, value: u16) {
        self.write_memory32(address, value.into());
    }
    fn write_memory32(&self, address: u64, value: u32) {
        self.memory.borrow_mut().insert(address, value);
        self.writes.borrow_mut().push((address, value));
    }
}

#[test]
fn looking_finds_both_and_changes_nothing() {
    assert_eq!(HwWatchdog::look(&Machine::default()), None);
    let tco = Machine::ich9(true);
    assert_eq!(HwWatchdog::look(&tco), Some(HwWatchdog::Tco(0x660)));
    let esb = Machine::esb();
    let found = HwWatchdog::look(&esb).expect("a watchdog");
    assert_eq!(found, HwWatchdog::Esb(CONFIG_ENABLE | 4 << 11, 0xfea0_0000));
    assert!(!found.is_running(&esb));
    assert!(tco.writes.borrow().is_empty() && esb.writes.borrow().is_empty());
}

#[test]
fn a_tco_timer_runs_only_where_it_can_reset() {
    let machine = Machine::ich9(true);
    let tco = HwWatchdog::look(&machine).expect("a watchdog");
    tco.arm(&machine, 30_000);
    assert!(!tco.is_running(&machine), "no reboot");
    assert!(tco.prepare(&machine) && tco.is_running(&machine));
    // 15 s by 0.6 s; the other bits of the register stay.
    assert_eq!(machine.read16(0x660 + TCO_COUNT), 0xfc19);
    machine.writes.borrow_mut().clear();
    tco.feed(&machine);
    let fed = [(0x664, u32::from(TCO_ENDED)), (0x660, 1)];
    assert_eq!(*machine.writes.borrow(), fed);
    tco.disarm(&machine);
    assert!(!tco.is_running(&machine));
}

#[test]
fn a_6300esb_is_armed_fed_and_stopped() {
    let machine = Machine::esb();
    let esb = HwWatchdog::look(&machine).expect("a watchdog");
    assert!(esb.prepare(&machine));
    esb.arm(&machine, 30_000);
    assert!(esb.is_running(&machine));
    assert_eq!(machine.read_memory32(0xfea0_0000 + ESB_COUNT_2), 15_000);
    machine.writes.borrow_mut().clear();
    esb.feed(&machine);
    let reload = 0xfea0_0000 + ESB_RELOAD;
    let fed = [(reload, 0x80), (reload, 0x86), (reload, u32::from(ESB_FEED))];
    assert_eq!(*machine.writes.borrow(), fed);
    esb.disarm(&machine);
    assert!(!esb.is_running(&machine));
    // What fired is told once.
    machine.memory.borrow_mut().insert(reload, ESB_ENDED.into());
    assert!(esb.has_fired(&machine));
    assert_eq!(machine.read_memory16(reload), ESB_ENDED, "written as a one");
}

#[test]
fn facts_describe_a_watchdog_and_wild_ones_are_no_panic() {
    for watchdog in [HwWatchdog::Tco(0x660), HwWatchdog::Esb(0x8000_2000, 0xfea0_0000)] {
        assert_eq!(HwWatchdog::from_facts(&watchdog.facts(1)), Some(watchdog));
    }
    let machine = Machine::ich9(false);
    for watchdog in [HwWatchdog::Tco(u16::MAX), HwWatchdog::Esb(u32::MAX, u64::MAX)] {
        watchdog.arm(&machine, u64::MAX);
        watchdog.feed(&machine);
        watchdog.disarm(&machine);
    }
}
