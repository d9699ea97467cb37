//! The macro for enumerations of which a later version may have more values.

/// Declares a type that is one number in a record, with a name for each value that is known.
///
/// Every number is legal, so that a record of a later version can be read. The type is
/// `repr(transparent)` and implements zerocopy's traits: it stands in a record in place of its
/// number. `name` returns the word of a value, `from_word` reads it back. `Display` and `Debug`
/// show the word, for a number without one `unknown(17)`, and `unknown` alone for the largest
/// number, which stands for a value that was not recorded. The caller depends on `zerocopy`.
///
/// ```
/// epitaph_record::open_enum! {
///     /// Fuel of an engine.
///     pub struct Fuel(u32) {
///         /// Diesel.
///         DIESEL = 1, "diesel";
///         /// Hydrogen.
///         HYDROGEN = 2, "hydrogen";
///     }
/// }
/// assert_eq!(Fuel::HYDROGEN.name(), Some("hydrogen"));
/// assert_eq!(Fuel(17).name(), None);
/// assert_eq!(format!("{} {:?}", Fuel::DIESEL, Fuel(17)), "diesel unknown(17)");
/// assert_eq!(Fuel(u32::MAX).to_string(), "unknown");
/// assert_eq!(Fuel::from_word("hydrogen"), Some(Fuel::HYDROGEN));
/// assert_eq!(Fuel::from_word("unknown(17)"), Some(Fuel(17)));
/// assert_eq!(Fuel::from_word("coal"), None);
/// ```
#[macro_export]
macro_rules! open_enum {
    (
        $(#[$doc:meta])*
        pub struct $Name:ident($number:ty) {
            $($(#[$value_doc:meta])* $VALUE:ident = $value:literal, $word:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(
            Clone,
            Copy,
            Default,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            ::zerocopy::FromBytes,
            ::zerocopy::IntoBytes,
            ::zerocopy::Immutable,
            ::zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $Name(
            /// The number in the record.
            pub $number,
        );

        impl $Name {
            $($(#[$value_doc])* pub const $VALUE: Self = Self($value);)*

            /// Returns the contract's word for the value, `None` for one that this build does
            /// not know.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$VALUE => Some($word),)*
                    _ => None,
                }
            }

            /// Returns the value whose [`name`](Self::name) is `word`, or whose number stands in
            /// it as in `unknown(17)`.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$VALUE),)*
                    _ => {
                        let number = word.strip_prefix("unknown(")?.strip_suffix(')')?;
                        number.parse().ok().map(Self)
                    }
                }
            }
        }

        impl ::core::fmt::Display for $Name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None if self.0 == <$number>::MAX => f.pad("unknown"),
                    None => write!(f, "unknown({})", self.0),
                }
            }
        }

        impl ::core::fmt::Debug for $Name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Display::fmt(self, f)
            }
        }
    };
}
