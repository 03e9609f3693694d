//! [`of`]: the URI of an export, as messages and lists have it, and [`parse`], which reads one.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use coblk_aio::net::{InetAddress, SocketAddress};

use crate::client::options::NbdNodeOptions;

/// The port of a server that does not say otherwise.
const PORT: &str = "10809";

/// `None` for a server that a URI cannot name.
pub fn of(server: &SocketAddress, export: &str, is_secure: bool) -> Option<String> {
    let scheme = if is_secure { "nbds" } else { "nbd" };
    let mut uri = String::new();
    match server {
        SocketAddress::Unix(unix) if !unix.is_abstract => {
            uri.push_str(&format!("{scheme}+unix:///"));
            encode(&mut uri, export.as_bytes());
            uri.push_str("?socket=");
            encode(&mut uri, unix.path.as_os_str().as_bytes());
        }
        SocketAddress::Inet(InetAddress { host, port, .. }) => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            uri.push_str(&format!("{scheme}://{host}:{port}"));
            if !export.is_empty() {
                uri.push('/');
                encode(&mut uri, export.as_bytes());
            }
        }
        _ => return None,
    }
    Some(uri)
}

fn encode(uri: &mut String, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            byte => _ = write!(uri, "%{byte:02X}"),
        }
    }
}

/// Reads a file name of NBD: a URI, or `nbd:HOST:PORT` or `nbd:unix:PATH`, with `:exportname=NAME` behind.
/// `None` if it is of another protocol.
///
/// # Errors
/// What is wrong with it.
pub fn parse(name: &str) -> Option<Result<NbdNodeOptions, String>> {
    let (scheme, rest) = name.split_once(':')?;
    let parsed = match (scheme, rest.strip_prefix("//")) {
        ("nbd" | "nbd+tcp", Some(rest)) => parse_tcp(rest),
        ("nbd+unix", Some(rest)) => parse_unix(rest),
        ("nbds" | "nbds+tcp" | "nbds+unix", Some(_)) => {
            Err("a connection with TLS needs credentials, which a file name cannot name".to_owned())
        }
        ("nbd", None) => parse_legacy(rest),
        _ => return None,
    };
    Some(parsed.map_err(|why| format!("'{}': {why}", coblk_qapi::shorten(name))))
}

fn parse_tcp(rest: &str) -> Result<NbdNodeOptions, String> {
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, it)| (rest, Some(it)));
    if query.is_some() {
        return Err("a URI of a host has no query".to_owned());
    }
    let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = host_and_port(place)?;
    let host = if host.is_empty() { "localhost".to_owned() } else { decode(host)? };
    let address = InetAddress::new(host, port.unwrap_or(PORT));
    Ok(NbdNodeOptions::new(SocketAddress::Inet(address), decode(path)?))
}

fn parse_unix(rest: &str) -> Result<NbdNodeOptions, String> {
    let (rest, query) = rest.split_once('?').ok_or("there is no '?socket=PATH'")?;
    let path = rest.strip_prefix('/');
    let path = path.or(rest.is_empty().then_some("")).ok_or("a unix socket has no host")?;
    let socket = query.strip_prefix("socket=").filter(|it| !it.is_empty() && !it.contains('&'));
    let socket = decode(socket.ok_or("the query is other than 'socket=PATH'")?)?;
    Ok(NbdNodeOptions::new(SocketAddress::unix(socket), decode(path)?))
}

fn parse_legacy(rest: &str) -> Result<NbdNodeOptions, String> {
    let (place, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    if let Some(path) = place.strip_prefix("unix:") {
        return match path.is_empty() {
            true => Err("there is no path of a unix socket".to_owned()),
            false => Ok(NbdNodeOptions::new(SocketAddress::unix(path), export)),
        };
    }
    let (host, port) = host_and_port(place)?;
    let port = port.ok_or("there is no port")?;
    Ok(NbdNodeOptions::new(SocketAddress::Inet(InetAddress::new(host, port)), export))
}

/// A host, which may be an address of IPv6 in brackets, and a port.
fn host_and_port(place: &str) -> Result<(&str, Option<&str>), String> {
    let (host, rest) = match place.strip_prefix('[') {
        Some(place) => place.split_once(']').ok_or("a bracket is not closed")?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    match rest.strip_prefix(':') {
        Some(port) if port.parse::<u16>().is_ok() => Ok((host, Some(port))),
        Some(_) => Err("the port is no number up to 65535".to_owned()),
        None if rest.is_empty() => Ok((host, None)),
        None => Err("there is something between host and port".to_owned()),
    }
}

/// Resolves `%` and two digits.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or("").as_bytes());
    for part in parts {
        let digits = part.get(..2).filter(|it| it.bytes().all(|it| it.is_ascii_hexdigit()));
        let digits = digits.ok_or("a '%' without two digits behind")?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    if bytes.contains(&0) {
        return Err("there is a zero in it".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: &str, export: &str) -> NbdNodeOptions {
        NbdNodeOptions::new(SocketAddress::Inet(InetAddress::new(host, port)), export)
    }

    fn unix(path: &str, export: &str) -> NbdNodeOptions {
        NbdNodeOptions::new(SocketAddress::unix(path), export)
    }

    #[test]
    fn names_of_exports_are_read_as_qemu_reads_them() {
        for (name, wanted) in [
            ("nbd://host", tcp("host", "10809", "")),
            ("nbd://host:1234/disk", tcp("host", "1234", "disk")),
            ("nbd+tcp://host/a/b%20c", tcp("host", "10809", "a/b c")),
            ("nbd:///", tcp("localhost", "10809", "")),
            ("nbd://[::1]:99/x", tcp("::1", "99", "x")),
            ("nbd+unix:///disk?socket=/run/a%20b", unix("/run/a b", "disk")),
            ("nbd+unix://?socket=s", unix("s", "")),
            ("nbd:host:10", tcp("host", "10", "")),
            ("nbd:[::1]:10:exportname=a:b", tcp("::1", "10", "a:b")),
            ("nbd:unix:/run/s:exportname=disk", unix("/run/s", "disk")),
        ] {
            assert_eq!(parse(name), Some(Ok(wanted)), "{name}");
        }
        for name in ["file:a", "a", "/nbd:/a", "http://host/"] {
            assert_eq!(parse(name), None, "{name}");
        }
        for name in [
            "nbd+unix:///disk",
            "nbd+unix://host/x?socket=s",
            "nbd+unix:///?socket=",
            "nbd://h:x",
            "nbd://h:70000",
            "nbd:host",
            "nbd:unix:",
            "nbd://[::1/x",
            "nbd://h/%4",
            "nbd://h/%00",
            "nbd://h/x?y",
            "nbds://h/x",
            "nbd://h/%ff",
            "nbd://[::1]x:9",
        ] {
            assert!(matches!(parse(name), Some(Err(_))), "{name}: {:?}", parse(name));
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for options in
            [tcp("host", "1", "disk"), tcp("::1", "10809", ""), unix("/run/\u{e9} ?&", "a%b/c")]
        {
            let name = of(&options.server, options.export.as_deref().unwrap_or(""), false).unwrap();
            assert_eq!(parse(&name), Some(Ok(options)), "{name}");
        }
    }
}
