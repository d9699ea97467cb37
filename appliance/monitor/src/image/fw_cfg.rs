//! QEMU's `fw_cfg` device: kernel, initrd and the mode (QEMU, `docs/specs/fw_cfg.rst`).
//!
//! Everything comes by DMA, which reaches the client's memory only: the order and small items
//! lie in scratch memory in front of the kernel.

use epitaph_monitor::boot::{self, Placement, fw_cfg as items};

use super::{fatal, mmio, processor};

/// The register that takes the address of an order, big endian; its second half starts it.
const DMA: usize = 0x0902_0010;
/// The order: 4 bytes of control, 4 of length, 8 of address, all big endian.
const ORDER: usize = super::MEMORY as usize + super::TREE_ROOM;
/// Where small items go.
const SCRATCH: usize = ORDER + 16;
/// Bits of the control word. The item to select stands in bits 31–16.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SELECT: u32 = 1 << 3;
/// Polls of a transfer, which QEMU has finished by the time the register is written.
const POLLS: usize = 1 << 20;
/// Files that are looked at; QEMU has some twenty of its own.
const FILES: u32 = 256;

/// Reads `length` bytes of `item`, from its start, to `address`.
fn select(item: u16, address: u64, length: u32) {
    transfer(u32::from(item) << 16 | SELECT | READ, address, length);
}

/// Reads the next `length` bytes of the selected item to `address`.
fn transfer(control: u32, address: u64, length: u32) {
    mmio::write(ORDER, control.to_be());
    mmio::write(ORDER + 4, length.to_be());
    mmio::write(ORDER + 8, address.to_be());
    processor::barrier();
    mmio::write(DMA, 0_u32);
    mmio::write(DMA + 4, (ORDER as u32).to_be());
    for _ in 0..POLLS {
        match u32::from_be(mmio::read(ORDER)) {
            0 => return,
            control if control & ERROR != 0 => break,
            _ => {}
        }
    }
    fatal(format_args!("fw_cfg refused a read of {length} bytes, control {control:#x}"))
}

/// Reads the start of `item`.
fn small<const N: usize>(item: u16) -> [u8; N] {
    let mut bytes = [0; N];
    select(item, SCRATCH as u64, N as u32);
    mmio::copy(SCRATCH, &mut bytes);
    bytes
}

/// Returns the bytes of kernel and initrd; 0 for one that there is none of.
pub fn sizes() -> [u32; 2] {
    [items::KERNEL_SIZE, items::INITRD_SIZE].map(|item| u32::from_le_bytes(small(item)))
}

/// Returns the kernel's header.
pub fn kernel_header(bytes: &mut [u8; boot::IMAGE_HEADER]) -> &[u8] {
    *bytes = small(items::KERNEL);
    bytes
}

/// Reads kernel and initrd to where they belong.
pub fn load(placed: &Placement, kernel: u32, initrd: u32) {
    select(items::KERNEL, placed.kernel, kernel);
    if initrd > 0 {
        select(items::INITRD, placed.initrd.start, initrd);
    }
}

/// Returns the file `name`, as far as it fits `bytes`; `None` if there is no such file.
pub fn read_file<'a>(name: &[u8], bytes: &'a mut [u8; 32]) -> Option<&'a [u8]> {
    let count = u32::from_be_bytes(small(items::DIRECTORY)).min(FILES);
    let mut entry = [0; items::ENTRY];
    for _ in 0..count {
        transfer(READ, SCRATCH as u64, items::ENTRY as u32);
        mmio::copy(SCRATCH, &mut entry);
        if let Some(file) = items::file(&entry, name) {
            let length = (file.size as usize).min(bytes.len());
            select(file.item, SCRATCH as u64, length as u32);
            let found = bytes.get_mut(..length)?;
            mmio::copy(SCRATCH, found);
            return Some(found);
        }
    }
    None
}
