//! The limits of a throttle group: QAPI's `ThrottleLimits`, and the same one by one, as `x-iops-total`.

use std::collections::BTreeMap;
use std::fmt;

use coblk::block::filters::throttle::{Rate, ThrottleLimits};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Numbers by their names.
pub(super) type Numbers = BTreeMap<String, i64>;

/// Limits that nodes share, as they were given: by name, as `iops-total-max`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThrottleGroupOptions {
    given: Numbers,
}

/// What is limited.
const RATES: [&str; 6] =
    ["bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"];
/// What is said of each: in the long run, in a burst, and how long a burst is.
const OF_A_RATE: [&str; 3] = ["", "-max", "-max-length"];
const SIZE: &str = "iops-size";

impl ThrottleGroupOptions {
    /// The names of all limits.
    pub fn names() -> impl Iterator<Item = String> {
        let of_rates = RATES.iter().flat_map(|rate| OF_A_RATE.map(|part| format!("{rate}{part}")));
        of_rates.chain([SIZE.to_owned()])
    }

    pub(super) fn is_limit(name: &str) -> bool {
        let of_rate =
            |rate: &str| name.strip_prefix(rate).is_some_and(|it| OF_A_RATE.contains(&it));
        name == SIZE || RATES.into_iter().any(of_rate)
    }

    /// Takes limits that were given one by one, which count more.
    pub(super) fn take_singly(&mut self, numbers: &mut Numbers) {
        let singly: Vec<String> =
            numbers.keys().filter(|name| name.starts_with("x-")).cloned().collect();
        for name in singly {
            if let Some(number) = numbers.remove(&name) {
                self.given.insert(name["x-".len()..].to_owned(), number);
            }
        }
    }

    /// As the block layer has them.
    ///
    /// # Errors
    /// If one is negative: its name.
    pub fn limits(&self) -> Result<ThrottleLimits, &str> {
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
            iops_size: number(SIZE).unwrap_or(0),
        })
    }
}

impl<'de> Deserialize<'de> for ThrottleGroupOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Limits;
        impl<'de> Visitor<'de> for Limits {
            type Value = ThrottleGroupOptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut given = Numbers::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !ThrottleGroupOptions::is_limit(&name) {
                        return Err(M::Error::unknown_field(&name, &[]));
                    }
                    given.insert(name, map.next_value()?);
                }
                Ok(ThrottleGroupOptions { given })
            }
        }
        deserializer.deserialize_map(Limits)
    }
}
