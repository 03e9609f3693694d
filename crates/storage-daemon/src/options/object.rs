//! `--object`: QAPI's `ObjectOptions`.

use std::fmt;

use serde::de::{self, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::refuse;
use super::throttle::{Numbers, ThrottleGroupOptions};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// `iothread`.
    Iothread(IothreadOptions),
    /// `throttle-group`.
    ThrottleGroup(ThrottleGroupOptions),
    /// `tls-creds-x509`.
    TlsCredsX509(TlsCredsX509Options),
}

/// A thread that serves exports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

    fn take(numbers: &mut Numbers) -> IothreadOptions {
        IothreadOptions {
            poll_max_ns: numbers.remove("poll-max-ns"),
            poll_grow: numbers.remove("poll-grow"),
            poll_shrink: numbers.remove("poll-shrink"),
            aio_max_batch: numbers.remove("aio-max-batch"),
            thread_pool_min: numbers.remove("thread-pool-min"),
            thread_pool_max: numbers.remove("thread-pool-max"),
        }
    }
}

impl ObjectOptions {
    /// The types of objects that there are.
    pub const TYPES: [&'static str; 3] = ["iothread", "throttle-group", "tls-creds-x509"];
}

impl<'de> Deserialize<'de> for ObjectOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ObjectOptions, D::Error> {
        deserializer.deserialize_map(Properties::default())
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Iothread,
    ThrottleGroup,
    #[serde(rename = "tls-creds-x509")]
    TlsCredsX509,
}

/// What has been read of an object. Most properties are numbers.
#[derive(Default)]
struct Properties {
    kind: Option<Kind>,
    id: Option<String>,
    limits: Option<ThrottleGroupOptions>,
    /// With the name of the first one.
    tls: Option<(String, TlsCredsX509Options)>,
    numbers: Numbers,
}

impl<'de> Visitor<'de> for Properties {
    type Value = ObjectOptions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("object")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<ObjectOptions, M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "qom-type" => self.kind = Some(map.next_value()?),
                "id" => self.id = Some(map.next_value()?),
                "limits" => self.limits = Some(map.next_value()?),
                number if is_number(number) => _ = self.numbers.insert(name, map.next_value()?),
                _ => {
                    let (_, tls) =
                        self.tls.get_or_insert_with(|| (name.clone(), Default::default()));
                    if !tls.take(&name, &mut map)? {
                        return Err(M::Error::unknown_field(&name, &[]));
                    }
                }
            }
        }
        self.finish()
    }
}

fn is_number(property: &str) -> bool {
    let limit = property.strip_prefix("x-").is_some_and(ThrottleGroupOptions::is_limit);
    limit || IothreadOptions::PROPERTIES.contains(&property)
}

impl Properties {
    /// A member of credentials, and whether it is there.
    fn tls_member(&self) -> (&str, bool) {
        self.tls.as_ref().map_or(("", false), |(name, _)| (name, true))
    }

    fn finish<E: de::Error>(mut self) -> Result<ObjectOptions, E> {
        let kind = match self.kind.ok_or_else(|| E::missing_field("qom-type"))? {
            Kind::Iothread => {
                refuse(&[("limits", self.limits.is_some()), self.tls_member()])?;
                ObjectKind::Iothread(IothreadOptions::take(&mut self.numbers))
            }
            Kind::ThrottleGroup => {
                refuse(&[self.tls_member()])?;
                let mut group = self.limits.unwrap_or_default();
                group.take_singly(&mut self.numbers);
                ObjectKind::ThrottleGroup(group)
            }
            Kind::TlsCredsX509 => {
                refuse(&[("limits", self.limits.is_some())])?;
                ObjectKind::TlsCredsX509(self.tls.unwrap_or_default().1)
            }
        };
        if let Some(name) = self.numbers.keys().next() {
            return Err(E::unknown_field(name, &[]));
        }
        Ok(ObjectOptions { id: self.id.ok_or_else(|| E::missing_field("id"))?, kind })
    }
}
