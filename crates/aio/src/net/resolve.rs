//! Addresses of hosts and services, as QEMU finds them.

use std::net::SocketAddr;

use dns_lookup::{AddrInfoHints, getaddrinfo};

use super::address::InetAddress;
use super::error::SocketError;

/// A host has no more addresses than these; further ones are left out.
const MAX_ADDRESSES: usize = 16;

/// What the addresses are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Listen,
    Connect,
}

/// The addresses of a host and a service, at least one. May block, to ask for them.
pub fn resolve(address: &InetAddress, purpose: Purpose) -> Result<Vec<SocketAddr>, SocketError> {
    let InetAddress { host, port, .. } = address;
    let failed =
        |reason: String| SocketError::Resolve { host: host.clone(), port: port.clone(), reason };
    // The resolver would take the number modulo 65536.
    if port.parse().is_ok_and(|number: u64| number > u64::from(u16::MAX)) {
        return Err(failed("the port is above 65535".to_owned()));
    }
    let mut flags = if purpose == Purpose::Listen { libc::AI_PASSIVE } else { 0 };
    if address.numeric {
        flags |= libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;
    }
    let hints = AddrInfoHints {
        flags,
        address: family(address)?,
        socktype: libc::SOCK_STREAM,
        ..AddrInfoHints::default()
    };
    let given = |text: &'_ String| !text.is_empty();
    let (name, service) = (Some(host).filter(|it| given(it)), Some(port).filter(|it| given(it)));
    let found = getaddrinfo(name.map(String::as_str), service.map(String::as_str), Some(hints));
    let found = found.map_err(|error| failed(std::io::Error::from(error).to_string()))?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for each in found.flatten() {
        if !addresses.contains(&each.sockaddr) && addresses.len() < MAX_ADDRESSES {
            addresses.push(each.sockaddr);
        }
    }
    if addresses.is_empty() {
        return Err(failed("the host has no address".to_owned()));
    }
    Ok(addresses)
}

/// The protocol to ask for: `ipv4` and `ipv6` exclude each other, unless both are on.
///
/// ```text
///   ipv4 \ ipv6    -         off       on
///   -              either    IPv4      IPv6
///   off            IPv6      error     IPv6
///   on             IPv4      IPv4      either; without a host one socket for both
/// ```
fn family(address: &InetAddress) -> Result<i32, SocketError> {
    match (address.ipv4, address.ipv6) {
        (Some(false), Some(false)) => Err(SocketError::NoFamily),
        (Some(true), Some(true)) if address.host.is_empty() => Ok(libc::AF_INET6),
        (Some(true), Some(true)) | (None, None) => Ok(libc::AF_UNSPEC),
        (_, Some(true)) | (Some(false), None) => Ok(libc::AF_INET6),
        (Some(true), _) | (None, Some(false)) => Ok(libc::AF_INET),
    }
}

/// Whether a socket of IPv6 takes clients of IPv4 too.
pub fn is_dual(address: &InetAddress) -> bool {
    matches!((address.ipv4, address.ipv6), (None, None) | (Some(true), Some(true)))
}
