//! Values of options, read from text.

use clap::builder::RangedU64ValueParser;

/// As many leaves as the workload takes.
pub fn leaves() -> RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=hashtree::MOST_LEAVES)
}

/// Bytes from `512M`, `4G`, `1T`, or a plain number of bytes.
pub fn text_to_bytes(text: &str) -> Result<u64, String> {
    let shift = match text.bytes().last().map(|byte| byte.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => 0,
    };
    let digits = &text[..text.len() - usize::from(shift > 0)];
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| "a size, as 512M or 4G".into())
}
