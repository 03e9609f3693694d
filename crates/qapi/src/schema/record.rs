//! The deserializer that writes down what it is asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::de::value::{StrDeserializer, U64Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::{Member, Schema, Shape};
use crate::alternate::WORD_OR_OBJECT;
use crate::error::Error;
use crate::path::PATH;
use crate::types::{DEFERRED, ONLY_OFF, ONLY_ON, SIZE};

type Result<T> = std::result::Result<T, Error>;

/// Variants by the paths of their objects.
pub type Chosen = BTreeMap<String, usize>;

/// One reading of a type.
#[derive(Default)]
pub struct Run {
    /// Members that it is not given, by their paths.
    pub left_out: BTreeSet<String>,
    /// Which variant is read, by the paths of objects that have some. Of others it is the first.
    pub chosen: Chosen,
    /// Those of them that are known from a reading in which they went wrong: they check what they are
    /// given.
    pub known: BTreeMap<String, Schema>,
    /// The member that went wrong first.
    pub failed: RefCell<Option<Failed>>,
}

/// A member that went wrong.
pub struct Failed {
    /// Its path.
    pub path: String,
    /// That of the member before it. If it is there twice, one is another name of the other.
    pub previous: Option<String>,
    /// What was asked for, if anything was.
    pub asked_for: Option<Schema>,
}

impl Run {
    /// What was asked for, and whether that makes a value.
    pub fn read<T: DeserializeOwned>(&self) -> (Schema, Result<T>) {
        let mut schema = Schema::Builtin("any");
        let result = T::deserialize(Recorder { run: self, path: String::new(), out: &mut schema });
        (schema, result)
    }

    fn fail(&self, failed: Failed) {
        self.failed.borrow_mut().get_or_insert(failed);
    }
}

/// Reads one value.
struct Recorder<'a> {
    run: &'a Run,
    path: String,
    out: &'a mut Schema,
}

impl Recorder<'_> {
    fn members(&mut self, names: Option<&'static [&'static str]>) -> Members<'_> {
        *self.out = Schema::Object(Shape::default());
        let Schema::Object(shape) = self.out else { unreachable!("was just made") };
        let names = names.map(<[_]>::iter);
        Members { run: self.run, path: &self.path, shape, names, next: None }
    }
}

/// Methods for types that are all QAPI's own: what they are called, and a value.
macro_rules! builtin {
    ($($method:ident $name:literal $visit:ident $value:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            *self.out = Schema::Builtin($name);
            visitor.$visit($value)
        }
    )*};
}

impl<'de> Deserializer<'de> for Recorder<'_> {
    type Error = Error;

    builtin! {
        deserialize_bool "bool" visit_bool false;
        deserialize_i8 "int8" visit_i8 1;
        deserialize_i16 "int16" visit_i16 1;
        deserialize_i32 "int32" visit_i32 1;
        deserialize_i64 "int" visit_i64 1;
        deserialize_u8 "uint8" visit_u8 1;
        deserialize_u16 "uint16" visit_u16 1;
        deserialize_u32 "uint32" visit_u32 1;
        deserialize_u64 "uint64" visit_u64 1;
        deserialize_f32 "number" visit_f32 1.0;
        deserialize_f64 "number" visit_f64 1.0;
        deserialize_str "str" visit_str "x";
        deserialize_string "str" visit_str "x";
        deserialize_identifier "str" visit_str "x";
    }

    /// A type that may be several, and says by itself what it expects.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let name = (&visitor as &dyn Expected).to_string();
        let builtin = Schema::Builtin;
        *self.out = match name.as_str() {
            "any valid JSON value" => builtin("any"),
            "StrOrNull" => Schema::Alternate(name, vec![builtin("str"), builtin("null")]),
            "string or array of strings" => {
                let list = Schema::Array(Box::new(builtin("str")));
                Schema::Alternate(name, vec![builtin("str"), list])
            }
            _ => Schema::Alternate(name, Vec::new()),
        };
        visitor.visit_str("x")
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        *self.out = Schema::Object(Shape::default());
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        match name {
            SIZE => {
                *self.out = Schema::Builtin("size");
                let one: U64Deserializer<Error> = 1u64.into_deserializer();
                visitor.visit_newtype_struct(one)
            }
            PATH => {
                *self.out = Schema::Builtin("str");
                visitor.visit_str("x")
            }
            ONLY_ON | ONLY_OFF => {
                *self.out = Schema::Builtin("bool");
                visitor.visit_newtype_struct((name == ONLY_ON).into_deserializer())
            }
            WORD_OR_OBJECT => {
                let name = (&visitor as &dyn Expected).to_string();
                let mut choices = [NOTHING; 2];
                let both = Choices { run: self.run, path: self.path, left: choices.iter_mut() };
                let value = visitor.visit_seq(both);
                *self.out = Schema::Alternate(name, choices.into());
                value
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let mut item = Schema::Builtin("any");
        let items = OneItem { run: self.run, path: self.path, out: Some(&mut item) };
        let value = visitor.visit_seq(items);
        *self.out = Schema::Array(Box::new(item));
        value
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value> {
        visitor.visit_map(self.members(None))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_map(self.members(Some(names)))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        *self.out = Schema::Enum(words.iter().map(|word| (*word).to_owned()).collect());
        let first: StrDeserializer<'_, Error> =
            words.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit_struct tuple tuple_struct ignored_any
    }
}

/// A list of one.
struct OneItem<'a> {
    run: &'a Run,
    path: String,
    out: Option<&'a mut Schema>,
}

