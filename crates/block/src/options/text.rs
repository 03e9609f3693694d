//! How [`NodeOptions`] are read and written: what all nodes have, and what belongs to the driver.

use std::fmt;
use std::path::PathBuf;

use coblk_qapi::{FromParts, Parts, Schema};
use serde::de::{MapAccess, Visitor};
use serde::ser::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DriverConfig, NodeOptions, NodeRef, NodeRefOrNull, OptionsError};
use crate::driver::mode::DetectZeroes;

/// The member that names the driver.
pub(crate) const TAG: &str = "driver";

#[derive(Deserialize)]
struct Driver {
    driver: String,
}

/// The options that all nodes have.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Common {
    node_name: Option<String>,
    discard: Option<Discard>,
    #[serde(default, skip_serializing_if = "Cache::is_empty")]
    cache: Cache,
    active: Option<bool>,
    read_only: Option<bool>,
    auto_read_only: Option<bool>,
    force_share: Option<bool>,
    detect_zeroes: Option<DetectZeroes>,
    #[serde(default, rename = "x-coblk-bitmaps", with = "coblk_qapi::path::option")]
    bitmaps: Option<PathBuf>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Discard {
    Ignore,
    Unmap,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cache {
    direct: Option<bool>,
    no_flush: Option<bool>,
}

impl Cache {
    fn is_empty(&self) -> bool {
        self.direct.is_none() && self.no_flush.is_none()
    }
}

/// The schema of what all nodes have.
pub(crate) fn common_schema() -> Result<Schema, OptionsError> {
    Schema::of::<Common>()
}

impl FromParts for NodeOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<NodeOptions, M::Error> {
        let Driver { driver } = parts.take()?;
        let common: Common = parts.take()?;
        Ok(NodeOptions {
            node_name: common.node_name,
            read_only: common.read_only,
            auto_read_only: common.auto_read_only,
            discard: common.discard.map(|discard| matches!(discard, Discard::Unmap)),
            detect_zeroes: common.detect_zeroes,
            force_share: common.force_share,
            cache_direct: common.cache.direct,
            cache_no_flush: common.cache.no_flush,
            active: common.active,
            bitmaps: common.bitmaps,
            driver: DriverConfig::written(driver, parts.take()?),
        })
    }
}

impl<'de> Deserialize<'de> for NodeOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeOptions, D::Error> {
        coblk_qapi::parts(deserializer)
    }
}

impl Serialize for NodeOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let discard = |unmap| if unmap { Discard::Unmap } else { Discard::Ignore };
        let common = Common {
            node_name: self.node_name.clone(),
            discard: self.discard.map(discard),
            cache: Cache { direct: self.cache_direct, no_flush: self.cache_no_flush },
            active: self.active,
            read_only: self.read_only,
            auto_read_only: self.auto_read_only,
            force_share: self.force_share,
            detect_zeroes: self.detect_zeroes,
            bitmaps: self.bitmaps.clone(),
        };
        let own = self.driver.members().map_err(S::Error::custom)?;
        let driver = serde_json::json!({ self.driver.name(): own });
        coblk_qapi::write_variant(serializer, TAG, &driver, &common)
    }
}

impl<'de> Deserialize<'de> for NodeRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeRef, D::Error> {
        struct NameOrOptions;
        impl<'de> Visitor<'de> for NameOrOptions {
            type Value = NodeRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("BlockdevRef")
            }

            fn visit_str<E>(self, name: &str) -> Result<NodeRef, E> {
                Ok(NodeRef::Name(name.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<NodeRef, M::Error> {
                NodeOptions::from_parts(&mut Parts::new(members)).map(NodeRef::from)
            }
        }
        deserializer.deserialize_any(NameOrOptions)
    }
}

impl<'de> Deserialize<'de> for NodeRefOrNull {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeRefOrNull, D::Error> {
        struct NodeOrNull;
        impl<'de> Visitor<'de> for NodeOrNull {
            type Value = NodeRefOrNull;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("BlockdevRefOrNull")
            }

            fn visit_str<E>(self, name: &str) -> Result<NodeRefOrNull, E> {
                Ok(NodeRefOrNull((!name.is_empty()).then(|| NodeRef::from(name))))
            }

            fn visit_unit<E>(self) -> Result<NodeRefOrNull, E> {
                Ok(NodeRefOrNull(None))
            }

            fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<NodeRefOrNull, M::Error> {
                let options = NodeOptions::from_parts(&mut Parts::new(members))?;
                Ok(NodeRef::from(options).into())
            }
        }
        deserializer.deserialize_any(NodeOrNull)
    }
}

impl Serialize for NodeRefOrNull {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(child) => child.serialize(serializer),
            // A member that is null counts as left out.
            None => serializer.serialize_str(""),
        }
    }
}

impl Serialize for NodeRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            NodeRef::Name(name) => serializer.serialize_str(name),
            NodeRef::Options(options) => options.serialize(serializer),
        }
    }
}
