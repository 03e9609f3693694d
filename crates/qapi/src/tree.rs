//! [`Tree`]: names and values, as a serde deserializer that minds how they are written. On a command
//! line all values are texts: `on` and `off`, numbers, sizes with units.

use std::fmt::Display;

use serde::de::{Deserializer, IntoDeserializer, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Number, Value};

use crate::error::Error;
use crate::number;
use crate::object::Object;
use crate::path::{self, PATH};
use crate::types::SIZE;

/// The deepest tree: nodes in nodes, and their groups of members.
const MAX_DEPTH: usize = 32;

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// Numbers and booleans are such.
    Json,
    /// All values are texts.
    Keyval,
    /// Values that are kept, to be read later: as they are.
    Kept,
}

/// A value, and all below it.
pub struct Tree {
    value: Value,
    notation: Notation,
    depth: usize,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Tree {
    pub fn new(value: Value, notation: Notation) -> Tree {
        Tree { value, notation, depth: 0 }
    }

    /// A value within a tree.
    pub fn below(value: Value, notation: Notation, depth: usize) -> Tree {
        Tree { value, notation, depth: depth + 1 }
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
            (_, Some(_)) => Err(Error::expects("'on' or 'off'")),
            _ => Err(Error::wrong_type("boolean")),
        }
    }

    /// A number that fits into 64 bits, with a sign or without.
    fn integer(&self) -> Result<i128> {
        let whole = |number: &Number| {
            let unsigned = number.as_u64().map(i128::from);
            unsigned.or_else(|| number.as_i64().map(i128::from))
        };
        match (&self.value, self.keyval_text()) {
            (_, Some(text)) => number::integer(text).ok_or_else(|| Error::expects("integer")),
            (Value::Number(number), _) => whole(number).ok_or_else(|| Error::wrong_type("integer")),
            _ => Err(Error::wrong_type("integer")),
        }
    }

    /// One of those that fit into 64 bits.
    fn long<T: TryFrom<i128>>(&self) -> Result<T> {
        let number = self.integer()?;
        T::try_from(number).map_err(|_| Error::out_of_range(number))
    }

    /// One of a smaller type, with that type's name.
    fn short<T: TryFrom<i128>>(&self, name: impl Display) -> Result<T> {
        T::try_from(self.integer()?).map_err(|_| Error::expects(name))
    }

    fn size(&self) -> Result<u64> {
        match self.keyval_text() {
            Some(text) => number::size(text).ok_or_else(|| Error::expects("size")),
            None => self.long(),
        }
    }

    fn fraction(&self) -> Result<f64> {
        match (&self.value, self.keyval_text()) {
            (_, Some(text)) => text.parse().map_err(|_| Error::expects("number")),
            (Value::Number(number), _) => {
                number.as_f64().ok_or_else(|| Error::wrong_type("number"))
            }
            _ => Err(Error::wrong_type("number")),
        }
    }

    fn string(self) -> Result<String> {
        match self.value {
            Value::String(text) if self.notation != Notation::Kept && path::has_bytes(&text) => {
                Err(Error::expects("UTF-8"))
            }
            Value::String(text) => Ok(text),
            _ => Err(Error::wrong_type("string")),
        }
    }

    /// The bytes of a path. Those of JSON are what it says.
    fn path(self) -> Result<Vec<u8>> {
        match self.value {
            Value::String(text) if self.notation == Notation::Keyval => Ok(path::unescape(&text)),
            Value::String(text) => Ok(text.into_bytes()),
            _ => Err(Error::wrong_type("string")),
        }
    }

    fn object(self) -> Result<Object> {
        match self.value {
            Value::Object(_) if self.depth > MAX_DEPTH => {
                Err(Error::other(format!("Parameters are more than {MAX_DEPTH} levels deep")))
            }
            Value::Object(members) => Ok(Object::new(members, self.notation, self.depth)),
            _ => Err(Error::wrong_type("object")),
        }
    }

    fn items(self) -> Result<Items> {
        match self.value {
            Value::Array(items) => {
                let (notation, depth) = (self.notation, self.depth);
                Ok(Items { left: items.into_iter(), taken: 0, notation, depth })
            }
            _ => Err(Error::wrong_type("array")),
        }
    }
}

/// One method a type of numbers.
macro_rules! numbers {
    ($($method:ident $visit:ident $name:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            visitor.$visit(self.short($name)?)
        }
    )*};
}

/// Methods that do the same as another one.
macro_rules! same {
    ($target:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            self.$target(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Tree {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.value {
            Value::Object(_) => self.deserialize_map(visitor),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (_, Some(number)) => visitor.visit_i64(number),
                _ => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(_) => visitor.visit_string(self.string()?),
            Value::Bool(flag) => visitor.visit_bool(flag),
            Value::Null => visitor.visit_unit(),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_bool(self.flag()?)
    }

    numbers! {
        deserialize_i8 visit_i8 "int8_t",
        deserialize_i16 visit_i16 "int16_t",
        deserialize_i32 visit_i32 "int32_t",
        deserialize_u8 visit_u8 "uint8_t",
        deserialize_u16 visit_u16 "uint16_t",
        deserialize_u32 visit_u32 "uint32_t",
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_i64(self.long()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_u64(self.long()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_f64(self.fraction()?)
    }

    same!(deserialize_f64: deserialize_f32);
    same!(deserialize_string: deserialize_str deserialize_identifier);

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_string(self.string()?)
    }

    /// A member that is there has a value: null is none.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(self)
    }

    /// An object without members: the arguments of a command that has none.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.object()?.finish()?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        match name {
            SIZE => {
                let size: serde::de::value::U64Deserializer<Error> =
                    self.size()?.into_deserializer();
                visitor.visit_newtype_struct(size)
            }
            PATH => visitor.visit_bytes(&self.path()?),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_seq(self.items()?)
    }

    /// All members, in any order; or, of [`Parts`](crate::Parts), one part after the other.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let mut object = self.object()?;
        let value = visitor.visit_map(object.members())?;
        object.finish()?;
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let mut object = self.object()?;
        let value = visitor.visit_map(object.fields(fields))?;
        object.finish()?;
        Ok(value)
    }

    /// A word.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_enum(self.string()?.into_deserializer())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf tuple tuple_struct
    }
}

/// The items of a list; what is wrong in one has its place.
struct Items {
    left: std::vec::IntoIter<Value>,
    taken: usize,
    notation: Notation,
    depth: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<S: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>> {
        let Some(value) = self.left.next() else { return Ok(None) };
        let place = match self.notation {
            Notation::Json | Notation::Kept => format!("[{}]", self.taken),
            Notation::Keyval => self.taken.to_string(),
        };
        self.taken += 1;
        let item = seed.deserialize(Tree::below(value, self.notation, self.depth));
        item.map(Some).map_err(|error| error.within(&place))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
}
