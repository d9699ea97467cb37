//! Causes made from what a kernel's panic handler and its exception handlers are given.

use crate::Cause;
use crate::crash::{CauseKind, set_text};

impl Cause {
    /// Returns the cause of a panic, with its place and its message, cut to the room there is.
    /// The CPU and the time are the caller's to fill in.
    #[must_use]
    pub fn of_panic(info: &core::panic::PanicInfo<'_>) -> Self {
        let mut cause = Self::of(CauseKind::PANIC, "");
        if let Some(place) = info.location() {
            cause.line = place.line();
            set_text(&mut cause.file, place.file());
        }
        let mut writer = TextWriter { field: &mut cause.message, written: 0 };
        // It fails when the room is used up, or when the message's own code fails: what was
        // written until then is kept.
        let _ = core::fmt::write(&mut writer, format_args!("{}", info.message()));
        cause
    }

    /// Returns the cause of a processor exception, with the error code that it pushed and the
    /// address of a page fault (CR2), or 0.
    #[must_use]
    pub fn of_exception(vector: u32, error_code: u64, address: u64) -> Self {
        let mut cause = Self::of(CauseKind::EXCEPTION, "a processor exception");
        (cause.vector, cause.error_code, cause.address) = (vector, error_code, address);
        cause
    }

    /// Returns a cause of which nothing more is known than its kind and a
    /// message.
    #[must_use]
    pub fn of(kind: CauseKind, message: &str) -> Self {
        let mut cause = <Self as zerocopy::FromZeros>::new_zeroed();
        (cause.kind, cause.vector) = (kind, u32::MAX);
        set_text(&mut cause.message, message);
        cause
    }
}

/// Fills a text field with what is formatted.
struct TextWriter<'a> {
    field: &'a mut [u8],
    written: usize,
}

impl core::fmt::Write for TextWriter<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let rest = self.field.get_mut(self.written..).unwrap_or_default();
        let room = rest.len();
        set_text(rest, text);
        self.written += text.len().min(room);
        if text.len() > room { Err(core::fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use core::fmt::Write;

    use super::*;

    #[test]
    fn a_message_is_cut_at_the_end_of_its_field() {
        let mut field = [0; 8];
        let mut writer = TextWriter { field: &mut field, written: 0 };
        assert!(write!(writer, "{}{}", 12, ["abc"][0]).is_ok());
        assert!(writer.write_str("d\u{e9}\u{e9}").is_err());
        assert_eq!(crate::crash::text(&field), "12abcd\u{e9}");
    }

    #[test]
    fn an_exception_has_its_vector_and_no_place() {
        let cause = Cause::of_exception(14, 2, 0xdead);
        assert_eq!((cause.kind, cause.vector), (CauseKind::EXCEPTION, 14));
        assert_eq!((cause.error_code, cause.address, cause.line), (2, 0xdead, 0));
        assert_eq!(Cause::of(CauseKind::OOM, "no memory").vector, u32::MAX);
    }
}
