//! Whether a client may, or must, begin TLS; and its beginning.

use std::io::{self, ErrorKind};

use coblk_aio::Co;
#[cfg(feature = "tls")]
use coblk_aio::PoolShare;

use crate::server::client::Client;
use crate::server::reception::Reception;
#[cfg(feature = "tls")]
use crate::transport::TlsCredentials;

pub fn is_possible(reception: &Reception) -> bool {
    reception.options.tls.is_some()
}

/// The client can do nothing else before.
pub fn is_missing(reception: &Reception, client: &Client) -> bool {
    let tls = &reception.options.tls;
    tls.as_ref().is_some_and(|tls| tls.are_required()) && !client.link.transport.is_secure()
}

/// Shakes hands. The limit of time is that of all the negotiation.
///
/// # Errors
/// If the client does not speak TLS, does not prove who it is, or is gone.
#[cfg(feature = "tls")]
pub fn begin(co: &Co<'_>, reception: &Reception, client: &Client) -> io::Result<()> {
    let Some(credentials) = &reception.options.tls else {
        return Err(ErrorKind::Unsupported.into());
    };
    client.link.transport.begin(credentials.session()?);
    loop {
        client.link.wait_readable(co)?;
        match client.link.transport.shake_hands() {
            Ok(true) => {
                authorize(co, reception, client)?;
                return client.link.wait_sent(co);
            }
            Ok(false) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => client.link.readable.set(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                if error.kind() == ErrorKind::InvalidData {
                    let why = format_args!("at the beginning of TLS: {error}");
                    reception.log_refusal(client, co.context().now_ns(), &why);
                }
                // It is told why, if it listens.
                let _ = client.link.transport.push();
                return Err(error);
            }
        }
    }
}

/// That the client's certificate is of those that are let in, if clients need one.
#[cfg(feature = "tls")]
fn authorize(co: &Co<'_>, reception: &Reception, client: &Client) -> io::Result<()> {
    let (authorize, tls) = (&reception.options.authorize, &reception.options.tls);
    let verified = tls.as_ref().is_some_and(TlsCredentials::verifies_clients);
    let Some(authorize) = authorize.as_ref().filter(|_| verified) else { return Ok(()) };
    let identity = client.link.transport.peer_identity();
    let allowed = identity.as_ref().is_some_and(|it| PoolShare::once(co, || authorize.allows(it)));
    if allowed {
        return Ok(());
    }
    let why = match identity {
        Some(identity) => format!("TLS x509 authz check for {identity} is denied"),
        None => "the name of its certificate cannot be read".to_owned(),
    };
    reception.log_refusal(client, co.context().now_ns(), &why);
    Err(ErrorKind::PermissionDenied.into())
}

/// Not possible.
#[cfg(not(feature = "tls"))]
pub fn begin(_: &Co<'_>, _: &Reception, _: &Client) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}
