//! `--metrics`: where metrics are served.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use coblk::aio::net::{InetAddress, SocketAddress};
use serde::{Deserialize, Serialize};

use super::{OptionError, from_argument};

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct MetricsOptions {
    /// `addr`.
    pub addr: SocketAddress,
}

impl MetricsOptions {
    /// Reads `unix:PATH`, or `HOST:PORT`, where a host that is an address of IPv6 is in brackets; or
    /// an address as other servers have it, `addr.type=...` or JSON.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn from_argument(text: impl AsRef<OsStr>) -> Result<MetricsOptions, OptionError> {
        let text = text.as_ref();
        let bytes = text.as_bytes();
        if bytes.starts_with(b"addr.") || bytes.starts_with(b"{") {
            return from_argument(text, "addr");
        }
        let bad = || OptionError::other("expected unix:PATH or HOST:PORT");
        if let Some(path) = bytes.strip_prefix(b"unix:") {
            if path.is_empty() {
                return Err(bad());
            }
            return Ok(MetricsOptions { addr: SocketAddress::unix(OsStr::from_bytes(path)) });
        }
        let text = text.to_str().ok_or_else(bad)?;
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if !is_port(port) || bracketed.is_none() && host.contains([':', '[', ']']) {
            return Err(bad());
        }
        let addr = InetAddress::new(bracketed.unwrap_or(host), port);
        Ok(MetricsOptions { addr: SocketAddress::Inet(addr) })
    }
}

/// A number of 16 bits, or the name of a service.
fn is_port(text: &str) -> bool {
    let is_name = |text: &str| {
        text.starts_with(|it: char| it.is_ascii_alphabetic())
            && text.chars().all(|it| it.is_ascii_alphanumeric() || it == '-')
    };
    text.parse::<u16>().is_ok() || is_name(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_hosts_with_ports() {
        let read = |text| MetricsOptions::from_argument(text).map(|options| options.addr);
        assert_eq!(read("unix:/run/x y").unwrap(), SocketAddress::unix("/run/x y"));
        for (text, host, port) in [
            ("localhost:9100", "localhost", "9100"),
            ("[::1]:0", "::1", "0"),
            (":80", "", "80"),
            ("localhost:http-alt", "localhost", "http-alt"),
            ("addr.type=inet,addr.host=::,addr.port=1", "::", "1"),
            (r#"{"addr": {"type": "inet", "host": "a", "port": "2"}}"#, "a", "2"),
        ] {
            match read(text).unwrap() {
                SocketAddress::Inet(address) => {
                    assert_eq!((&*address.host, &*address.port), (host, port));
                }
                other => panic!("{other:?}"),
            }
        }
        for text in ["", "unix:", "localhost", "localhost:", "a:70000", "::1:80", "[::1:80"] {
            assert_eq!(read(text).unwrap_err().to_string(), "expected unix:PATH or HOST:PORT");
        }
    }
}
