//! The beginning of TLS, as a client.

use std::io;

use coblk_aio::Co;

use crate::client::target::Target;
use crate::client::wire::Wire;

/// Shakes hands.
///
/// # Errors
/// If the server does not prove that it is the one that is meant, refuses this client, or is gone.
#[cfg(feature = "tls")]
pub fn begin(co: &Co<'_>, wire: &Wire, target: &Target) -> io::Result<()> {
    let Some(session) = target.tls_session()? else { return Ok(()) };
    wire.transport().begin(session);
    loop {
        wire.push(co)?;
        match wire.retry(co, || wire.transport().shake_hands()) {
            Ok(true) => return wire.push(co),
            Ok(false) => {}
            Err(error) => {
                // It is told why, if it listens.
                let _ = wire.transport().push();
                return Err(error);
            }
        }
    }
}

/// Not possible: there are no credentials.
#[cfg(not(feature = "tls"))]
pub fn begin(_: &Co<'_>, _: &Wire, _: &Target) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
