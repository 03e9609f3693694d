//! Where to listen: QAPI's `SocketAddress`.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use super::refuse;

/// An address of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// `inet`: TCP.
    Inet(InetAddress),
    /// `unix`: a path.
    Unix(UnixAddress),
    /// `fd`: a socket that was inherited, by its number, or by the name that systemd gave it.
    Fd(String),
}

/// A TCP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetAddress {
    /// `host`: a name or an address; empty for all of this machine's.
    pub host: String,
    /// `port`: a number.
    pub port: String,
    /// `to`: ports up to this one are tried.
    pub to: Option<u16>,
    /// `ipv4`: whether addresses of IPv4 are used.
    pub ipv4: Option<bool>,
    /// `ipv6`: whether addresses of IPv6 are used.
    pub ipv6: Option<bool>,
}

/// The address of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixAddress {
    /// `path`.
    pub path: PathBuf,
    /// `abstract`: in Linux's own name space, and not a file.
    pub is_abstract: bool,
}

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
    path: Option<PathBuf>,
    r#abstract: Option<bool>,
    tight: Option<bool>,
    str: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Inet,
    Unix,
    Fd,
}

impl Flat {
    fn refuse_inet<E: de::Error>(&self) -> Result<(), E> {
        refuse(&[
            ("host", self.host.is_some()),
            ("port", self.port.is_some()),
            ("to", self.to.is_some()),
            ("ipv4", self.ipv4.is_some()),
            ("ipv6", self.ipv6.is_some()),
            ("numeric", self.numeric.is_some()),
        ])
    }

    fn refuse_unix<E: de::Error>(&self) -> Result<(), E> {
        refuse(&[
            ("path", self.path.is_some()),
            ("abstract", self.r#abstract.is_some()),
            ("tight", self.tight.is_some()),
        ])
    }

    fn refuse_fd<E: de::Error>(&self) -> Result<(), E> {
        refuse(&[("str", self.str.is_some())])
    }

    fn inet<E: de::Error>(self) -> Result<InetAddress, E> {
        Ok(InetAddress {
            host: self.host.ok_or_else(|| E::missing_field("host"))?,
            port: self.port.ok_or_else(|| E::missing_field("port"))?,
            to: self.to,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
        })
    }

    fn unix<E: de::Error>(self) -> Result<UnixAddress, E> {
        let is_abstract = self.r#abstract.unwrap_or(false);
        if is_abstract && self.tight == Some(false) {
            return Err(E::custom("Parameter 'tight' is not supported but as 'on'"));
        }
        let path = self.path.ok_or_else(|| E::missing_field("path"))?;
        Ok(UnixAddress { path, is_abstract })
    }
}

impl<'de> Deserialize<'de> for SocketAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddress, D::Error> {
        let flat = Flat::deserialize(deserializer)?;
        match flat.kind {
            Kind::Inet => {
                flat.refuse_unix()?;
                flat.refuse_fd()?;
                flat.inet().map(SocketAddress::Inet)
            }
            Kind::Unix => {
                flat.refuse_inet()?;
                flat.refuse_fd()?;
                flat.unix().map(SocketAddress::Unix)
            }
            Kind::Fd => {
                flat.refuse_inet()?;
                flat.refuse_unix()?;
                let number = flat.str.ok_or_else(|| de::Error::missing_field("str"))?;
                Ok(SocketAddress::Fd(number))
            }
        }
    }
}
