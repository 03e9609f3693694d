//! [`Tree`]: names and values, as a serde deserializer that minds how they are written. On a command
//! line all values are texts: `on` and `off`, numbers, sizes with suffixes.

use coblk::options::parse_size;
use serde::de::value::SeqDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use super::error::OptionError;

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// Numbers and booleans are such.
    Json,
    /// All values are texts.
    Keyval,
}

/// The member that decides which others there can be: looked at first, so that what is wrong with it
/// is said first.
const FIRST: [&str; 3] = ["type", "qom-type", "backend"];

/// A value, and all below it.
pub struct Tree {
    value: Value,
    notation: Notation,
}

type Result<T> = std::result::Result<T, OptionError>;

impl Tree {
    pub fn new(value: Value, notation: Notation) -> Tree {
        Tree { value, notation }
    }

    /// The text of a value that is not one yet.
    fn keyval_text(&self) -> Option<&str> {
        self.value.as_str().filter(|_| self.notation == Notation::Keyval)
    }

    fn flag(&self) -> Result<bool> {
        match (&self.value, self.keyval_text()) {
            (Value::Bool(flag), _) => Ok(*flag),
            (_, Some("on" | "yes" | "true" | "y")) => Ok(true),
            (_, Some("off" | "no" | "false" | "n")) => Ok(false),
            (_, Some(_)) => Err(OptionError::kind("'on' or 'off'")),
            _ => Err(OptionError::kind("boolean")),
        }
    }

    fn number<T: std::str::FromStr + TryFrom<i64> + TryFrom<u64>>(
        &self,
        expected: &str,
    ) -> Result<T> {
        let number = match (&self.value, self.keyval_text()) {
            (Value::Number(number), _) => {
                let signed = || number.as_i64().and_then(|it| T::try_from(it).ok());
                number.as_u64().and_then(|it| T::try_from(it).ok()).or_else(signed)
            }
            // Rust takes a plus sign, nobody else does.
            (_, Some(text)) => text.parse().ok().filter(|_| !text.starts_with('+')),
            _ => None,
        };
        number.ok_or_else(|| OptionError::kind(expected))
    }

    fn size(&self) -> Result<u64> {
        match self.keyval_text() {
            Some(text) => parse_size(text).ok_or_else(|| OptionError::kind("a size")),
            None => self.number("a size"),
        }
    }

    fn members(self) -> Result<Members> {
        match self.value {
            Value::Object(mut members) => {
                let first = FIRST.iter().find_map(|name| members.remove_entry(*name));
                Ok(Members {
                    first,
                    left: members.into_iter(),
                    notation: self.notation,
                    next: None,
                })
            }
            _ => Err(OptionError::kind("object")),
        }
    }

    fn items(self) -> Result<Vec<Tree>> {
        match self.value {
            Value::Array(items) => {
                Ok(items.into_iter().map(|item| Tree::new(item, self.notation)).collect())
            }
            _ => Err(OptionError::kind("array")),
        }
    }
}

/// One method a kind of number.
macro_rules! numbers {
    ($($method:ident $visit:ident $expected:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            visitor.$visit(self.number($expected)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Tree {
    type Error = OptionError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.value {
            Value::Object(_) => visitor.visit_map(self.members()?),
            Value::Array(_) => visitor.visit_seq(SeqDeserializer::new(self.items()?.into_iter())),
            Value::Number(number) => {
                number.deserialize_any(visitor).map_err(serde::de::Error::custom)
            }
            Value::String(text) => visitor.visit_string(text),
            Value::Bool(flag) => visitor.visit_bool(flag),
            Value::Null => visitor.visit_unit(),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_bool(self.flag()?)
    }

    numbers! {
        deserialize_u16 visit_u16 "uint16",
        deserialize_u32 visit_u32 "uint32",
        deserialize_u64 visit_u64 "integer",
        deserialize_i64 visit_i64 "integer",
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.value {
            Value::String(text) => visitor.visit_string(text),
            _ => Err(OptionError::kind("string")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        // A member that is there has a value; null is none of any kind that there is.
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        match name {
            "Size" => {
                let size = self.size()?;
                visitor
                    .visit_newtype_struct(IntoDeserializer::<OptionError>::into_deserializer(size))
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_seq(SeqDeserializer::new(self.items()?.into_iter()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_map(self.members()?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_map(self.members()?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self.value {
            Value::String(text) => visitor.visit_enum(text.into_deserializer()),
            _ => Err(OptionError::kind("string")),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

impl IntoDeserializer<'_, OptionError> for Tree {
    type Deserializer = Tree;
    fn into_deserializer(self) -> Tree {
        self
    }
}

/// The members of an object, one after the other. What is wrong in one has its name.
struct Members {
    first: Option<(String, Value)>,
    left: serde_json::map::IntoIter,
    notation: Notation,
    next: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Members {
    type Error = OptionError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        self.next = self.first.take().or_else(|| self.left.next());
        let Some((name, _)) = &self.next else { return Ok(None) };
        seed.deserialize(name.clone().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        let (name, value) = self.next.take().unwrap_or_default();
        seed.deserialize(Tree::new(value, self.notation)).map_err(|error| error.under(&name))
    }
}
