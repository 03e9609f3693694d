//! What a type of options looks like, found by reading one: [`Schema::of`].
//!
//! Serde's derive asks a deserializer for its fields, and each field for its type. A deserializer that
//! answers with anything, and writes down what it was asked, has the schema in the end. What may be left
//! out is what is not missed when it is.

mod record;
mod write;

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

pub use write::Schemas;

use crate::error::Error;
use record::{Failed, Run};

/// A type, as QAPI has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Schema {
    /// One of QAPI's own: `str`, `int`, `uint16`, `size`, `bool`, `number`, `null`, `any`.
    Builtin(&'static str),
    /// One of some words.
    Enum(Vec<String>),
    /// A list.
    Array(Box<Schema>),
    /// A group of members.
    Object(Shape),
    /// One of several types; or, if there is none in the list, a type of this name that is told elsewhere.
    Alternate(String, Vec<Schema>),
}

/// The members of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Those that it has in any case.
    pub members: Vec<Member>,
    /// The member whose word says which others there are.
    pub tag: Option<&'static str>,
    /// These others, by that word.
    pub variants: Vec<(String, Shape)>,
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its type.
    pub schema: Schema,
    /// Whether it may be left out.
    pub optional: bool,
}

impl Schema {
    /// An object with these members, none of which may be left out.
    pub fn object(members: &[(&str, &'static str)]) -> Schema {
        let member = |(name, kind): &(&str, &'static str)| Member {
            name: (*name).to_owned(),
            schema: Schema::Builtin(kind),
            optional: false,
        };
        Schema::Object(Shape { members: members.iter().map(member).collect(), ..Shape::default() })
    }

    /// An object with one member, which may not be left out.
    pub fn with(name: &str, schema: Schema) -> Schema {
        let member = Member { name: name.to_owned(), schema, optional: false };
        Schema::Object(Shape { members: vec![member], ..Shape::default() })
    }

    /// The schema of a type of options. All variants are described of the type itself; of a member that
    /// has some, its first one. Members that are not [supported](crate::Unsupported), and other names of
    /// the same member, are not in it.
    ///
    /// # Errors
    /// If the type has something that cannot be found by reading it: what went wrong.
    pub fn of<T: DeserializeOwned>() -> Result<Schema, Error> {
        let mut run = Run::default();
        let mut schema = settle::<T>(&mut run)?;
        let Schema::Object(shape) = &mut schema else { return Ok(schema) };
        let words: Vec<String> = shape.variants.iter().map(|(word, _)| word.clone()).collect();
        mark_optional::<T>(&run, shape, 0);
        for (place, word) in words.iter().enumerate().skip(1) {
            let mut run = Run { variant: place, ..Run::default() };
            let Schema::Object(mut other) = settle::<T>(&mut run)? else { continue };
            mark_optional::<T>(&run, &mut other, place);
            if let Some((_, variant)) = other.variants.into_iter().nth(place) {
                shape.variants[place] = (word.clone(), variant);
            }
        }
        Ok(schema)
    }
}

/// Reads a value, and again without a member that it cannot have, until it has all that it can. One that
/// it must have, and that takes nothing it is given, is known by what it asked for.
fn settle<T: DeserializeOwned>(run: &mut Run) -> Result<Schema, Error> {
    loop {
        let (schema, result) = run.read::<T>();
        let Err(error) = result else { return Ok(schema) };
        let Some(Failed { path, previous, asked_for }) = run.failed.take() else {
            match run.known.contains_key(error.parameter()) {
                true => return Ok(schema),
                false => return Err(error),
            }
        };
        // Of two names for one member it is missed, or there twice, by its own.
        let other_name = previous.filter(|_| error.parameter() == path);
        let member = other_name.unwrap_or(path);
        if !run.left_out.insert(member.clone()) {
            return Err(error);
        }
        run.known.extend(asked_for.map(|schema| (member, schema)));
    }
}

/// A member may be left out if it is not missed then. `variant` is the one that was read.
fn mark_optional<T: DeserializeOwned>(run: &Run, shape: &mut Shape, variant: usize) {
    let is_optional = |path: &str| {
        let mut left_out: BTreeSet<String> = run.left_out.clone();
        left_out.insert(path.to_owned());
        let without = Run { left_out, variant, ..Run::default() };
        without.read::<T>().1.map_or_else(|error| error.parameter() != path, |_| true)
    };
    mark(&mut shape.members, "", &is_optional);
    if let Some((_, own)) = shape.variants.get_mut(variant) {
        mark(&mut own.members, "", &is_optional);
    }
}

fn mark(members: &mut [Member], prefix: &str, is_optional: &impl Fn(&str) -> bool) {
    for member in members {
        let path = format!("{prefix}{}", member.name);
        member.optional = is_optional(&path);
        let inner = match &mut member.schema {
            Schema::Array(item) => &mut **item,
            other => other,
        };
        if let Schema::Object(shape) = inner {
            mark(&mut shape.members, &format!("{path}."), is_optional);
        }
    }
}

#[cfg(test)]
mod tests;
