//! What a type of options looks like, found by reading one: [`Schema::of`].
//!
//! Serde's derive asks a deserializer for its fields, and each field for its type. A deserializer that
//! answers with anything, and writes down what it was asked, has the schema in the end. What may be left
//! out is what is not missed when it is.

mod record;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

pub use write::Schemas;

use crate::error::Error;
use record::{Chosen, Failed, Run};

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

    /// An object that has, beside its members, those of one of several types: `tag` is a member that names it,
    /// for types that only a registry knows; see [`Deferred`](crate::Deferred).
    #[must_use]
    pub fn with_variants(
        self,
        tag: &'static str,
        variants: impl IntoIterator<Item = (String, Schema)>,
    ) -> Schema {
        let shape = |schema| match schema {
            Schema::Object(shape) => shape,
            _ => Shape::default(),
        };
        let mut common = shape(self);
        let variants = variants.into_iter().map(|(word, schema)| (word, shape(schema)));
        common.variants = variants.collect();
        let words = common.variants.iter().map(|(word, _)| word.clone()).collect();
        let schema = Schema::Enum(words);
        common.members.push(Member { name: tag.to_owned(), schema, optional: false });
        common.tag = Some(tag);
        Schema::Object(common)
    }

    /// The schema of a type of options. Members that are not [supported](crate::Unsupported), and other
    /// names of the same member, are not in it. A member that must be there, and takes nothing it is
    /// given in a reading, is to be the last one: what follows it is told as if it may be left out.
    ///
    /// # Errors
    /// If the type has something that cannot be found by reading it: what went wrong.
    pub fn of<T: DeserializeOwned>() -> Result<Schema, Error> {
        read::<T>(Chosen::new())
    }
}

/// Reads a type with these variants, and once more with each variant that an object has besides.
fn read<T: DeserializeOwned>(chosen: Chosen) -> Result<Schema, Error> {
    let mut run = Run { chosen, ..Run::default() };
    let mut schema = settle::<T>(&mut run)?;
    let is_optional = |path: &str| is_optional::<T>(&run, path);
    visit(&mut schema, "", &run.chosen, &mut |shape, path| {
        for member in members(shape, run.chosen.get(path)) {
            member.optional = is_optional(&join(path, &member.name));
        }
    });
    let mut open = BTreeMap::new();
    visit(&mut schema, "", &run.chosen, &mut |shape, path| {
        if shape.tag.is_some() && !run.chosen.contains_key(path) {
            open.insert(path.to_owned(), shape.variants.len());
        }
    });
    for (path, count) in &open {
        // Another variant has others within.
        let others = open.keys().filter(|other| !is_within(other, path));
        let mut chosen = run.chosen.clone();
        chosen.extend(others.map(|other| (other.clone(), 0)));
        for place in 1..*count {
            chosen.insert(path.clone(), place);
            let mut found = None;
            visit(&mut read::<T>(chosen.clone())?, "", &chosen, &mut |shape, at| {
                if at == path {
                    found = shape.variants.get(place).cloned();
                }
            });
            visit(&mut schema, "", &run.chosen, &mut |shape, at| {
                if let (true, Some(found)) = (at == path, &found) {
                    shape.variants[place] = found.clone();
                }
            });
        }
    }
    Ok(schema)
}

/// Calls `each` with an object and its path, and with those in it, of the variants that were read.
fn visit(schema: &mut Schema, path: &str, chosen: &Chosen, each: &mut dyn FnMut(&mut Shape, &str)) {
    match schema {
        Schema::Array(item) => visit(item, path, chosen, each),
        Schema::Object(shape) => {
            each(shape, path);
            for member in members(shape, chosen.get(path)) {
                visit(&mut member.schema, &join(path, &member.name), chosen, each);
            }
        }
        _ => {}
    }
}

/// Those of an object and of the variant that was read.
fn members<'a>(
    shape: &'a mut Shape,
    variant: Option<&usize>,
) -> impl Iterator<Item = &'a mut Member> {
    let variant = shape.variants.get_mut(variant.copied().unwrap_or_default());
    let own = variant.map(|(_, own)| own.members.iter_mut());
    shape.members.iter_mut().chain(own.into_iter().flatten())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether an object is that of `path`, or in it.
fn is_within(other: &str, path: &str) -> bool {
    let rest = other.strip_prefix(path);
    path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
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

/// A member may be left out if it is not missed then.
fn is_optional<T: DeserializeOwned>(run: &Run, path: &str) -> bool {
    let mut left_out: BTreeSet<String> = run.left_out.clone();
    left_out.insert(path.to_owned());
    let without = Run { left_out, chosen: run.chosen.clone(), ..Run::default() };
    without.read::<T>().1.map_or_else(|error| error.parameter() != path, |_| true)
}

#[cfg(test)]
mod tests;
