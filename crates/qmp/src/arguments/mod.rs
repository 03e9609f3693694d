//! [`from_arguments`]: the arguments of a command as a Rust type, and what is wrong with them in QEMU's
//! words.

use std::fmt::{self, Display};

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde_json::{Map, Number, Value};

use crate::error::{QmpError, shorten};

/// Makes a `T` of the arguments of a command. A command without arguments takes `()`.
///
/// # Errors
/// A [`GenericError`](crate::ErrorClass::GenericError) that names the member: one that is missing, of
/// the wrong type, of a value it cannot have, or, if `T` denies unknown fields, unexpected.
pub fn from_arguments<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, QmpError> {
    T::deserialize(Argument(Value::Object(arguments))).map_err(QmpError::generic)
}

/// What is wrong, and where: `cache.direct`, `queues[3]`.
#[derive(Debug)]
struct ArgumentError {
    path: String,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Missing,
    Unexpected,
    Type(&'static str),
    Range(String),
    Value(String),
    Other(String),
}

impl ArgumentError {
    fn new(problem: Problem) -> ArgumentError {
        ArgumentError { path: String::new(), problem }
    }

    fn at(name: &str, problem: Problem) -> ArgumentError {
        ArgumentError { path: shorten(name), problem }
    }

    /// The same error, seen from one level further up.
    fn within(mut self, name: &str) -> ArgumentError {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{}{dot}{}", shorten(name), self.path);
        self
    }
}

impl Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.problem {
            Problem::Missing => write!(f, "Parameter '{path}' is missing"),
            Problem::Unexpected => write!(f, "Parameter '{path}' is unexpected"),
            Problem::Type(expected) => {
                write!(f, "Invalid parameter type for '{path}', expected: {expected}")
            }
            Problem::Range(expected) => write!(f, "Parameter '{path}' expects {expected}"),
            Problem::Value(value) => {
                write!(f, "Parameter '{path}' does not accept value '{}'", shorten(value))
            }
            Problem::Other(text) if path.is_empty() => f.write_str(text),
            Problem::Other(text) => write!(f, "Parameter '{path}': {text}"),
        }
    }
}

impl std::error::Error for ArgumentError {}

impl de::Error for ArgumentError {
    fn custom<T: Display>(text: T) -> ArgumentError {
        ArgumentError::new(Problem::Other(text.to_string()))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> ArgumentError {
        ArgumentError::new(Problem::Range(expected.to_string()))
    }

    fn unknown_variant(variant: &str, _: &'static [&'static str]) -> ArgumentError {
        ArgumentError::new(Problem::Value(variant.to_owned()))
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> ArgumentError {
        ArgumentError::at(field, Problem::Unexpected)
    }

    fn missing_field(field: &'static str) -> ArgumentError {
        ArgumentError::at(field, Problem::Missing)
    }
}

type Outcome<T> = Result<T, ArgumentError>;

/// A value that becomes a Rust type, or an error that says which type it should have had.
struct Argument(Value);

impl Argument {
    fn wrong_type<T>(expected: &'static str) -> Outcome<T> {
        Err(ArgumentError::new(Problem::Type(expected)))
    }

    fn number<'de, V: Visitor<'de>>(number: &Number, visitor: V) -> Outcome<V::Value> {
        match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => visitor.visit_u64(number),
            (_, Some(number), _) => visitor.visit_i64(number),
            (_, _, number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
        }
    }

    fn integer<'de, V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match &self.0 {
            Value::Number(number) if !number.is_f64() => Argument::number(number, visitor),
            _ => Argument::wrong_type("integer"),
        }
    }

    fn string<'de, V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            _ => Argument::wrong_type("string"),
        }
    }

    fn list<'de, V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(Items { left: items.into_iter(), taken: 0 }),
            _ => Argument::wrong_type("array"),
        }
    }

    fn object<'de, V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match self.0 {
            Value::Object(members) => {
                visitor.visit_map(Members { left: members.into_iter(), value: None })
            }
            _ => Argument::wrong_type("object"),
        }
    }
}

/// Methods that do the same as another one.
macro_rules! same {
    ($target:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
            self.$target(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Argument {
    type Error = ArgumentError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => Argument::number(&number, visitor),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(_) => self.list(visitor),
            Value::Object(_) => self.object(visitor),
        }
    }

    same!(integer: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_u128 deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128);
    same!(string: deserialize_str deserialize_string deserialize_char);
    same!(list: deserialize_seq deserialize_bytes deserialize_byte_buf);
    same!(object: deserialize_map);
    same!(deserialize_f64: deserialize_f32);
    same!(deserialize_any: deserialize_identifier deserialize_ignored_any);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Argument::wrong_type("boolean"),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match &self.0 {
            Value::Number(number) => Argument::number(number, visitor),
            _ => Argument::wrong_type("number"),
        }
    }

    /// A member that may be absent may not be null.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        visitor.visit_some(self)
    }

    /// No arguments.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Outcome<V::Value> {
        match &self.0 {
            Value::Object(members) => match members.keys().next() {
                Some(name) => Err(ArgumentError::at(name, Problem::Unexpected)),
                None => visitor.visit_unit(),
            },
            _ => Argument::wrong_type("object"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Outcome<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Outcome<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Outcome<V::Value> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Outcome<V::Value> {
        self.list(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Outcome<V::Value> {
        self.object(visitor)
    }

    /// A word, or an object with the word as its one member.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Outcome<V::Value> {
        match self.0 {
            Value::String(word) => {
                let word: StrDeserializer<'_, ArgumentError> = word.as_str().into_deserializer();
                visitor.visit_enum(word)
            }
            Value::Object(members) => {
                let members = Members { left: members.into_iter(), value: None };
                visitor.visit_enum(MapAccessDeserializer::new(members))
            }
            _ => Argument::wrong_type("string"),
        }
    }
}

/// The members of an object, one by one; an error in one is told with its name.
struct Members {
    left: serde_json::map::IntoIter,
    value: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Members {
    type Error = ArgumentError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Outcome<Option<K::Value>> {
        let Some((name, value)) = self.left.next() else { return Ok(None) };
        let key = seed.deserialize(Argument(Value::String(name.clone())))?;
        self.value = Some((name, value));
        Ok(Some(key))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Outcome<S::Value> {
        match self.value.take() {
            Some((name, value)) => {
                seed.deserialize(Argument(value)).map_err(|error| error.within(&name))
            }
            None => Err(de::Error::custom("a value without its name")),
        }
    }
}

/// The items of a list.
struct Items {
    left: std::vec::IntoIter<Value>,
    taken: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = ArgumentError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Outcome<Option<S::Value>> {
        let Some(value) = self.left.next() else { return Ok(None) };
        let index = self.taken;
        self.taken += 1;
        let item = seed.deserialize(Argument(value));
        item.map(Some).map_err(|error| error.within(&format!("[{index}]")))
    }
}

#[cfg(test)]
mod tests;
