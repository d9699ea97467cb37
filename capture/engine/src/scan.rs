//! Looking for zero pages: memory that need not be written.

use vmcore_format::PAGE_BYTES;
use zerocopy::FromBytes;

/// Bytes of a page.
const PAGE: usize = PAGE_BYTES as usize;
/// A run of zero pages that is worth a program header of its own.
pub const ZERO_RUN: u64 = 64 << 10;

/// Whether a page is all zero.
fn is_zero(page: &[u8]) -> bool {
    // Pages are aligned and whole; what is not goes into the dump as it is.
    let Ok(words) = <[[u64; 16]]>::ref_from_bytes(page) else { return false };
    // Few enough that the first word that is not zero ends it soon. Written out, because that is
    // faster than a loop over as many.
    words.iter().all(|[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]| {
        a | b | c | d | e | f | g | h | i | j | k | l | m | n | o | p == 0
    })
}

/// Bytes of zero pages at the start of `memory`, which is whole pages.
#[must_use]
pub fn leading_zeros(memory: &[u8]) -> u64 {
    memory.chunks(PAGE).take_while(|page| is_zero(page)).count() as u64 * PAGE_BYTES
}

/// Bytes at the start of `memory` that are worth storing: up to the first run of zero
/// pages that is at least [`ZERO_RUN`] long or reaches the end.
#[must_use]
pub fn leading_data(memory: &[u8]) -> u64 {
    let (mut data, mut zeros) = (0, 0);
    for page in memory.chunks(PAGE) {
        if is_zero(page) {
            zeros += PAGE_BYTES;
            if zeros >= ZERO_RUN {
                break;
            }
        } else {
            data += zeros + PAGE_BYTES;
            zeros = 0;
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aligned memory with a byte set in each of these pages.
    fn memory(pages: usize, set: &[usize]) -> Vec<u64> {
        let mut words = vec![0; pages * PAGE / 8];
        for page in set {
            // The last byte of the page: nothing short of all of it finds that.
            words[page * PAGE / 8 + 511] = 1 << 63;
        }
        words
    }

    fn bytes(words: &[u64]) -> &[u8] {
        zerocopy::IntoBytes::as_bytes(words)
    }

    #[test]
    fn zeros_and_data_are_told_apart_page_by_page() {
        let page = PAGE_BYTES;
        let all = memory(20, &[]);
        assert_eq!((leading_zeros(bytes(&all)), leading_data(bytes(&all))), (20 * page, 0));
        let some = memory(40, &[3, 18, 36]);
        assert_eq!(leading_zeros(bytes(&some)), 3 * page);
        // Fourteen zero pages between the first two are not worth a cut, seventeen are.
        assert_eq!(leading_data(bytes(&some)), 19 * page);
        let from = &bytes(&some)[19 * PAGE..];
        assert_eq!((leading_zeros(from), leading_data(&from[17 * PAGE..])), (17 * page, page));
    }
}
