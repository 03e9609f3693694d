//! `throttle-group`: limits that nodes share.
//!
//! They are QAPI's `ThrottleLimits`, and the same one by one, as `x-iops-total`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use coblk::block::filters::throttle::{Rate, ThrottleGroup, ThrottleLimits};
use coblk::block::{BlockdevError, NamedObject};
use coblk::qapi::from_value;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::object_type::{ObjectPlace, ObjectType, Property};
use super::running::Objects;
use crate::error::DaemonError;
use crate::options::OptionError;

/// The type `throttle-group`. Its object is a [`ThrottleGroup`], which nodes find by its id.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThrottleGroupType;

/// Numbers by their names.
type Numbers = BTreeMap<String, i64>;

/// Limits that nodes share, as they were given: by name, as `iops-total-max`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ThrottleGroupOptions {
    #[serde(rename = "limits", skip_serializing_if = "Numbers::is_empty")]
    given: Numbers,
}

/// The names of the limits: of bytes and of requests, in the long run, in a burst, and how long a burst
/// is. And the members of a group: all of them, and each by itself.
macro_rules! limits {
    ($($name:literal)*) => {
        const LIMITS: &[&str] = &[$($name),*];
        const MEMBERS: &[&str] = &["limits", $(concat!("x-", $name)),*];
    };
}

limits! {
    "bps-total" "bps-total-max" "bps-total-max-length"
    "bps-read" "bps-read-max" "bps-read-max-length"
    "bps-write" "bps-write-max" "bps-write-max-length"
    "iops-total" "iops-total-max" "iops-total-max-length"
    "iops-read" "iops-read-max" "iops-read-max-length"
    "iops-write" "iops-write-max" "iops-write-max-length"
    "iops-size"
}

impl ThrottleGroupOptions {
    /// These, and in place of some of them those that `more` says.
    #[must_use]
    pub fn with(mut self, more: ThrottleGroupOptions) -> ThrottleGroupOptions {
        self.given.extend(more.given);
        self
    }

    /// The properties of the object: all limits, together and one by one.
    fn values(&self) -> Map<String, Value> {
        let value = |name: &str| {
            let default = i64::from(name.ends_with("-max-length"));
            Value::from(self.given.get(name).copied().unwrap_or(default))
        };
        let limits = LIMITS.iter().map(|name| ((*name).to_owned(), value(name)));
        let singly = LIMITS.iter().map(|name| (format!("x-{name}"), value(name)));
        let together = ("limits".to_owned(), Value::Object(limits.collect()));
        singly.chain([together]).collect()
    }

    /// As the block layer has them.
    ///
    /// # Errors
    /// If one is negative.
    pub fn checked_limits(&self) -> Result<ThrottleLimits, OptionError> {
        self.limits().map_err(|name| {
            let range = "bps/iops/max values must be within [0, 1000000000000000]";
            OptionError::other(format!("{name}: {range}"))
        })
    }

    /// As the block layer has them.
    ///
    /// # Errors
    /// If one is negative: its name.
    fn limits(&self) -> Result<ThrottleLimits, &str> {
        if let Some((name, _)) = self.given.iter().find(|(_, number)| **number < 0) {
            return Err(name);
        }
        let number = |name: &str| self.given.get(name).map(|number| number.unsigned_abs());
        let rate = |name: &str| Rate {
            avg: number(name).unwrap_or(0),
            max: number(&format!("{name}-max")).unwrap_or(0),
            burst_length_s: number(&format!("{name}-max-length")).unwrap_or(1),
        };
        Ok(ThrottleLimits {
            bps_total: rate("bps-total"),
            bps_read: rate("bps-read"),
            bps_write: rate("bps-write"),
            iops_total: rate("iops-total"),
            iops_read: rate("iops-read"),
            iops_write: rate("iops-write"),
            iops_size: number("iops-size").unwrap_or(0),
        })
    }
}

impl ObjectType for ThrottleGroupType {
    const NAME: &'static str = "throttle-group";
    type Options = ThrottleGroupOptions;
    type Object = ThrottleGroup;

    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &ThrottleGroupOptions,
    ) -> Result<ThrottleGroup, DaemonError> {
        let limits = options.checked_limits()?;
        let group = ThrottleGroup::new(place.id, limits).map_err(|source| {
            let (kind, id, source) = (ThrottleGroup::KIND, place.id.to_owned(), source.into());
            DaemonError::Blockdev(BlockdevError::Object { kind, id, source })
        })?;
        place.blockdevs.add_object(place.id, Arc::new(group.clone()))?;
        Ok(group)
    }

    fn release(&self, place: &ObjectPlace<'_, '_>, _: &ThrottleGroup) -> Result<(), DaemonError> {
        Ok(place.blockdevs.remove_object::<ThrottleGroup>(place.id)?)
    }

    /// Requests that wait go by the new limits.
    fn co_set(
        &self,
        _: &ObjectPlace<'_, '_>,
        group: &ThrottleGroup,
        options: &ThrottleGroupOptions,
        property: &str,
        value: Value,
    ) -> Result<ThrottleGroupOptions, DaemonError> {
        if property != "limits" {
            return Err(DaemonError::FixedProperty(property.to_owned()));
        }
        let options = options.clone().with(from_value(json!({ "limits": value }))?);
        group.set_limits(options.checked_limits()?).map_err(OptionError::other)?;
        Ok(options)
    }

    fn values(&self, options: &ThrottleGroupOptions) -> Map<String, Value> {
        options.values()
    }

    fn properties(&self) -> Vec<Property> {
        let singly = LIMITS.iter().map(|name| Property::new(format!("x-{name}"), "int"));
        singly.chain([Property::new("limits", "ThrottleLimits")]).collect()
    }
}

/// Lets everything pass that throttle groups hold back.
pub(crate) fn lift_limits(objects: &Objects) {
    for (id, group) in objects.all::<ThrottleGroup>() {
        if let Err(error) = group.set_limits(ThrottleLimits::default()) {
            tracing::error!(group = id, %error, "limits cannot be lifted");
        }
    }
}

/// QAPI's `ThrottleLimits`.
struct Limits(Numbers);

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limits, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Limits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Limits, M::Error> {
                let mut given = Numbers::new();
                while let Some((name, number)) = map.next_entry()? {
                    given.insert(name, number);
                }
                Ok(Limits(given))
            }
        }
        deserializer.deserialize_struct("ThrottleLimits", LIMITS, Members)
    }
}

impl<'de> Deserialize<'de> for ThrottleGroupOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Group;
        impl<'de> Visitor<'de> for Group {
            type Value = ThrottleGroupOptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut given = Numbers::new();
                while let Some(name) = map.next_key::<String>()? {
                    match name.strip_prefix("x-") {
                        // `limits` comes first, and those that are given one by one count more.
                        None => given = map.next_value::<Limits>()?.0,
                        Some(limit) => _ = given.insert(limit.to_owned(), map.next_value()?),
                    }
                }
                Ok(ThrottleGroupOptions { given })
            }
        }
        deserializer.deserialize_struct("ThrottleGroupProperties", MEMBERS, Group)
    }
}
