//! A platform and a virtio device made of ordinary memory, for the tests.
#![expect(unsafe_code, reason = "plays the device: follows the addresses in the rings")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::Rc;

use virtio_drivers::Error;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Platform, pci};

thread_local! {
    /// Time, 1 ms later whenever somebody looks.
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// Pages for drivers that are left.
    pub static PAGES_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Configuration space of segment 0: words by bus, device, function and offset.
    pub static CONFIG: RefCell<HashMap<(u8, u8, u8, u8), u32>> = RefCell::default();
    /// Root buses, by segment.
    pub static ROOTS: RefCell<Vec<(u16, u8)>> = RefCell::new(vec![(0, 0)]);
    /// Which bits of a word can be written; all of them where nothing is said.
    pub static MASKS: RefCell<HashMap<(u8, u8, u8, u8), u32>> = RefCell::default();
}

pub struct Fake;

// SAFETY: pages are leaked, so each is handed out once; there is no device memory.
unsafe impl Platform for Fake {
    fn pci_read(at: pci::Address, offset: u8) -> u32 {
        if at.segment != 0 {
            // One device, on bus 8 of every other segment.
            let there = (at.bus, at.device, at.function, offset) == (8, 1, 0, 0);
            return if there { 0x1042_1af4 } else { u32::MAX };
        }
        let key = (at.bus, at.device, at.function, offset);
        CONFIG.with_borrow(|config| {
            let absent = !config.contains_key(&(at.bus, at.device, at.function, 0));
            config.get(&key).copied().unwrap_or(if absent { u32::MAX } else { 0 })
        })
    }

    fn pci_write(at: pci::Address, offset: u8, value: u32) {
        let key = (at.bus, at.device, at.function, offset);
        let mask = MASKS.with_borrow(|masks| masks.get(&key).copied().unwrap_or(u32::MAX));
        CONFIG.with_borrow_mut(|config| {
            let word = config.entry(key).or_default();
            *word = *word & !mask | value & mask;
        });
    }

    fn pci_root(index: usize) -> Option<(u16, u8)> {
        ROOTS.with_borrow(|roots| roots.get(index).copied())
    }

    fn map_mmio(_physical: u64, _bytes: u64) -> Option<NonNull<u8>> {
        None
    }

    fn dma_pages(pages: usize) -> Option<NonNull<u8>> {
        #[repr(align(4096))]
        struct Page(#[expect(dead_code, reason = "only its size counts")] [u8; 4096]);
        PAGES_LEFT.set(PAGES_LEFT.get().checked_sub(pages)?);
        let memory: Vec<Page> = (0..pages).map(|_| Page([0; 4096])).collect();
        Some(NonNull::from(memory.leak()).cast())
    }

    fn now_ns() -> u64 {
        NOW.set(NOW.get() + 1_000_000);
        NOW.get()
    }
}

/// Lets `milliseconds` go by between two looks at the clock, as for a machine that is paused.
pub fn pause_ms(milliseconds: u64) {
    NOW.set(NOW.get() + milliseconds * 1_000_000);
}

/// How the device behaves, and what it saw.
#[derive(Default)]
pub struct Device {
    pub features: u64,
    pub config: [u32; 16],
    pub disk: Vec<u8>,
    pub serial: [u8; 20],
    /// Notifications are not acted upon.
    pub silent: bool,
    /// Entries that a queue may have, 256 otherwise.
    pub longest_queue: Option<u32>,
    /// Requests for this sector fail.
    pub bad_sector: Option<u64>,
    /// A status of zero is not taken.
    pub never_resets: bool,
    /// FEATURES_OK is not taken.
    pub refuses: bool,
    pub status: u32,
    pub notified: u64,
    pub flushed: u64,
    /// Flushes fail.
    pub bad_flush: bool,
    /// Bytes of the longest buffer of data so far.
    pub longest_data: usize,
    queue: [u64; 3],
    queue_size: u16,
    taken: u16,
    answered: u16,
}

#[derive(Clone, Default)]
pub struct FakeTransport(pub Rc<RefCell<Device>>);

impl Device {
    /// Does everything that stands in the available ring.
    pub fn work(&mut self) {
        let [_, available, _] = self.queue;
        loop {
            // SAFETY: the driver has put its rings there, with the layout of virtio 1.2
            // §2.7, and waits while the device works.
            unsafe {
                let index = ((available + 2) as *const u16).read_volatile();
                if index == self.taken {
                    return;
                }
                let entry = u64::from(self.taken % self.queue_size);
                let head = ((available + 4 + 2 * entry) as *const u16).read_volatile();
                self.serve(head);
                self.taken = self.taken.wrapping_add(1);
                self.answer(head);
            }
        }
    }

