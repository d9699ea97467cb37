//! QEMU's firmware configuration: files that the host leaves for whoever boots (QEMU,
//! `docs/specs/fw_cfg.rst`). Pure: whoever calls says how an item is selected and read, so it
//! is tested on the host.

/// An item's key is written here, 16 bits.
pub const SELECTOR: u16 = 0x510;
/// The item's bytes come from here, one after the other.
pub const DATA: u16 = 0x511;

/// Items: what says that there is such a thing, and the list of files.
const SIGNATURE: u16 = 0;
const DIRECTORY: u16 = 0x19;
/// Bytes of a file's name.
const NAME_BYTES: usize = 56;
/// Files looked at.
const MAX_FILES: u32 = 1024;

/// The file that says at which I/O port the pvpanic device is, little endian.
pub const PVPANIC_PORT: &str = "etc/pvpanic-port";

/// Two bytes of the file `name`, from its beginning: `None` when there is no configuration, or
/// no such file. `select` begins an item, `read` gives its next byte.
pub fn word(
    name: &str,
    select: &mut dyn FnMut(u16),
    read: &mut dyn FnMut() -> u8,
) -> Option<[u8; 2]> {
    select(SIGNATURE);
    if *b"QEMU" != [read(), read(), read(), read()] {
        return None;
    }
    select(DIRECTORY);
    let count = u32::from_be_bytes([read(), read(), read(), read()]);
    for _ in 0..count.min(MAX_FILES) {
        let bytes = u32::from_be_bytes([read(), read(), read(), read()]);
        let key = u16::from_be_bytes([read(), read()]);
        let _reserved = [read(), read()];
        let mut found = [0; NAME_BYTES];
        found.iter_mut().for_each(|byte| *byte = read());
        let end = found.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
        if found.get(..end) == Some(name.as_bytes()) && bytes >= 2 {
            select(key);
            return Some([read(), read()]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The file `name`, behind another, in a configuration with this signature.
    fn ask(signature: &[u8], name: &str, bytes: &[u8]) -> Option<[u8; 2]> {
        let file = |size: usize, key: u16, name: &str| {
            let mut entry = (size as u32).to_be_bytes().to_vec();
            entry.extend(key.to_be_bytes());
            entry.extend([0; 2]);
            entry.extend(name.as_bytes());
            entry.resize(64, 0);
            entry
        };
        let mut directory = 2_u32.to_be_bytes().to_vec();
        directory.extend(file(100, 0x20, "etc/e820"));
        directory.extend(file(bytes.len(), 0x21, name));
        let item = RefCell::new(Vec::new());
        let mut select = |key| {
            let mut bytes = match key {
                0 => signature.to_vec(),
                0x19 => directory.clone(),
                0x21 => bytes.to_vec(),
                _ => vec![],
            };
            bytes.reverse();
            item.replace(bytes);
        };
        // Beyond its end an item is zeros.
        let mut read = || item.borrow_mut().pop().unwrap_or(0);
        word(PVPANIC_PORT, &mut select, &mut read)
    }

    #[test]
    fn a_file_is_found_by_its_name() {
        assert_eq!(ask(b"QEMU", PVPANIC_PORT, &[5, 6]), Some([5, 6]));
        assert_eq!(ask(b"QEMU", "etc/pvpanic-port2", &[5, 6]), None);
        assert_eq!(ask(b"QEMU", "etc/pvpanic-por", &[5, 6]), None);
        assert_eq!(ask(b"QEMU", PVPANIC_PORT, &[5]), None, "cut short");
        assert_eq!(ask(&[0xff; 4], PVPANIC_PORT, &[5, 6]), None, "no such thing");
    }

    #[test]
    fn a_list_without_an_end_has_one() {
        let mut reads = 0_u32;
        let mut read = || {
            reads += 1;
            *b"QEMU".get(reads as usize - 1).unwrap_or(&0xff)
        };
        assert_eq!(word(PVPANIC_PORT, &mut |_| (), &mut read), None);
        assert_eq!(reads, 8 + 64 * MAX_FILES);
    }
}
