//! `--object`: QAPI's `ObjectOptions`.

use coblk::qapi::{FromParts, Parts};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use super::throttle::ThrottleGroupOptions;
use super::tls::TlsCredsX509Options;

/// Something that others refer to by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectOptions {
    /// `id`: unique among objects.
    pub id: String,
    /// `qom-type`, and its properties.
    pub kind: ObjectKind,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// `iothread`.
    Iothread(IothreadOptions),
    /// `throttle-group`.
    ThrottleGroup(ThrottleGroupOptions),
    /// `tls-creds-x509`.
    #[serde(rename = "tls-creds-x509")]
    TlsCredsX509(TlsCredsX509Options),
}

/// A thread that serves exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadOptions {
    /// `poll-max-ns`: how long it looks for work before it sleeps; 32768 by default, 0 for not at
    /// all.
    pub poll_max_ns: Option<i64>,
    /// `poll-grow`: by what that time is multiplied when it was too short; 0 for 2.
    pub poll_grow: Option<i64>,
    /// `poll-shrink`: by what it is divided when it was too long; 0 to begin anew.
    pub poll_shrink: Option<i64>,
    /// `aio-max-batch`: known, and without effect.
    pub aio_max_batch: Option<i64>,
    /// `thread-pool-min`: workers that stay; 0 by default.
    pub thread_pool_min: Option<i64>,
    /// `thread-pool-max`: workers at most; 64 by default.
    pub thread_pool_max: Option<i64>,
}

impl IothreadOptions {
    /// Its properties, which are all numbers.
    pub const PROPERTIES: [&'static str; 6] = [
        "aio-max-batch",
        "poll-grow",
        "poll-max-ns",
        "poll-shrink",
        "thread-pool-max",
        "thread-pool-min",
    ];
}

impl ObjectOptions {
    /// The types of objects that there are.
    pub const TYPES: [&'static str; 3] = ["iothread", "throttle-group", "tls-creds-x509"];
}

/// What all objects have.
#[derive(Deserialize)]
struct Common {
    id: String,
}

impl FromParts for ObjectOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<ObjectOptions, M::Error> {
        let (kind, common): (_, Common) = (parts.variant("qom-type")?, parts.take()?);
        Ok(ObjectOptions { id: common.id, kind })
    }
}

impl<'de> Deserialize<'de> for ObjectOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ObjectOptions, D::Error> {
        coblk::qapi::parts(deserializer)
    }
}
