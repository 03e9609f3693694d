//! [`BitmapRef`]: which bitmap an option means.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A bitmap by its name alone, for a node that is said elsewhere, or with its node: QAPI's
/// `BlockDirtyBitmapOrStr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapRef {
    /// Its name.
    Name(String),
    /// Its node, and its name there.
    Of(NodeBitmap),
}

/// A bitmap of a node: QAPI's `BlockDirtyBitmap`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeBitmap {
    /// The name of the node.
    pub node: String,
    /// The name of the bitmap.
    pub name: String,
}

impl<'de> Deserialize<'de> for BitmapRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BitmapRef, D::Error> {
        struct NameOrBoth;
        impl<'de> Visitor<'de> for NameOrBoth {
            type Value = BitmapRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("BlockDirtyBitmapOrStr")
            }

            fn visit_str<E>(self, name: &str) -> Result<BitmapRef, E> {
                Ok(BitmapRef::Name(name.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<BitmapRef, M::Error> {
                NodeBitmap::deserialize(MapAccessDeserializer::new(members)).map(BitmapRef::Of)
            }
        }
        deserializer.deserialize_any(NameOrBoth)
    }
}

impl Serialize for BitmapRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BitmapRef::Name(name) => serializer.serialize_str(name),
            BitmapRef::Of(both) => both.serialize(serializer),
        }
    }
}
