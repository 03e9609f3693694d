//! `--chardev` and `--monitor`: where a monitor listens, and which.

use std::path::PathBuf;
use std::time::Duration;

use coblk::aio::net::{InetMembers, SocketAddress, UnixAddress};
use coblk::qapi::{FromParts, Only, Parts, path, shorten};
use serde::de::MapAccess;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

/// Backends that QEMU has, and that are not here.
const ABSENT: [&str; 19] = [
    "braille", "console", "dbus", "file", "hub", "memory", "msmouse", "mux", "null", "parallel",
    "parport", "pipe", "pty", "ringbuf", "serial", "spicevmc", "testdev", "udp", "vc",
];
/// Those that are here.
pub(crate) const BACKENDS: [&str; 2] = ["socket", "stdio"];

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChardevOptions {
    /// `id`.
    pub id: String,
    /// What it is.
    pub backend: ChardevBackend,
}

/// What a character device is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChardevBackend {
    /// `socket`.
    Socket(SocketChardev),
    /// `stdio`: the standard input and output.
    Stdio {
        /// `signal`: keys of the terminal, as the one that interrupts, send signals. On by default.
        signal: bool,
    },
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketChardev {
    /// `path`, or `host` and `port`, or `fd`.
    pub address: SocketAddress,
    /// `server`: listens, and does not connect.
    pub server: bool,
    /// `wait`: the daemon goes on only when a client has connected; for a server, and its default.
    pub wait: bool,
    /// `reconnect-ms`: after what time a connection that cannot be made or has ended is tried again;
    /// for a device that connects. Never by default.
    pub reconnect: Option<Duration>,
}

/// What all have. The backend is looked at by hand: QEMU has others.
#[derive(Deserialize)]
struct Common {
    backend: String,
    id: Option<String>,
    #[serde(rename = "mux")]
    _mux: Option<Only<false>>,
}

/// What a socket has beside the members of TCP addresses. The protocols around the bytes can only be
/// off; there is no delay in any case.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Socket {
    #[serde(default, deserialize_with = "path::option::deserialize")]
    path: Option<PathBuf>,
    r#abstract: Option<bool>,
    tight: Option<bool>,
    host: Option<String>,
    port: Option<String>,
    fd: Option<String>,
    server: Option<bool>,
    wait: Option<bool>,
    nodelay: Option<bool>,
    delay: Option<bool>,
    #[serde(rename = "telnet")]
    _telnet: Option<Only<false>>,
    #[serde(rename = "tn3270")]
    _tn3270: Option<Only<false>>,
    #[serde(rename = "websocket")]
    _websocket: Option<Only<false>>,
    reconnect: Option<u32>,
    reconnect_ms: Option<u32>,
}

#[derive(Deserialize)]
struct Stdio {
    signal: Option<bool>,
}

impl Socket {
    fn socket<E: de::Error>(self, inet: InetMembers) -> Result<SocketChardev, E> {
        if self.delay.is_some() && self.nodelay.is_some() {
            return Err(E::custom("'delay' and 'nodelay' are mutually exclusive"));
        }
        let server = self.server.unwrap_or(false);
        if !server && self.wait.is_some() {
            let text = "'wait' option is incompatible with socket in client connect mode";
            return Err(E::custom(text));
        }
        let (reconnect, wait) = (self.reconnect()?, server && self.wait.unwrap_or(true));
        Ok(SocketChardev { address: self.address(inet)?, server, wait, reconnect })
    }

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

    fn address<E: de::Error>(self, inet: InetMembers) -> Result<SocketAddress, E> {
        let is_inet = [self.port.is_some(), inet.has_range(), self.host.is_some()].contains(&true);
        match (self.path, self.fd) {
            (Some(path), None) => {
                let members = [("host", self.host.is_some()), ("port", self.port.is_some())];
                match members.into_iter().find(|(_, is_there)| *is_there) {
                    Some((name, _)) => Err(E::unknown_field(name, &[])),
                    None => {
                        let mut address = UnixAddress::new(path);
                        address.is_abstract = self.r#abstract.unwrap_or(false);
                        address.is_tight = self.tight.unwrap_or(true);
                        Ok(SocketAddress::Unix(address))
                    }
                }
            }
            (None, Some(fd)) if !is_inet => Ok(SocketAddress::Fd(fd)),
            (None, None) if is_inet => {
                let port = self.port.ok_or_else(|| E::missing_field("port"))?;
                Ok(SocketAddress::Inet(inet.address(self.host.unwrap_or_default(), port)))
            }
            (None, None) => {
                Err(E::custom("chardev: socket: one of 'path', 'host' and 'fd' is needed"))
            }
            _ => Err(E::custom("chardev: socket: 'path', 'host' and 'fd' exclude each other")),
        }
    }
}

impl FromParts for ChardevOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Self, M::Error> {
        let Common { backend, id, .. } = parts.take()?;
        let backend = match backend.as_str() {
            "socket" => {
                let socket: Socket = parts.take()?;
                ChardevBackend::Socket(socket.socket(parts.take()?)?)
            }
            "stdio" => {
                let Stdio { signal } = parts.take()?;
                ChardevBackend::Stdio { signal: signal.unwrap_or(true) }
            }
            other => return Err(no_backend(other)),
        };
        let id = id.ok_or_else(|| de::Error::custom("chardev: no id specified"))?;
        Ok(ChardevOptions { id, backend })
    }
}

fn no_backend<E: de::Error>(backend: &str) -> E {
    let there = BACKENDS.join(" and ");
    E::custom(match ABSENT.contains(&backend) {
        true => format!("char driver '{backend}' is not supported; there is {there}"),
        false => {
            let backend = shorten(backend);
            format!("'{backend}' is not a valid char driver name; there is {there}")
        }
    })
}

impl<'de> Deserialize<'de> for ChardevOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ChardevOptions, D::Error> {
        coblk::qapi::parts(deserializer)
    }
}

/// The members of an address have no group of their own.
impl Serialize for ChardevOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = match &self.backend {
            ChardevBackend::Socket(socket) => {
                let address = serde_json::to_value(&socket.address);
                let mut address = address.map_err(S::Error::custom)?;
                let mut members = address.as_object_mut().map(std::mem::take).unwrap_or_default();
                members.remove("type");
                if let Some(name) = members.remove("str") {
                    members.insert("fd".to_owned(), name);
                }
                members.insert("server".to_owned(), socket.server.into());
                if socket.server {
                    members.insert("wait".to_owned(), socket.wait.into());
                }
                if let Some(pause) = socket.reconnect {
                    members.insert("reconnect-ms".to_owned(), (pause.as_millis() as u64).into());
                }
                members.insert("backend".to_owned(), "socket".into());
                members
            }
            ChardevBackend::Stdio { signal } => {
                let members = [("backend", "stdio".into()), ("signal", (*signal).into())];
                members
                    .map(|(name, value): (_, Value)| (name.to_owned(), value))
                    .into_iter()
                    .collect()
            }
        };
        members.insert("id".to_owned(), self.id.clone().into());
        members.serialize(serializer)
    }
}

/// A monitor on a character device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
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
#[non_exhaustive]
pub enum MonitorMode {
    /// The QEMU Machine Protocol.
    #[default]
    Control,
    /// A command line for people. There is none.
    Readline,
}
