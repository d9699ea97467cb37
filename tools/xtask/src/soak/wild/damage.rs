//! One damage: where it is, what it writes, and its name, from which it can be repeated.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Bytes of a word, which a damage writes at once.
pub const WORD: u64 = 8;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// A value that is neither an address of the machine nor a small number.
const PATTERN: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// What a word becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This value.
    Word(u64),
    /// Its old value with this bit flipped, 0 to 63.
    Flipped(u32),
}

impl Value {
    /// Returns the four values that each word is given: zero, all ones, a pattern, and one
    /// flipped bit, which is `bit`.
    pub const fn all(bit: u32) -> [Self; 4] {
        [Self::Word(0), Self::Word(u64::MAX), Self::Word(PATTERN), Self::Flipped(bit % 64)]
    }

    /// Returns what a word that holds `old` becomes.
    pub const fn of(self, old: u64) -> u64 {
        match self {
            Self::Word(word) => word,
            Self::Flipped(bit) => old ^ 1 << bit,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{word:#x}"),
            Self::Flipped(bit) => write!(f, "bit{bit}"),
        }
    }
}

/// A damage to one word or to one page. Its text is `NAME+OFFSET=VALUE`, with `/page` behind the
/// offset for a page, each of whose words gets the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Name of the variable or of the area.
    pub name: String,
    /// Byte in it, a multiple of 8, or of 4096 for a page.
    pub offset: u64,
    /// All of the page is damaged.
    pub page: bool,
    /// What each word becomes.
    pub value: Value,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = if self.page { "/page" } else { "" };
        write!(f, "{}+{:#x}{page}={}", self.name, self.offset, self.value)
    }
}

impl FromStr for Damage {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let form = || format!("'{text}' is not NAME+OFFSET=VALUE, as soak --wild prints it");
        let (place, value) = text.rsplit_once('=').with_context(form)?;
        let (name, offset) = place.rsplit_once('+').with_context(form)?;
        let (offset, page) = match offset.strip_suffix("/page") {
            Some(offset) => (offset, true),
            None => (offset, false),
        };
        let offset = number(offset).with_context(form)?;
        let value = match value.strip_prefix("bit") {
            Some(bit) => {
                Value::Flipped(bit.parse().ok().filter(|bit| *bit < 64).with_context(form)?)
            }
            None => Value::Word(number(value).with_context(form)?),
        };
        if !offset.is_multiple_of(if page { PAGE } else { WORD }) {
            bail!("'{text}': the offset is no multiple of {}", if page { PAGE } else { WORD });
        }
        Ok(Self { name: name.to_owned(), offset, page, value })
    }
}

/// A number as it is printed, or in decimal digits.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damage_is_read_as_it_is_printed() {
        for text in [
            "kernel::crash::CLAIM+0x0=0xffffffffffffffff",
            "machine::trace::RINGS+0x10=bit63",
            "park+0x3000/page=0x0",
        ] {
            assert_eq!(text.parse::<Damage>().expect("a damage").to_string(), text);
        }
        for wrong in ["CLAIM", "CLAIM+0=", "CLAIM+4=0", "CLAIM+0=bit64", "park+0x8/page=0"] {
            assert!(wrong.parse::<Damage>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_flipped_bit_depends_on_what_was_there() {
        assert_eq!(Value::Flipped(3).of(0x18), 0x10);
        assert_eq!(Value::Word(7).of(0x18), 7);
        assert_eq!(Value::all(65)[3], Value::Flipped(1));
    }
}
