//! QAPI's `SocketAddress`, as options have it: how a [`SocketAddress`] is read and written, with the
//! feature `qapi`.

use std::path::PathBuf;

use coblk_qapi::{FromParts, Parts, path};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::{InetAddress, KeepAlive, SocketAddress, UnixAddress, VsockAddress};

/// An address by its `type`.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Inet(Inet),
    Unix(Unix),
    Vsock(Vsock),
    Fd(Fd),
}

#[derive(Serialize)]
struct Inet {
    #[serde(flatten)]
    place: Place,
    #[serde(flatten)]
    members: InetMembers,
}

#[derive(Deserialize, Serialize)]
struct Place {
    host: String,
    port: String,
}

/// What a TCP address has beside its host and its port, for options that have these beside members of
/// their own. With the feature `qapi`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InetMembers {
    numeric: Option<bool>,
    to: Option<u16>,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
    keep_alive: Option<bool>,
    keep_alive_count: Option<u32>,
    keep_alive_idle: Option<u32>,
    keep_alive_interval: Option<u32>,
}

#[derive(Deserialize, Serialize)]
struct Unix {
    #[serde(with = "path")]
    path: PathBuf,
    r#abstract: Option<bool>,
    tight: Option<bool>,
}

#[derive(Deserialize, Serialize)]
struct Vsock {
    cid: String,
    port: String,
}

#[derive(Deserialize, Serialize)]
struct Fd {
    str: String,
}

impl InetMembers {
    /// Whether there is a range of ports.
    pub fn has_range(&self) -> bool {
        self.to.is_some()
    }

    /// The address.
    #[must_use]
    pub fn address(self, host: String, port: String) -> InetAddress {
        let mut address = InetAddress::new(host, port);
        address.numeric = self.numeric.unwrap_or(false);
        (address.to, address.ipv4, address.ipv6) = (self.to, self.ipv4, self.ipv6);
        let mut keep_alive = KeepAlive::default();
        keep_alive.enabled = self.keep_alive;
        keep_alive.count = self.keep_alive_count;
        keep_alive.idle_seconds = self.keep_alive_idle;
        keep_alive.interval_seconds = self.keep_alive_interval;
        address.keep_alive = keep_alive;
        address
    }

    fn of(address: &InetAddress) -> InetMembers {
        InetMembers {
            numeric: address.numeric.then_some(true),
            to: address.to,
            ipv4: address.ipv4,
            ipv6: address.ipv6,
            keep_alive: address.keep_alive.enabled,
            keep_alive_count: address.keep_alive.count,
            keep_alive_idle: address.keep_alive.idle_seconds,
            keep_alive_interval: address.keep_alive.interval_seconds,
        }
    }
}

impl FromParts for Inet {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Inet, M::Error> {
        Ok(Inet { place: parts.take()?, members: parts.take()? })
    }
}

impl<'de> Deserialize<'de> for Inet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Inet, D::Error> {
        coblk_qapi::parts(deserializer)
    }
}

impl FromParts for Kind {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Kind, M::Error> {
        parts.variant("type")
    }
}

impl<'de> Deserialize<'de> for SocketAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddress, D::Error> {
        Ok(match coblk_qapi::parts(deserializer)? {
            Kind::Inet(Inet { place: Place { host, port }, members }) => {
                SocketAddress::Inet(members.address(host, port))
            }
            Kind::Unix(Unix { path, r#abstract, tight }) => {
                let mut address = UnixAddress::new(path);
                address.is_abstract = r#abstract.unwrap_or(false);
                address.is_tight = tight.unwrap_or(true);
                SocketAddress::Unix(address)
            }
            Kind::Vsock(Vsock { cid, port }) => SocketAddress::Vsock(VsockAddress::new(cid, port)),
            Kind::Fd(Fd { str }) => SocketAddress::Fd(str),
        })
    }
}

impl Serialize for SocketAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = match self.clone() {
            SocketAddress::Inet(address) => {
                let members = InetMembers::of(&address);
                let place = Place { host: address.host, port: address.port };
                Kind::Inet(Inet { place, members })
            }
            SocketAddress::Unix(UnixAddress { path, is_abstract, is_tight }) => {
                let (r#abstract, tight) =
                    (is_abstract.then_some(true), (!is_tight).then_some(false));
                Kind::Unix(Unix { path, r#abstract, tight })
            }
            SocketAddress::Vsock(VsockAddress { cid, port }) => Kind::Vsock(Vsock { cid, port }),
            SocketAddress::Fd(str) => Kind::Fd(Fd { str }),
        };
        coblk_qapi::write_variant(serializer, "type", &kind, &Nothing {})
    }
}

/// What an address has whatever its type.
#[derive(Serialize)]
struct Nothing {}
