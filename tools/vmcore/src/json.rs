//! The JSON of the answers: its version, numbers and words (rules: `docs/json.md`).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Version of the JSON, the value of `schema` in every answer. An answer of another version may
/// have other keys, other types or other units.
pub const SCHEMA: u32 = 2;

/// An answer and the version of its JSON, which is its first key.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Versioned<T> {
    schema: u32,
    #[serde(flatten)]
    answer: T,
}

impl<T> Versioned<T> {
    /// Puts the version of this build in front of an answer.
    pub const fn new(answer: T) -> Self {
        Self { schema: SCHEMA, answer }
    }
}

/// What the `name` functions of the record crates return for a value that they do not know.
const UNKNOWN: &str = "unknown";

/// Returns the word for a value of an open enumeration, `name` being the word that this build
/// has for it: the number is shown where it has none, as in `unknown(17)`. `unknown` alone is
/// a value that was not recorded, which is the largest one.
pub(crate) fn word(name: &str, value: impl Into<u64>) -> String {
    match value.into() {
        value if name == UNKNOWN && value != u64::from(u32::MAX) => format!("{name}({value})"),
        _ => name.to_owned(),
    }
}

/// An address, a register, a checksum or an identity of 64 bits. In JSON it is a string, `"0x…"`, since many readers of JSON keep no
/// more than 53 bits of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("'{text}' is not a number of the form 0x…")))
    }
}

impl From<u64> for Hex {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use super::{Hex, Versioned, word};

    #[test]
    fn a_word_that_is_not_known_is_shown_with_its_number() {
        assert_eq!(word("irq", 1_u32), "irq");
        assert_eq!(word("unknown", 17_u32), "unknown(17)");
        assert_eq!(word("unknown", u32::MAX), "unknown");
    }

    #[test]
    fn the_version_stands_before_an_answer() {
        let text = serde_json::to_string(&Versioned::new(serde_json::json!({ "a": 1 }))).unwrap();
        assert_eq!(text, r#"{"schema":2,"a":1}"#);
    }

    #[test]
    fn a_number_comes_back_through_json() {
        for value in [0, 1, u64::MAX] {
            let text = serde_json::to_string(&Hex(value)).unwrap();
            assert_eq!(text, format!("\"{value:#x}\""));
            assert_eq!(serde_json::from_str::<Hex>(&text).unwrap(), Hex(value));
        }
        assert!(serde_json::from_str::<Hex>("\"12\"").is_err());
        assert!(serde_json::from_str::<Hex>("12").is_err());
    }
}
