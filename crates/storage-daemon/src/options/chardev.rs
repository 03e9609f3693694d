//! `--chardev` and `--monitor`: where a monitor listens, and which.

use coblk::options::shorten;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use coblk::aio::net::SocketAddress;

use super::address::{self, InetMembers};
use super::refuse;

/// Backends that QEMU has, and that are not here.
const ABSENT: [&str; 19] = [
    "braille", "console", "dbus", "file", "hub", "memory", "msmouse", "mux", "null", "parallel",
    "parport", "pipe", "pty", "ringbuf", "serial", "spicevmc", "testdev", "udp", "vc",
];
/// Those that are here.
pub(crate) const BACKENDS: [&str; 2] = ["socket", "stdio"];

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevOptions {
    /// `id`.
    pub id: String,
    /// What it is.
    pub backend: ChardevBackend,
}

/// What a character device is.
#[derive(Clone, Debug, PartialEq, Eq)]
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
pub struct SocketChardev {
    /// `path`, or `host` and `port`, or `fd`.
    pub address: SocketAddress,
    /// `server`: listens, and does not connect.
    pub server: bool,
    /// `wait`: the daemon goes on only when a client has connected; for a server, and its default.
    pub wait: bool,
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
    numeric: Option<bool>,
    keep_alive: Option<bool>,
    keep_alive_count: Option<u32>,
    keep_alive_idle: Option<u32>,
    keep_alive_interval: Option<u32>,
    fd: Option<String>,
    server: Option<bool>,
    wait: Option<bool>,
    nodelay: Option<bool>,
    delay: Option<bool>,
    telnet: Option<bool>,
    tn3270: Option<bool>,
    websocket: Option<bool>,
    mux: Option<bool>,
    signal: Option<bool>,
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

    fn socket<E: de::Error>(self) -> Result<SocketChardev, E> {
        refuse(&[("signal", self.signal.is_some())])?;
        self.refuse_on()?;
        if self.delay.is_some() && self.nodelay.is_some() {
            return Err(E::custom("'delay' and 'nodelay' are mutually exclusive"));
        }
        let server = self.server.unwrap_or(false);
        if !server && self.wait.is_some() {
            let text = "'wait' option is incompatible with socket in client connect mode";
            return Err(E::custom(text));
        }
        let (reconnect, wait) = (self.reconnect()?, server && self.wait.unwrap_or(true));
        Ok(SocketChardev { address: self.address()?, server, wait, reconnect })
    }

    fn stdio<E: de::Error>(self) -> Result<ChardevBackend, E> {
        refuse(&[
            ("path", self.path.is_some()),
            ("abstract", self.r#abstract.is_some()),
            ("tight", self.tight.is_some()),
            ("host", self.host.is_some()),
            ("port", self.port.is_some()),
            ("to", self.to.is_some()),
            ("ipv4", self.ipv4.is_some()),
            ("ipv6", self.ipv6.is_some()),
            ("numeric", self.numeric.is_some()),
            ("keep-alive", self.keep_alive.is_some()),
            ("keep-alive-count", self.keep_alive_count.is_some()),
            ("keep-alive-idle", self.keep_alive_idle.is_some()),
            ("keep-alive-interval", self.keep_alive_interval.is_some()),
            ("fd", self.fd.is_some()),
            ("server", self.server.is_some()),
            ("wait", self.wait.is_some()),
            ("nodelay", self.nodelay.is_some()),
            ("delay", self.delay.is_some()),
            ("telnet", self.telnet.is_some()),
            ("tn3270", self.tn3270.is_some()),
            ("websocket", self.websocket.is_some()),
            ("reconnect", self.reconnect.is_some()),
            ("reconnect-ms", self.reconnect_ms.is_some()),
        ])?;
        self.refuse_on()?;
        Ok(ChardevBackend::Stdio { signal: self.signal.unwrap_or(true) })
    }

    /// Protocols around the bytes, which can only be off.
    fn refuse_on<E: de::Error>(&self) -> Result<(), E> {
        let members = [
            ("telnet", self.telnet),
            ("tn3270", self.tn3270),
            ("websocket", self.websocket),
            ("mux", self.mux),
        ];
        match members.iter().find(|(_, value)| *value == Some(true)) {
            Some((name, _)) => {
                Err(E::custom(format!("Parameter '{name}' is not supported but as 'off'")))
            }
            None => Ok(()),
        }
    }

    fn address<E: de::Error>(self) -> Result<SocketAddress, E> {
        let is_inet = [self.port.is_some(), self.to.is_some(), self.host.is_some()].contains(&true);
        match (self.path, self.fd) {
            (Some(path), None) => {
                refuse(&[("host", self.host.is_some()), ("port", self.port.is_some())])?;
                Ok(SocketAddress::Unix(address::unix(path, self.r#abstract, self.tight)))
            }
            (None, Some(fd)) if !is_inet => Ok(SocketAddress::Fd(fd)),
            (None, None) if is_inet => Ok(SocketAddress::Inet(address::inet(InetMembers {
                host: self.host.unwrap_or_default(),
                port: self.port.ok_or_else(|| E::missing_field("port"))?,
                to: self.to,
                ipv4: self.ipv4,
                ipv6: self.ipv6,
                numeric: self.numeric,
                keep_alive: self.keep_alive,
                keep_alive_count: self.keep_alive_count,
                keep_alive_idle: self.keep_alive_idle,
                keep_alive_interval: self.keep_alive_interval,
            }))),
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
        let id = flat.id.clone();
        let backend = match flat.backend.as_str() {
            "socket" => ChardevBackend::Socket(flat.socket()?),
            "stdio" => flat.stdio()?,
            other => {
                let there = BACKENDS.join(" and ");
                let text = match ABSENT.contains(&other) {
                    true => format!("char driver '{other}' is not supported; there is {there}"),
                    false => {
                        let other = shorten(other);
                        format!("'{other}' is not a valid char driver name; there is {there}")
                    }
                };
                return Err(de::Error::custom(text));
            }
        };
        let id = id.ok_or_else(|| de::Error::custom("chardev: no id specified"))?;
        Ok(ChardevOptions { id, backend })
    }
}

/// A monitor on a character device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MonitorMode {
    /// The QEMU Machine Protocol.
    #[default]
    Control,
    /// A command line for people. There is none.
    Readline,
}
