//! [`Deferred`]: members that are read later, by the type that a word among them names.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::tree::{Notation, Tree};
use crate::types::{DEFERRED, TEXTS};

/// The members of an object that no part before has taken, as they were given.
///
/// The last of an object's [`Parts`](crate::Parts), where the types of the other members are known to a
/// registry only. What [`read`](Self::read) does not take either is unexpected.
///
/// ```
/// use coblk_qapi::{Deferred, FromParts, Parts, parts};
/// use serde::de::{Deserialize, Deserializer, MapAccess};
///
/// #[derive(serde::Deserialize)]
/// struct Common {
///     name: String,
/// }
///
/// struct Named {
///     name: String,
///     others: Deferred,
/// }
///
/// impl FromParts for Named {
///     fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Named, M::Error> {
///         let Common { name } = parts.take()?;
///         Ok(Named { name, others: parts.take()? })
///     }
/// }
///
/// impl<'de> Deserialize<'de> for Named {
///     fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Named, D::Error> {
///         parts(deserializer)
///     }
/// }
///
/// #[derive(serde::Deserialize)]
/// struct Circle {
///     radius: u32,
/// }
///
/// let named: Named = coblk_qapi::from_argument("name=a,radius=5", "name")?;
/// let circle: Circle = named.others.read()?;
/// assert_eq!((named.name.as_str(), circle.radius), ("a", 5));
/// # Ok::<(), coblk_qapi::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deferred {
    members: Map<String, Value>,
    /// All values are texts.
    is_keyval: bool,
}

impl Deferred {
    /// Members of a JSON object.
    pub fn new(members: Map<String, Value>) -> Deferred {
        Deferred { members, is_keyval: false }
    }

    /// Whether they were written as on a command line, and not as JSON.
    pub fn is_keyval(&self) -> bool {
        self.is_keyval
    }

    /// Reads them in the notation in which they were given.
    ///
    /// # Errors
    /// Which parameter is wrong, in QEMU's words.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.clone().take()
    }

    /// [`read`](Self::read), of members that are not needed any more: nothing is copied.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn take<T: DeserializeOwned>(self) -> Result<T, Error> {
        let notation = if self.is_keyval { Notation::Keyval } else { Notation::Json };
        T::deserialize(Tree::new(Value::Object(self.members), notation))
    }
}

impl<'de> Deserialize<'de> for Deferred {
    /// Only the deserializers of this crate know of it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Deferred, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Deferred;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Deferred, M::Error> {
                let Some((notation, members)) = map.next_entry::<String, Map<String, Value>>()?
                else {
                    return Ok(Deferred::default());
                };
                // None are the same in either notation.
                let is_keyval = notation == TEXTS && !members.is_empty();
                Ok(Deferred { members, is_keyval })
            }
        }
        deserializer.deserialize_newtype_struct(DEFERRED, Members)
    }
}

impl Serialize for Deferred {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.members.serialize(serializer)
    }
}
