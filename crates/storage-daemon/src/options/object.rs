//! `--object`: QAPI's `ObjectOptions`.

use coblk::qapi::{FromParts, Parts};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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

    /// With every property as it is by default if it is not given.
    #[must_use]
    pub fn with_defaults(&self) -> IothreadOptions {
        IothreadOptions {
            poll_max_ns: self.poll_max_ns.or(Some(Self::POLL_MAX_NS)),
            poll_grow: self.poll_grow.or(Some(0)),
            poll_shrink: self.poll_shrink.or(Some(0)),
            aio_max_batch: self.aio_max_batch.or(Some(0)),
            thread_pool_min: self.thread_pool_min.or(Some(0)),
            thread_pool_max: self.thread_pool_max.or(Some(Self::MAX_THREADS)),
        }
    }

    /// How long its loop looks for work at most, unless told otherwise: QEMU's.
    pub(crate) const POLL_MAX_NS: i64 = 32_768;
    /// Workers at most, unless told otherwise: QEMU's.
    const MAX_THREADS: i64 = coblk::aio::DEFAULT_MAX_THREADS as i64;
}

impl ObjectKind {
    /// Its `qom-type`.
    pub fn name(&self) -> &'static str {
        match self {
            ObjectKind::Iothread(_) => "iothread",
            ObjectKind::ThrottleGroup(_) => "throttle-group",
            ObjectKind::TlsCredsX509(_) => "tls-creds-x509",
        }
    }

    /// Its properties, with the defaults of those that were not given.
    pub fn values(&self) -> Map<String, Value> {
        let values = match self {
            ObjectKind::Iothread(options) => serde_json::to_value(options.with_defaults()),
            ObjectKind::ThrottleGroup(options) => return options.values(),
            ObjectKind::TlsCredsX509(options) => serde_json::to_value(options),
        };
        match values {
            Ok(Value::Object(values)) => values,
            // They are plain members.
            _ => Map::new(),
        }
    }

    /// The names of the properties of a type, and the types of these in QAPI; none if there is no such
    /// type of objects.
    pub fn properties(kind: &str) -> Vec<(String, &'static str)> {
        match kind {
            "iothread" => IothreadOptions::PROPERTIES.map(|name| (name.to_owned(), "int")).to_vec(),
            "throttle-group" => {
                let limits = ThrottleGroupOptions::names();
                let limits = limits.map(|name| (format!("x-{name}"), "int"));
                limits.chain([("limits".to_owned(), "ThrottleLimits")]).collect()
            }
            "tls-creds-x509" => {
                let kind_of = |name: &str| match name {
                    "dir" => "string",
                    "endpoint" => "QCryptoTLSCredsEndpoint",
                    _ => "bool",
                };
                let names = TlsCredsX509Options::PROPERTIES;
                names.map(|name| (name.to_owned(), kind_of(name))).to_vec()
            }
            _ => Vec::new(),
        }
    }
}

impl ObjectOptions {
    /// The types of objects that there are.
    pub const TYPES: [&'static str; 3] = ["iothread", "throttle-group", "tls-creds-x509"];
}

/// What all objects have.
#[derive(Deserialize, Serialize)]
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

impl Serialize for ObjectOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let common = Common { id: self.id.clone() };
        coblk::qapi::write_variant(serializer, "qom-type", &self.kind, &common)
    }
}
