//! [`AddressOptions`]: QAPI's `SocketAddress`.

use std::path::PathBuf;

use coblk::aio::net::{InetAddress, KeepAlive, SocketAddress, UnixAddress, VsockAddress};
use serde::{Deserialize, Deserializer, de};

use super::refuse;

/// An address of a socket, as options have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressOptions(pub SocketAddress);

/// The members of all variants.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Flat {
    #[serde(rename = "type")]
    kind: Kind,
    host: Option<String>,
    port: Option<String>,
    to: Option<u16>,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
    numeric: Option<bool>,
    keep_alive: Option<bool>,
    keep_alive_count: Option<u32>,
    keep_alive_idle: Option<u32>,
    keep_alive_interval: Option<u32>,
    path: Option<PathBuf>,
    r#abstract: Option<bool>,
    tight: Option<bool>,
    cid: Option<String>,
    str: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Inet,
    Unix,
    Vsock,
    Fd,
}

impl Flat {
    /// Refuses what belongs to other kinds.
    fn check<E: de::Error>(&self) -> Result<(), E> {
        let (inet, unix) = (self.kind == Kind::Inet, self.kind == Kind::Unix);
        let vsock = self.kind == Kind::Vsock;
        refuse(&[
            ("host", !inet && self.host.is_some()),
            ("port", !inet && !vsock && self.port.is_some()),
            ("to", !inet && self.to.is_some()),
            ("ipv4", !inet && self.ipv4.is_some()),
            ("ipv6", !inet && self.ipv6.is_some()),
            ("numeric", !inet && self.numeric.is_some()),
            ("keep-alive", !inet && self.keep_alive.is_some()),
            ("keep-alive-count", !inet && self.keep_alive_count.is_some()),
            ("keep-alive-idle", !inet && self.keep_alive_idle.is_some()),
            ("keep-alive-interval", !inet && self.keep_alive_interval.is_some()),
            ("path", !unix && self.path.is_some()),
            ("abstract", !unix && self.r#abstract.is_some()),
            ("tight", !unix && self.tight.is_some()),
            ("cid", !vsock && self.cid.is_some()),
            ("str", self.kind != Kind::Fd && self.str.is_some()),
        ])
    }

    fn inet<E: de::Error>(self) -> Result<InetAddress, E> {
        Ok(inet(InetMembers {
            host: needed("host", self.host)?,
            port: needed("port", self.port)?,
            to: self.to,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            numeric: self.numeric,
            keep_alive: self.keep_alive,
            keep_alive_count: self.keep_alive_count,
            keep_alive_idle: self.keep_alive_idle,
            keep_alive_interval: self.keep_alive_interval,
        }))
    }
}

fn needed<E: de::Error>(name: &'static str, text: Option<String>) -> Result<String, E> {
    text.ok_or_else(|| E::missing_field(name))
}

/// The members of a TCP address, which a character device has beside its own.
pub(super) struct InetMembers {
    pub host: String,
    pub port: String,
    pub to: Option<u16>,
    pub ipv4: Option<bool>,
    pub ipv6: Option<bool>,
    pub numeric: Option<bool>,
    pub keep_alive: Option<bool>,
    pub keep_alive_count: Option<u32>,
    pub keep_alive_idle: Option<u32>,
    pub keep_alive_interval: Option<u32>,
}

pub(super) fn inet(members: InetMembers) -> InetAddress {
    let mut address = InetAddress::new(members.host, members.port);
    address.numeric = members.numeric.unwrap_or(false);
    (address.to, address.ipv4, address.ipv6) = (members.to, members.ipv4, members.ipv6);
    let mut keep_alive = KeepAlive::default();
    keep_alive.enabled = members.keep_alive;
    keep_alive.count = members.keep_alive_count;
    keep_alive.idle_seconds = members.keep_alive_idle;
    keep_alive.interval_seconds = members.keep_alive_interval;
    address.keep_alive = keep_alive;
    address
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

impl<'de> Deserialize<'de> for AddressOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AddressOptions, D::Error> {
        let flat = Flat::deserialize(deserializer)?;
        flat.check()?;
        Ok(AddressOptions(match flat.kind {
            Kind::Inet => SocketAddress::Inet(flat.inet()?),
            Kind::Unix => {
                let path = flat.path.ok_or_else(|| de::Error::missing_field("path"))?;
                SocketAddress::Unix(unix(path, flat.r#abstract, flat.tight))
            }
            Kind::Vsock => {
                let (cid, port) = (needed("cid", flat.cid)?, needed("port", flat.port)?);
                SocketAddress::Vsock(VsockAddress::new(cid, port))
            }
            Kind::Fd => SocketAddress::Fd(needed("str", flat.str)?),
        }))
    }
}
