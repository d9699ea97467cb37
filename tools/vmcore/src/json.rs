//! Numbers as they stand in the JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A 64-bit number. In JSON it is a string, `"0x…"`, since many readers of JSON keep no
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
    use super::Hex;

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
