//! Types that options share.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name by which a deserializer knows a [`Size`].
pub const SIZE: &str = "coblk_qapi::Size";

/// The name by which a deserializer knows a [`Deferred`](crate::Deferred), and those of the notations in one
/// of which it is handed its members.
pub const DEFERRED: &str = "coblk_qapi::Deferred";
pub const TEXTS: &str = "texts";
pub const VALUES: &str = "values";

/// A number of bytes. On a command line it may have a unit, as `4k`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("size")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, it: D) -> Result<Size, D::Error> {
                u64::deserialize(it).map(Size)
            }
        }
        deserializer.deserialize_newtype_struct(SIZE, Bytes)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// A text, or explicitly none: JSON's null, or the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrOrNull(pub Option<String>);

impl<'de> Deserialize<'de> for StrOrNull {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StrOrNull, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = StrOrNull;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("StrOrNull")
            }

            fn visit_str<E>(self, text: &str) -> Result<StrOrNull, E> {
                Ok(StrOrNull(Some(text.to_owned()).filter(|text| !text.is_empty())))
            }

            fn visit_unit<E>(self) -> Result<StrOrNull, E> {
                Ok(StrOrNull(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl Serialize for StrOrNull {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_deref().unwrap_or(""))
    }
}

/// A text, or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMany(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("string or array of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

impl Serialize for OneOrMany {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            many => many.serialize(serializer),
        }
    }
}

/// A parameter that QEMU has and the program has not: every value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Unsupported, D::Error> {
        Err(de::Error::custom("not supported"))
    }
}

/// A flag that can only be what it is by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Only<const FLAG: bool>;

/// The names by which a deserializer knows an [`Only`].
pub const ONLY_ON: &str = "coblk_qapi::Only<true>";
pub const ONLY_OFF: &str = "coblk_qapi::Only<false>";

impl<'de, const FLAG: bool> Deserialize<'de> for Only<FLAG> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Only<FLAG>, D::Error> {
        struct Flag<const FLAG: bool>;
        impl<'de, const FLAG: bool> Visitor<'de> for Flag<FLAG> {
            type Value = Only<FLAG>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("boolean")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                it: D,
            ) -> Result<Only<FLAG>, D::Error> {
                if bool::deserialize(it)? != FLAG {
                    let word = if FLAG { "on" } else { "off" };
                    return Err(de::Error::custom(format!("not supported but as '{word}'")));
                }
                Ok(Only)
            }
        }
        let name = if FLAG { ONLY_ON } else { ONLY_OFF };
        deserializer.deserialize_newtype_struct(name, Flag)
    }
}

/// Whether a user may give something this name: QEMU's rule for identifiers.
pub fn is_identifier(name: &str) -> bool {
    let good = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
    name.starts_with(|it: char| it.is_ascii_alphabetic()) && name.chars().all(good)
}
