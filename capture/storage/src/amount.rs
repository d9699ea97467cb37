//! Amounts, times and rates as a reader wants them, without floating point.

use core::fmt;

/// Bytes shown in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Mib(pub u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded to a tenth.
        let tenths = (u128::from(self.0) * 10 + (1 << 19)) >> 20;
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}

/// Whole MiB per second: `bytes` in `ns` nanoseconds, 0 when no time passed.
#[must_use]
pub const fn mib_per_second(bytes: u64, ns: u64) -> u64 {
    if ns == 0 {
        return 0;
    }
    ((bytes as u128 * 1_000_000_000 / ns as u128) >> 20) as u64
}

/// Nanoseconds shown in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Ms(pub u64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.saturating_add(50_000) / 100_000;
        write!(f, "{}.{} ms", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_rounded_and_do_not_overflow() {
        assert_eq!(Mib(1 << 20).to_string(), "1.0 MiB");
        assert_eq!(Mib((1 << 20) + (1 << 19)).to_string(), "1.5 MiB");
        assert_eq!(Mib(u64::MAX).to_string(), "17592186044416.0 MiB");
        assert_eq!(Ms(1_250_000).to_string(), "1.3 ms");
        assert_eq!(mib_per_second(512 << 20, 500_000_000), 1024);
        assert_eq!(mib_per_second(u64::MAX, 1_000_000_000), u64::MAX >> 20);
        assert_eq!(mib_per_second(5, 0), 0);
    }
}
