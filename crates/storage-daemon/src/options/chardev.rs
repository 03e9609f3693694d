//! `--chardev` and `--monitor`: where a monitor listens, and which.

use coblk::qapi::shorten;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::address::{InetAddress, SocketAddress, UnixAddress};
use super::refuse;

/// A character device: a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevOptions {
    /// `id`.
    pub id: String,
    /// What it is.
    pub socket: SocketChardev,
}

/// A socket that somebody talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketChardev {
    /// `path`, or `host` and `port`, or `fd`.
    pub address: SocketAddress,
    /// `server`: listens, and does not connect.
    pub server: bool,
    /// `reconnect-ms`: after what time a connection that cannot be made or has ended is tried again;
    /// for who connects. Never by default.
    pub reconnect: Option<Duration>,
}

/// As QEMU's command line has it: flat.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Flat {
    backend: String,
    id: Option<String>,
    path: Option<std::path::PathBuf>,
    r#abstract: Option<bool>,
    tight: Option<bool>,
    host: Option<String>,
    port: Option<String>,
    to: Option<u16>,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
    fd: Option<String>,
    server: Option<bool>,
    wait: Option<bool>,
    reconnect: Option<u32>,
    reconnect_ms: Option<u32>,
}

impl Flat {
    /// In seconds, or, as QEMU would rather have it, in milliseconds. 0 is never.
    fn reconnect<E: de::Error>(&self) -> Result<Option<Duration>, E> {
        let pause = match (self.reconnect, self.reconnect_ms) {
            (None, None) => return Ok(None),
            (Some(seconds), None) => Duration::from_secs(seconds.into()),
            (None, Some(ms)) => Duration::from_millis(ms.into()),
            (Some(_), Some(_)) => {
                return Err(E::custom("'reconnect' and 'reconnect-ms' are mutually exclusive"));
            }
        };
        if self.server == Some(true) {
            return Err(E::custom(
                "'reconnect' option is incompatible with socket in server listen mode",
            ));
        }
        Ok(Some(pause).filter(|pause| !pause.is_zero()))
    }

    fn address<E: de::Error>(self) -> Result<SocketAddress, E> {
        let is_inet = [self.port.is_some(), self.to.is_some(), self.host.is_some()].contains(&true);
        match (self.path, self.fd) {
            (Some(path), None) => {
                refuse(&[("host", self.host.is_some()), ("port", self.port.is_some())])?;
                let is_abstract = self.r#abstract.unwrap_or(false);
                Ok(SocketAddress::Unix(UnixAddress { path, is_abstract }))
            }
            (None, Some(fd)) if !is_inet => Ok(SocketAddress::Fd(fd)),
            (None, None) if is_inet => Ok(SocketAddress::Inet(InetAddress {
                host: self.host.unwrap_or_default(),
                port: self.port.ok_or_else(|| E::missing_field("port"))?,
                to: self.to,
                ipv4: self.ipv4,
                ipv6: self.ipv6,
            })),
            (None, None) => {
                Err(E::custom("chardev: socket: one of 'path', 'host' and 'fd' is needed"))
            }
            _ => Err(E::custom("chardev: socket: 'path', 'host' and 'fd' exclude each other")),
        }
    }
}

impl<'de> Deserialize<'de> for ChardevOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ChardevOptions, D::Error> {
        let flat = Flat::deserialize(deserializer)?;
        if flat.backend != "socket" {
            let backend = shorten(&flat.backend);
            let text = format!("'{backend}' is not a valid char driver name; there is socket");
            return Err(de::Error::custom(text));
        }
        if flat.tight == Some(false) {
            return Err(de::Error::custom("Parameter 'tight' is not supported but as 'on'"));
        }
        let server = flat.server.unwrap_or(false);
        if server && flat.wait != Some(false) {
            return Err(de::Error::custom(
                "Parameter 'wait' must be 'off': the daemon does not wait for a client to start",
            ));
        }
        let reconnect = flat.reconnect()?;
        let id = flat.id.clone();
        let id = id.ok_or_else(|| de::Error::custom("chardev: no id specified"))?;
        Ok(ChardevOptions {
            id,
            socket: SocketChardev { address: flat.address()?, server, reconnect },
        })
    }
}

/// A monitor on a character device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MonitorOptions {
    /// `chardev`: where.
    pub chardev: String,
    /// `id`.
    pub id: Option<String>,
    /// `mode`.
    #[serde(default)]
    pub mode: MonitorMode,
    /// `pretty`: answers are set for people to read.
    #[serde(default)]
    pub pretty: bool,
}

/// What a monitor speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MonitorMode {
    /// The QEMU Machine Protocol.
    #[default]
    Control,
    /// A command line for people. There is none.
    Readline,
}
