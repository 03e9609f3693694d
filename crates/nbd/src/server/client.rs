//! [`Client`]: what a server knows of one client.

use std::cell::Cell;
use std::rc::Rc;

use crate::server::link::Link;
use crate::server::memory::{Memory, Share};
use crate::server::pace::{Direction, Pace, Verdict};

/// A client, in the context that serves it at this moment.
pub struct Client {
    pub link: Rc<Link>,
    pub memory: Rc<Memory>,
    pub share: Share,
    pub pace: Pace,
    /// Length of the payload that is being received into shared memory, in bytes; 0 if none is.
    pub filling: Cell<u64>,
}

impl Client {
    pub fn new(link: Rc<Link>, memory: &Rc<Memory>) -> Rc<Client> {
        Rc::new(Client {
            link,
            memory: Rc::clone(memory),
            share: memory.share(),
            pace: Pace::default(),
            filling: Cell::new(0),
        })
    }

    /// Whether it makes use of the shared memory that it holds.
    pub fn judge(&self, now_ns: i64) -> Verdict {
        if self.share.held() == 0 {
            return Verdict::Fine;
        }
        let receiving = Direction { moved: self.link.received(), waiting: self.filling.get() };
        self.pace.look(now_ns, [self.link.sending(), receiving])
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use coblk_aio::net::Stream;

    use super::*;
    use crate::transport::Transport;

    const LONG_NS: i64 = 3_600_000_000_000;

    #[test]
    fn a_client_that_waits_for_its_own_requests_owes_nothing() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let transport = Transport::new(Stream::from_fd(socket).unwrap());
        let memory = Memory::new(&Arc::default(), || ());
        let client = Client::new(Link::new(transport, Rc::default()), &memory);
        let held = memory.take(&client.share, 32 << 20).unwrap();
        assert!(held.is_some() && client.share.held() > 0);
        // Requests of its own are on their way, and it has nothing to say.
        assert_eq!([client.judge(0), client.judge(LONG_NS)], [Verdict::Fine, Verdict::Fine]);
        // The rest of a payload is waited for.
        client.filling.set(32 << 20);
        assert_eq!([client.judge(0), client.judge(LONG_NS)], [Verdict::Open, Verdict::TooSlow]);
    }
}
