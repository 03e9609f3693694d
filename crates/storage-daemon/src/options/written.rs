//! How options are written whose types are not read member by member.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{
    ChardevOptions, InetAddress, MetricsOptions, NbdServerOptions, SocketAddress, UnixAddress,
};

/// The members of an address, but for its type.
fn members(address: &SocketAddress) -> Map<String, Value> {
    let members = match address {
        SocketAddress::Inet(InetAddress { host, port, to, ipv4, ipv6 }) => {
            json!({"host": host, "port": port, "to": to, "ipv4": ipv4, "ipv6": ipv6})
        }
        SocketAddress::Unix(UnixAddress { path, is_abstract }) => {
            json!({"path": path, "abstract": is_abstract.then_some(true)})
        }
        SocketAddress::Fd(socket) => json!({"str": socket}),
    };
    match members {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

impl Serialize for SocketAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = match self {
            SocketAddress::Inet(_) => "inet",
            SocketAddress::Unix(_) => "unix",
            SocketAddress::Fd(_) => "fd",
        };
        let mut members = members(self);
        members.insert("type".to_owned(), kind.into());
        members.serialize(serializer)
    }
}

impl Serialize for NbdServerOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let NbdServerOptions { addr, max_connections, handshake_max_seconds, tls_creds } = self;
        let members = json!({
            "addr": addr,
            "max-connections": max_connections,
            "handshake-max-seconds": handshake_max_seconds,
            "tls-creds": tls_creds,
        });
        members.serialize(serializer)
    }
}

impl Serialize for ChardevOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ChardevOptions { id, socket } = self;
        let mut members = members(&socket.address);
        if let Some(name) = members.remove("str") {
            members.insert("fd".to_owned(), name);
        }
        members.insert("backend".to_owned(), "socket".into());
        members.insert("id".to_owned(), id.clone().into());
        members.insert("server".to_owned(), socket.server.into());
        if socket.server {
            members.insert("wait".to_owned(), false.into());
        }
        if let Some(pause) = socket.reconnect {
            members.insert("reconnect-ms".to_owned(), (pause.as_millis() as u64).into());
        }
        members.serialize(serializer)
    }
}

impl fmt::Display for MetricsOptions {
    /// As `--metrics` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.addr {
            SocketAddress::Unix(UnixAddress { path, .. }) => write!(f, "unix:{}", path.display()),
            SocketAddress::Inet(InetAddress { host, port, .. }) if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            SocketAddress::Inet(InetAddress { host, port, .. }) => write!(f, "{host}:{port}"),
            SocketAddress::Fd(socket) => f.write_str(socket),
        }
    }
}
