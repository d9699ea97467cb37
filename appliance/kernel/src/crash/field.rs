//! Text for a field of a record that has a fixed size.

use core::fmt::{self, Write};

/// A text field being written with `write!`; what does not fit is cut off.
pub(super) struct Field<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) used: usize,
}

impl Write for Field<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        let mut end = text.len().min(room.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        for (to, from) in room.iter_mut().zip(text.as_bytes().iter().take(end)) {
            *to = *from;
        }
        self.used += end;
        Ok(())
    }
}
