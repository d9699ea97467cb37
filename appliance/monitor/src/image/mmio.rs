//! Device registers, and the memory of the device tree.

#![expect(unsafe_code, reason = "device registers by address")]

/// A value that a device register may hold.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u32 {}
impl Word for u64 {}

/// Reads the device register at `address`, which is one of this machine's.
pub fn read<T: Word>(address: usize) -> T {
    // SAFETY: all callers name registers of devices that QEMU's `virt` machine has; reading
    // them changes no memory of Rust.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes the device register at `address`, which is one of this machine's.
pub fn write<T: Word>(address: usize, value: T) {
    // SAFETY: all callers name registers of devices, or the scratch memory of `fw_cfg`, which
    // no Rust object lies in.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Copies out of the scratch memory that `fw_cfg` has written.
pub fn copy(address: usize, into: &mut [u8]) {
    for (offset, byte) in into.iter_mut().enumerate() {
        *byte = read(address + offset);
    }
}

/// Lends the `size` bytes at `address`, which hold the device tree and room behind it. Called
/// once, while the client does not run yet.
pub fn tree(address: usize, size: usize) -> &'static mut [u8] {
    // SAFETY: this is the client's memory, which nothing else uses before the client is
    // entered, and the reference is gone by then.
    unsafe { core::slice::from_raw_parts_mut(address as *mut u8, size) }
}
