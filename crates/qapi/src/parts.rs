//! [`Parts`]: how an object is read that has members of its own and, by the word in one of them, others.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

/// The members of an object, for several structs to share.
///
/// ```
/// use coblk_qapi::{FromParts, Parts, parts};
/// use serde::de::{Deserialize, Deserializer, MapAccess};
///
/// #[derive(Debug, PartialEq, serde::Deserialize)]
/// #[serde(rename_all = "kebab-case")]
/// enum Shape {
///     Circle { radius: u32 },
///     Point,
/// }
///
/// #[derive(serde::Deserialize)]
/// struct Common {
///     name: String,
/// }
///
/// #[derive(Debug, PartialEq)]
/// struct Named {
///     name: String,
///     shape: Shape,
/// }
///
/// impl FromParts for Named {
///     fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Named, M::Error> {
///         let shape = parts.variant("type")?;
///         let Common { name } = parts.take()?;
///         Ok(Named { name, shape })
///     }
/// }
///
/// impl<'de> Deserialize<'de> for Named {
///     fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Named, D::Error> {
///         parts(deserializer)
///     }
/// }
///
/// let circle: Named = coblk_qapi::from_argument("circle,name=a,radius=5", "type")?;
/// assert_eq!(circle, Named { name: "a".to_owned(), shape: Shape::Circle { radius: 5 } });
/// let error = coblk_qapi::from_argument::<Named>("point,name=a,radius=5", "type").unwrap_err();
/// assert_eq!(error.to_string(), "Parameter 'radius' is unexpected");
/// # Ok::<(), coblk_qapi::Error>(())
/// ```
pub struct Parts<M>(M);

impl<'de, M: MapAccess<'de>> Parts<M> {
    /// Those of a map that a visitor was given.
    pub fn new(members: M) -> Parts<M> {
        Parts(members)
    }

    /// Takes the members that a struct has names for.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn take<T: Deserialize<'de>>(&mut self) -> Result<T, M::Error> {
        self.0.next_value()
    }

    /// Takes the member `tag`, whose word is the name of a variant, and the members of that variant.
    ///
    /// # Errors
    /// If there is no such variant, and what is wrong with its members.
    pub fn variant<T: Deserialize<'de>>(&mut self, tag: &'static str) -> Result<T, M::Error> {
        self.0.next_value_seed(Tagged { tag, kind: PhantomData })
    }
}

/// A type that is read in parts.
pub trait FromParts: Sized {
    /// Takes its parts. What is left in the end is unexpected.
    ///
    /// # Errors
    /// What is wrong.
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Self, M::Error>;
}

/// The `Deserialize` of a type that is read in parts. Only the deserializers of this crate know of parts.
///
/// # Errors
/// What is wrong.
pub fn parts<'de, T: FromParts, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct InParts<T>(PhantomData<T>);
    impl<'de, T: FromParts> Visitor<'de> for InParts<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("object")
        }

        fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<T, M::Error> {
            T::from_parts(&mut Parts::new(members))
        }
    }
    deserializer.deserialize_map(InParts(PhantomData))
}

/// An enum with the name of its tag.
struct Tagged<T> {
    tag: &'static str,
    kind: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Tagged<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_newtype_struct(self.tag, self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Tagged<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a member '{}'", self.tag)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(deserializer)
    }
}
