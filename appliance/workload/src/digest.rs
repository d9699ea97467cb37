//! What a unit of work found.

use core::fmt;

/// 256 bits that stand for a result: a count, a sum, or a hash.
///
/// Shown as a decimal number when it is one that fits 64 bits, as 64 hexadecimal digits
/// otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest([u64; 4]);

impl Digest {
    /// The digest that stands for `number`.
    #[must_use]
    pub const fn number(number: u64) -> Self {
        Self([number, 0, 0, 0])
    }

    /// The digest that stands for a hash.
    #[must_use]
    pub fn hash(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().rev().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        Self(words)
    }

    /// Both together: the sum of each of the four words, wrapping. Commutative and
    /// associative, and [`Digest::default`] changes nothing.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(core::array::from_fn(|word| self.0[word].wrapping_add(other.0[word])))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high @ ..] = self.0;
        if high == [0; 3] {
            return write!(f, "{low}");
        }
        self.0.iter().rev().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::Digest;

    #[test]
    fn numbers_are_decimal_and_hashes_keep_their_bytes_order() {
        assert_eq!(Digest::number(365_596).to_string(), "365596");
        let bytes = core::array::from_fn(|index| index as u8);
        let shown = Digest::hash(bytes).to_string();
        assert_eq!(shown, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    }

    #[test]
    fn sums_wrap_and_do_not_mind_the_order() {
        let all = Digest::hash([0xff; 32]);
        let one = Digest::number(1);
        assert_eq!(all.plus(one), one.plus(all));
        assert_eq!(Digest::number(u64::MAX).plus(one), Digest::default());
    }
}
