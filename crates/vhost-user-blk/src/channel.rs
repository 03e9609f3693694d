//! The channel on which a front end is told of changes: [`Channel`].

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::net::{SendFlags, send};

use crate::messages::{HEADER_BYTES, REPLY, VERSION, bytes_of};

/// The back end says that the configuration space has changed.
const CONFIG_CHANGE: u32 = 2;

/// The socket of the front end that is connected, if it has sent one. Any thread.
#[derive(Default)]
pub(crate) struct Channel(Mutex<Option<UnixStream>>);

impl Channel {
    pub(crate) fn replace(&self, socket: Option<UnixStream>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Says that the configuration space has changed. Never waits: a front end that does not read
    /// has been told already.
    pub(crate) fn config_changed(&self) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = &*guard else { return };
        // No answer is asked for, so none has to be read.
        let message = bytes_of([CONFIG_CHANGE, VERSION, 0]);
        match send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(HEADER_BYTES) => {}
            Err(error) => tracing::debug!(%error, "the front end is not told of a change"),
            Ok(_) => {
                // What would follow could not be understood.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

/// Says that a request was done.
pub(crate) fn acknowledge(mut connection: &UnixStream, request: u32) -> io::Result<()> {
    // A body of 8 bytes: 0, for success.
    connection.write_all(&bytes_of([request, VERSION | REPLY, 8, 0, 0]))
}
