//! The smallest honest vhost-user-blk device: one thread for messages, and one that answers all
//! queues.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error};

use super::Wait;
use super::session::Session;
use super::store::Store;

/// Serves one front end until it leaves.
///
/// # Errors
/// If it breaks the protocol.
pub fn serve(stream: UnixStream, wait: Wait, store: &Arc<Store>, queues: u16) -> io::Result<()> {
    let session = Session::new(stream.try_clone()?, wait, Arc::clone(store), queues);
    let session = Arc::new(Mutex::new(session));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    let ended = loop {
        match handler.handle_request() {
            Ok(()) | Err(Error::SocketRetry(_)) => {}
            Err(Error::Disconnected) => break Ok(()),
            Err(error) => break Err(io::Error::other(error)),
        }
    };
    // What the queues say comes first: if one broke, that ended the connection.
    session.lock().unwrap_or_else(PoisonError::into_inner).stop().and(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::vhost_user::VhostUserClient;
    use crate::workload::{Job, Pattern, ReadWrite};
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    /// Has a client make requests on each queue of a device of `image`.
    fn served(wait: Wait, queues: u16, kind: ReadWrite, image: &[u8]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let store = Arc::new(Store::open(Some(file.path())).unwrap());
        let server = std::thread::spawn(move || {
            serve(listener.accept().unwrap().0, wait, &store, queues) //
        });
        let pattern = Pattern { kind, read_percent: 100 };
        let job = Job { pattern, ..Job::sequential_reads(4, u64::MAX) };
        let mut client =
            VhostUserClient::connect(&socket, usize::from(queues), false, &job).unwrap();
        let ops = 16 * u64::from(queues);
        assert_eq!(client.run(ops).unwrap(), ops);
        assert_eq!(client.take_latencies().unwrap().len(), ops);
        let made = client.run_at_rate(1000, Duration::from_millis(20)).unwrap();
        // Those that found no place count too.
        assert_eq!((client.take_latencies().unwrap().len(), made <= 20), (20, true));
        assert_eq!(client.run_at_rate(0, Duration::from_millis(1)).unwrap(), 0);
        drop(client);
        server.join().unwrap().unwrap();
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn all_queues_are_served_however_it_waits() {
        let image = vec![7; 16 * 4096];
        for wait in Wait::ALL {
            for queues in [1, 2] {
                assert_eq!(served(wait, queues, ReadWrite::Read, &image), image);
                // The client writes what its buffers have: zeroes, over all of it.
                assert_eq!(served(wait, queues, ReadWrite::Write, &image), vec![0; image.len()]);
            }
        }
    }
}
