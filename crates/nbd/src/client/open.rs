//! How a node is opened.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::Co;
use coblk_aio::net::SocketAddress;
use coblk_block::{Background, Driver, OpenError, Opening};

use crate::client::connection::longer;
use crate::client::driver::Nbd;
use crate::client::keeper::{self, Made};
use crate::client::options::NbdNodeOptions;
use crate::client::shared::Shared;
use crate::client::target::Target;
use crate::protocol::*;
use crate::transport::TlsClientCredentials;

/// Connections of a node by default, and at most.
const CONNECTIONS: u32 = 4;
const MAX_CONNECTIONS: u32 = 16;

impl Driver for Nbd {
    const NAMES: &'static [&'static str] = &["nbd"];
    const CHANGEABLE: &'static [&'static str] = &[];
    type Options = NbdNodeOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &NbdNodeOptions) -> Result<Nbd, OpenError> {
        let target = target(opening, options)?;
        let connections = options.x_coblk_connections.unwrap_or(CONNECTIONS);
        if !(1..=MAX_CONNECTIONS).contains(&connections) {
            let why = format!("a node has from 1 to {MAX_CONNECTIONS} connections");
            return Err(OpenError::option("x-coblk-connections", why));
        }
        let seconds = |option: Option<u32>| Duration::from_secs(u64::from(option.unwrap_or(0)));
        let (transport, facts) = co_first(opening.co(), &target, seconds(options.open_timeout))?;
        let mode = opening.mode();
        let is_read_only = facts.has(TRANSMISSION_READ_ONLY);
        if is_read_only && !mode.read_only && !mode.auto_read_only {
            return Err(io::Error::from_raw_os_error(libc::EACCES).into());
        }
        let delay = seconds(options.reconnect_delay);
        let shared = Shared::new(target, facts, delay, connections as usize);
        let shared = Arc::new(shared);
        let ctx = opening.co().context();
        shared.enter(&ctx.handle());
        keeper::start(ctx, &shared, Some((transport, facts)))?;
        Ok(Nbd::new(shared, Background::new(opening.home())))
    }
}

/// The first connection, tried again for as long as `limit`.
fn co_first(co: &Co<'_>, target: &Target, limit: Duration) -> io::Result<Made> {
    let end_ns = co.context().now_ns().saturating_add(limit.as_nanos() as i64);
    let mut pause = Duration::ZERO;
    loop {
        match keeper::co_connect(co, target, |_| {}) {
            Ok(made) => return Ok(made),
            Err(error) => {
                pause = longer(pause);
                let left_ns = u64::try_from(end_ns - co.context().now_ns()).unwrap_or(0);
                if left_ns == 0 {
                    return Err(error);
                }
                co.sleep(pause.min(Duration::from_nanos(left_ns)));
            }
        }
    }
}

fn target(opening: &Opening<'_, '_>, options: &NbdNodeOptions) -> Result<Target, OpenError> {
    let text = |name: &str, text: &Option<String>| match text {
        Some(text) if text.len() > MAX_STRING => {
            Err(OpenError::option(name, format!("it has more than {MAX_STRING} bytes")))
        }
        text => Ok(text.clone()),
    };
    let export = text("export", &options.export)?.unwrap_or_default();
    let bitmap = text("x-dirty-bitmap", &options.x_dirty_bitmap)?;
    let server = options.server.clone();
    let tls = match &options.tls_creds {
        Some(id) => Some((credentials(opening, id)?, hostname(options)?)),
        None if options.tls_hostname.is_some() => {
            return Err(OpenError::option("tls-hostname", "'tls-creds' is missing"));
        }
        None => None,
    };
    Ok(Target { server, export, bitmap, tls })
}

#[cfg(feature = "tls")]
fn credentials(opening: &Opening<'_, '_>, id: &str) -> Result<TlsClientCredentials, OpenError> {
    opening.object::<TlsClientCredentials>(id).map(|found| TlsClientCredentials::clone(&found))
}

/// There are none.
#[cfg(not(feature = "tls"))]
fn credentials(_: &Opening<'_, '_>, _: &str) -> Result<TlsClientCredentials, OpenError> {
    Err(OpenError::option("tls-creds", "not supported: built without TLS"))
}

fn hostname(options: &NbdNodeOptions) -> Result<String, OpenError> {
    match (&options.tls_hostname, &options.server) {
        (Some(name), _) => Ok(name.clone()),
        (None, SocketAddress::Inet(inet)) => Ok(inet.host.clone()),
        (None, _) => Err(OpenError::option(
            "tls-hostname",
            "it is needed for TLS with a server that is not a host",
        )),
    }
}