impl<'de> SeqAccess<'de> for OneItem<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        let Some(out) = self.out.take() else { return Ok(None) };
        seed.deserialize(Recorder { run: self.run, path: self.path.clone(), out }).map(Some)
    }
}

/// What a value can be, one after the other.
struct Choices<'a> {
    run: &'a Run,
    path: String,
    left: std::slice::IterMut<'a, Schema>,
}

impl<'de> SeqAccess<'de> for Choices<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        let Some(out) = self.left.next() else { return Ok(None) };
        seed.deserialize(Recorder { run: self.run, path: self.path.clone(), out }).map(Some)
    }
}

/// All members that a struct has names for; or parts, one after the other.
struct Members<'a> {
    run: &'a Run,
    path: &'a str,
    shape: &'a mut Shape,
    names: Option<std::slice::Iter<'static, &'static str>>,
    next: Option<String>,
}

/// What is noted of a type that asks for nothing.
const NOTHING: Schema = Schema::Builtin("any");

impl Members<'_> {
    /// A visitor that asks for a name and not for its value has the value by another name.
    fn fail_if_twice(&mut self) {
        if let Some(name) = self.next.take() {
            let previous = self.shape.members.last().map(|member| self.full(&member.name));
            self.run.fail(Failed { path: self.full(&name), previous, asked_for: None });
        }
    }

    /// The name of the next member that is to be read.
    fn next_name(&mut self) -> Option<&'static str> {
        loop {
            let name = *self.names.as_mut()?.next()?;
            let path = self.full(name);
            if !self.run.left_out.contains(&path) {
                return Some(name);
            }
            if let Some(schema) = self.run.known.get(&path).cloned() {
                self.shape.members.push(Member { name: name.to_owned(), schema, optional: false });
            }
        }
    }

    fn full(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        self.fail_if_twice();
        let Some(name) = self.next_name() else { return Ok(None) };
        self.next = Some(name.to_owned());
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        let Some(name) = self.next.take() else {
            let (run, path) = (self.run, self.path);
            return seed.deserialize(Part { run, path, shape: &mut *self.shape, tag: None });
        };
        let path = self.full(&name);
        let mut schema = NOTHING;
        let recorder = Recorder { run: self.run, path: path.clone(), out: &mut schema };
        let value = seed.deserialize(recorder);
        match value {
            Ok(value) => {
                self.shape.members.push(Member { name, schema, optional: false });
                Ok(value)
            }
            Err(error) => {
                let asked_for = Some(schema).filter(|schema| *schema != NOTHING);
                self.run.fail(Failed { path, previous: None, asked_for });
                Err(error.within(&name))
            }
        }
    }
}

impl Drop for Members<'_> {
    fn drop(&mut self) {
        self.fail_if_twice();
    }
}

/// A part of an object.
struct Part<'a> {
    run: &'a Run,
    path: &'a str,
    shape: &'a mut Shape,
    tag: Option<&'static str>,
}

impl<'a> Part<'a> {
    fn members(self, names: Option<&'static [&'static str]>) -> Members<'a> {
        let names = names.map(<[_]>::iter);
        Members { run: self.run, path: self.path, shape: self.shape, names, next: None }
    }
}

impl<'de> Deserializer<'de> for Part<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_map(self.members(None))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_map(self.members(Some(names)))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        if name == DEFERRED {
            // Those who read them tell what they are.
            return visitor.visit_map(self.members(Some(&[])));
        }
        visitor.visit_newtype_struct(Part { tag: Some(name), ..self })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let tag = self.tag.unwrap_or(name);
        let path =
            if self.path.is_empty() { tag.to_owned() } else { format!("{}.{tag}", self.path) };
        if self.run.left_out.contains(&path) {
            return Err(Error::missing(tag));
        }
        let all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.shape.tag = Some(tag);
        self.shape.variants = all.iter().map(|word| (word.clone(), Shape::default())).collect();
        let schema = Schema::Enum(all);
        self.shape.members.push(Member { name: tag.to_owned(), schema, optional: false });
        let place = self.run.chosen.get(self.path).copied().unwrap_or_default();
        let variant = self.shape.variants.get_mut(place);
        let (word, shape) = variant.ok_or_else(|| Error::other("there is no such variant"))?;
        visitor.visit_enum(Variant { run: self.run, path: self.path, word, shape })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The variant that is read.
struct Variant<'a> {
    run: &'a Run,
    path: &'a str,
    word: &'a str,
    shape: &'a mut Shape,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Part<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Part<'a>)> {
        let word: StrDeserializer<'_, Error> = self.word.into_deserializer();
        let variant = seed.deserialize(word)?;
        Ok((variant, Part { run: self.run, path: self.path, shape: self.shape, tag: None }))
    }
}

impl<'de> VariantAccess<'de> for Part<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<()> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value> {
        Err(Error::other("a variant of an option type has names for its members"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_map(self.members(Some(names)))
    }
}