    /// Puts the request at descriptor `head` into the used ring, whether it was made or not.
    pub fn answer(&mut self, head: u16) {
        let used = self.queue[2];
        let slot = used + 4 + 8 * u64::from(self.answered % self.queue_size);
        self.answered = self.answered.wrapping_add(1);
        // SAFETY: as in `work`.
        unsafe {
            (slot as *mut u32).write_volatile(u32::from(head));
            ((used + 2) as *mut u16).write_volatile(self.answered);
        }
    }

    /// Serves the request whose chain of descriptors starts at `head`.
    ///
    /// # Safety
    /// The chain and its buffers are the driver's.
    unsafe fn serve(&mut self, head: u16) {
        let mut buffers: Vec<&mut [u8]> = Vec::new();
        let mut next = head;
        loop {
            let descriptor = self.queue[0] + 16 * u64::from(next);
            // SAFETY: the caller's promise.
            let flags = unsafe {
                let address = (descriptor as *const u64).read_volatile();
                let bytes = ((descriptor + 8) as *const u32).read_volatile();
                buffers.push(std::slice::from_raw_parts_mut(address as *mut u8, bytes as usize));
                next = ((descriptor + 14) as *const u16).read_volatile();
                ((descriptor + 12) as *const u16).read_volatile()
            };
            if flags & 1 == 0 {
                break;
            }
        }
        let (header, rest) = buffers.split_first_mut().expect("a header");
        let (status, data) = rest.split_last_mut().expect("a status");
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..16].try_into().unwrap());
        let at = sector as usize * 512;
        self.longest_data = self.longest_data.max(data.first().map_or(0, |data| data.len()));
        status[0] = match kind {
            0 | 1 if self.bad_sector == Some(sector) => 1,
            0 => {
                let bytes = data[0].len();
                data[0].copy_from_slice(&self.disk[at..at + bytes]);
                0
            }
            1 => {
                self.disk[at..at + data[0].len()].copy_from_slice(data[0]);
                0
            }
            4 => {
                self.flushed += 1;
                u8::from(self.bad_flush)
            }
            8 => {
                data[0].copy_from_slice(&self.serial);
                0
            }
            _ => 2,
        };
    }
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().features
    }

    fn write_driver_features(&mut self, features: u64) {
        assert_eq!(features & !self.0.borrow().features, 0);
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        self.0.borrow().longest_queue.unwrap_or(256)
    }

    fn notify(&mut self, _queue: u16) {
        let mut device = self.0.borrow_mut();
        device.notified += 1;
        if !device.silent {
            device.work();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.borrow().status)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let mut device = self.0.borrow_mut();
        if !(status.is_empty() && device.never_resets) {
            device.status = status.bits();
        }
        if device.refuses {
            device.status &= !DeviceStatus::FEATURES_OK.bits();
        }
    }

    fn set_guest_page_size(&mut self, _bytes: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, _queue: u16, size: u32, table: u64, available: u64, used: u64) {
        let mut device = self.0.borrow_mut();
        device.queue = [table, available, used];
        device.queue_size = size as u16;
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, _queue: u16) -> bool {
        false
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let device = self.0.borrow();
        let bytes = &device.config.as_bytes()[offset..offset + size_of::<T>()];
        T::read_from_bytes(bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}
