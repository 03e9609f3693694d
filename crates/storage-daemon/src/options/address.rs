//! QAPI's `SocketAddress`, as options have it: `#[serde(with = "address")]` of a
//! [`SocketAddress`].

use std::path::PathBuf;

use coblk::aio::net::{InetAddress, KeepAlive, SocketAddress, UnixAddress, VsockAddress};
use coblk::qapi::{FromParts, Parts, path};
use serde::de::MapAccess;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Map;

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

/// What a TCP address has beside its host and its port; a character device has them beside its own.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct InetMembers {
    numeric: Option<bool>,
    pub(super) to: Option<u16>,
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
    pub(super) fn address(self, host: String, port: String) -> InetAddress {
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

/// The address of a unix socket, from members that options have by these names.
pub(super) fn unix(
    path: PathBuf,
    is_abstract: Option<bool>,
    is_tight: Option<bool>,
) -> UnixAddress {
    let mut address = UnixAddress::new(path);
    address.is_abstract = is_abstract.unwrap_or(false);
    address.is_tight = is_tight.unwrap_or(true);
    address
}

impl FromParts for Inet {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Inet, M::Error> {
        Ok(Inet { place: parts.take()?, members: parts.take()? })
    }
}

impl<'de> Deserialize<'de> for Inet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Inet, D::Error> {
        coblk::qapi::parts(deserializer)
    }
}

impl FromParts for Kind {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Kind, M::Error> {
        parts.variant("type")
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddress, D::Error> {
    Ok(match coblk::qapi::parts(from)? {
        Kind::Inet(Inet { place: Place { host, port }, members }) => {
            SocketAddress::Inet(members.address(host, port))
        }
        Kind::Unix(Unix { path, r#abstract, tight }) => {
            SocketAddress::Unix(unix(path, r#abstract, tight))
        }
        Kind::Vsock(Vsock { cid, port }) => SocketAddress::Vsock(VsockAddress::new(cid, port)),
        Kind::Fd(Fd { str }) => SocketAddress::Fd(str),
    })
}

pub(super) fn serialize<S: Serializer>(address: &SocketAddress, to: S) -> Result<S::Ok, S::Error> {
    let kind = match address.clone() {
        SocketAddress::Inet(address) => {
            let members = InetMembers::of(&address);
            let place = Place { host: address.host, port: address.port };
            Kind::Inet(Inet { place, members })
        }
        SocketAddress::Unix(UnixAddress { path, is_abstract, is_tight, .. }) => {
            let (r#abstract, tight) = (is_abstract.then_some(true), (!is_tight).then_some(false));
            Kind::Unix(Unix { path, r#abstract, tight })
        }
        SocketAddress::Vsock(VsockAddress { cid, port, .. }) => Kind::Vsock(Vsock { cid, port }),
        SocketAddress::Fd(str) => Kind::Fd(Fd { str }),
        other => return Err(S::Error::custom(format!("no option has the address {other}"))),
    };
    coblk::qapi::write_variant(to, "type", &kind, &Map::new())
}
