//! `--metrics`: where metrics are served.

use super::{InetAddress, OptionError, SocketAddress, UnixAddress};

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsOptions {
    /// The address.
    pub addr: SocketAddress,
}

impl MetricsOptions {
    /// Reads `unix:PATH`, or `HOST:PORT`, where a host that is an address of IPv6 stands in brackets.
    ///
    /// # Errors
    /// If it is neither.
    pub fn from_argument(text: &str) -> Result<MetricsOptions, OptionError> {
        let bad = || OptionError::other("expected unix:PATH or HOST:PORT");
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(bad());
            }
            let addr = UnixAddress { path: path.into(), is_abstract: false };
            return Ok(MetricsOptions { addr: SocketAddress::Unix(addr) });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if port.parse::<u16>().is_err() || bracketed.is_none() && host.contains([':', '[', ']']) {
            return Err(bad());
        }
        let addr = InetAddress {
            host: bracketed.unwrap_or(host).to_owned(),
            port: port.to_owned(),
            to: None,
            ipv4: None,
            ipv6: None,
        };
        Ok(MetricsOptions { addr: SocketAddress::Inet(addr) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_hosts_with_ports() {
        let read = |text| MetricsOptions::from_argument(text).map(|options| options.addr);
        let path = UnixAddress { path: "/run/x y".into(), is_abstract: false };
        assert_eq!(read("unix:/run/x y").unwrap(), SocketAddress::Unix(path));
        for (text, host, port) in
            [("localhost:9100", "localhost", "9100"), ("[::1]:0", "::1", "0"), (":80", "", "80")]
        {
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
