//! [`Object`]: members that no part has taken yet. A part takes those that it has names for.

use serde::Deserializer;
use serde::de::{DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::tree::{Notation, Result, Tree};
use crate::types::{DEFERRED, TEXTS, VALUES};

pub struct Object {
    left: Map<String, Value>,
    notation: Notation,
    depth: usize,
}

impl Object {
    pub fn new(left: Map<String, Value>, notation: Notation, depth: usize) -> Object {
        Object { left, notation, depth }
    }

    /// All members that are left.
    pub fn members(&mut self) -> Members<'_> {
        Members { object: self, names: None, next: None }
    }

    /// Those of these names, in this order.
    pub fn fields(&mut self, names: &'static [&'static str]) -> Members<'_> {
        Members { object: self, names: Some(names.iter()), next: None }
    }

    /// Everything must have been taken.
    pub fn finish(self) -> Result<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::unexpected(name)),
        }
    }
}

/// Members, one after the other; what is wrong in one has its name. A value that is asked for without a
/// name is a part of the object: what [`Parts`](crate::Parts) is made of.
pub struct Members<'a> {
    object: &'a mut Object,
    names: Option<std::slice::Iter<'static, &'static str>>,
    next: Option<(String, Value)>,
}

impl Members<'_> {
    fn next(&mut self) -> Option<(String, Value)> {
        let left = &mut self.object.left;
        match &mut self.names {
            Some(names) => names.find_map(|name| left.remove_entry(*name)),
            None => left.keys().next().cloned().and_then(|name| left.remove_entry(&name)),
        }
    }
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        self.next = self.next();
        let Some((name, _)) = &self.next else { return Ok(None) };
        seed.deserialize(name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        match self.next.take() {
            Some((name, value)) => {
                let tree = Tree::below(value, self.object.notation, self.object.depth);
                seed.deserialize(tree).map_err(|error| error.within(&name))
            }
            None => seed.deserialize(Part { object: self.object, tag: None }),
        }
    }
}

/// A part of an object: a struct takes its fields, an enum the tag and the fields of the variant that
/// the tag names.
struct Part<'a> {
    object: &'a mut Object,
    tag: Option<&'static str>,
}

impl<'de> Deserializer<'de> for Part<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_map(self.object.members())
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_map(self.object.fields(fields))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        if name == DEFERRED {
            let members = Value::Object(std::mem::take(&mut self.object.left));
            let notation = if self.object.notation == Notation::Keyval { TEXTS } else { VALUES };
            let pair = Map::from_iter([(notation.to_owned(), members)]);
            return visitor.visit_map(Object::new(pair, Notation::Kept, 0).members());
        }
        visitor.visit_newtype_struct(Part { object: self.object, tag: Some(name) })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let tag = self.tag.unwrap_or(name);
        let word = match self.object.left.remove(tag) {
            Some(Value::String(word)) => word,
            Some(_) => return Err(Error::wrong_type("string").within(tag)),
            None => return Err(Error::missing(tag)),
        };
        visitor.visit_enum(Variant { object: self.object, tag, word })
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Variant<'a> {
    object: &'a mut Object,
    tag: &'static str,
    word: String,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Part<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Part<'a>)> {
        let variant = seed.deserialize(self.word.into_deserializer());
        let variant = variant.map_err(|error: Error| error.within(self.tag))?;
        Ok((variant, Part { object: self.object, tag: None }))
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
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_map(self.object.fields(fields))
    }
}
