//! The screen's memory as words that any CPU may write.
//!
//! Atomics, because two CPUs may draw at once and crash code may draw over what a stopped
//! CPU was drawing: letters mix then, and nothing else happens.

#![expect(unsafe_code, reason = "makes words of the memory that a loader named as the screen's")]

use core::sync::atomic::{AtomicU16, AtomicU32};

use handoff::devices::{Framebuffer, FramebufferKind};
use screen::{Pixels, Surface, Text};

/// Larger than any screen: what claims to be so is not believed.
const MOST_PIXELS: u32 = 16_384;

/// Bytes of memory the screen takes; 0 when it makes no sense.
#[must_use]
pub fn bytes(facts: &Framebuffer) -> u64 {
    if facts.width > MOST_PIXELS || facts.height > MOST_PIXELS {
        return 0;
    }
    u64::from(facts.pitch) * u64::from(facts.height)
}

/// Why there is nothing to draw on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramebufferError {
    /// Its dimensions or its place make no sense.
    Shape,
    /// A pixel has so many bits: only 32 are known, with eight for each colour.
    Depth(u8),
}

impl core::fmt::Display for FramebufferError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Shape => f.write_str("its dimensions make no sense"),
            Self::Depth(bits) => write!(f, "{bits} bits a pixel are not supported"),
        }
    }
}

/// The screen that `facts` describe.
///
/// The caller has it from the loader, by way of sealed records, knows that it overlaps no
/// memory of the program, and has mapped it one to one for writing, for good.
///
/// # Errors
/// When it is of a kind that nothing here can draw on.
pub fn surface(facts: &Framebuffer) -> Result<Surface<'static>, FramebufferError> {
    let Framebuffer { address, pitch, width, height, .. } = *facts;
    let (kind, unit) = match facts.kind {
        FramebufferKind::PIXELS => (FramebufferKind::PIXELS, 4),
        FramebufferKind::TEXT => (FramebufferKind::TEXT, 2),
        _ => return Err(FramebufferError::Shape),
    };
    let words = bytes(facts) / unit;
    let fits = u64::from(width) * unit <= u64::from(pitch);
    let aligned = address.is_multiple_of(unit) && u64::from(pitch).is_multiple_of(unit);
    if address == 0 || words == 0 || !fits || !aligned {
        return Err(FramebufferError::Shape);
    }
    if kind == FramebufferKind::TEXT {
        // SAFETY: by the caller's contract this is the screen's memory, mapped for good; it
        // is whole aligned words, and atomics may be shared.
        let memory =
            unsafe { core::slice::from_raw_parts(address as *const AtomicU16, words as usize) };
        return Ok(Surface::Text(Text { memory, columns: pitch / 2, rows: height }));
    }
    let eight = [facts.red_bits, facts.green_bits, facts.blue_bits].iter().all(|bits| *bits == 8);
    if facts.bits_per_pixel != 32 || !eight {
        return Err(FramebufferError::Depth(facts.bits_per_pixel));
    }
    // SAFETY: as above.
    let memory =
        unsafe { core::slice::from_raw_parts(address as *const AtomicU32, words as usize) };
    let shifts = [facts.red_at, facts.green_at, facts.blue_at];
    Ok(Surface::Pixels(Pixels { memory, pitch: pitch / 4, width, height, shifts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(words: &[AtomicU32]) -> Framebuffer {
        Framebuffer {
            address: words.as_ptr() as u64,
            pitch: 64,
            width: 12,
            height: 20,
            bits_per_pixel: 32,
            red_at: 16,
            red_bits: 8,
            green_at: 8,
            green_bits: 8,
            blue_bits: 8,
            kind: FramebufferKind::PIXELS,
            ..Framebuffer::default()
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_drawn_on() {
        let words = [const { AtomicU32::new(7) }; 16 * 20];
        let good = screen(&words);
        assert!(matches!(surface(&good), Ok(Surface::Pixels(_))));
        let refused = |facts: Framebuffer| surface(&facts).err();
        assert_eq!(refused(Framebuffer { address: 0, ..good }), Some(FramebufferError::Shape));
        assert_eq!(refused(Framebuffer { width: 17, ..good }), Some(FramebufferError::Shape));
        assert_eq!(refused(Framebuffer { height: 0, ..good }), Some(FramebufferError::Shape));
        assert_eq!(refused(Framebuffer { height: 1 << 20, ..good }), Some(FramebufferError::Shape));
        assert_eq!(
            refused(Framebuffer { kind: FramebufferKind(0), ..good }),
            Some(FramebufferError::Shape)
        );
        let depth = Framebuffer { bits_per_pixel: 24, ..good };
        assert_eq!(refused(depth), Some(FramebufferError::Depth(24)));
    }

    #[test]
    fn a_letter_stays_inside_its_cell_and_has_its_colours() {
        use screen::Ink;
        let words = [const { AtomicU32::new(7) }; 16 * 20];
        let surface = surface(&screen(&words)).expect("a screen");
        surface.draw(0, 0, 1, b'I', Ink::White, Ink::Red);
        // No room for a second one.
        surface.draw(1, 0, 1, b'I', Ink::White, Ink::Red);
        let values: Vec<_> =
            words.iter().map(|word| word.load(core::sync::atomic::Ordering::Relaxed)).collect();
        let paper = 190 << 16 | 20 << 8 | 20;
        for row in values.chunks(16) {
            assert!(row[..10].iter().all(|pixel| *pixel == 0xff_ffff || *pixel == paper));
            assert!(row[10..].iter().all(|pixel| *pixel == 7));
        }
        assert!(values.contains(&0xff_ffff) && values.contains(&paper));
    }
}
