//! [`Client`]: what a server knows of one client.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::server::export::NbdExport;
use crate::server::exports::Exports;
use crate::server::link::Link;
use crate::server::memory::{Memory, Share};
use crate::server::options::NbdOptions;
use crate::server::pace::{Direction, Pace, Verdict};
use crate::server::refusals::Refusals;

pub struct Client {
    pub link: Rc<Link>,
    pub memory: Rc<Memory>,
    pub share: Share,
    pub exports: Rc<Exports>,
    pub options: Rc<NbdOptions>,
    pub refusals: Rc<Refusals>,
    /// Set once it has chosen one.
    pub export: RefCell<Option<Rc<NbdExport>>>,
    pub pace: Pace,
    /// Length of the payload that is being received into shared memory, in bytes; 0 if none is.
    pub filling: Cell<u64>,
}

impl Client {
    pub fn new(
        link: Rc<Link>,
        memory: &Rc<Memory>,
        exports: &Rc<Exports>,
        options: &Rc<NbdOptions>,
        refusals: &Rc<Refusals>,
    ) -> Rc<Client> {
        Rc::new(Client {
            link,
            memory: Rc::clone(memory),
            share: memory.share(),
            exports: Rc::clone(exports),
            options: Rc::clone(options),
            refusals: Rc::clone(refusals),
            export: RefCell::default(),
            pace: Pace::default(),
            filling: Cell::new(0),
        })
    }

    /// It is refused, which is for the operator to know; others like it are logged at most once a second.
    pub fn log_refusal(&self, now_ns: i64, why: &dyn std::fmt::Display) {
        if let Some(unlogged) = self.refusals.admit(now_ns) {
            let client = self.link.transport.peer();
            tracing::warn!(%client, unlogged, "an NBD client is refused: {why}");
        }
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

    use coblk_aio::net::Stream;

    use super::*;

    const LONG_NS: i64 = 3_600_000_000_000;

    #[test]
    fn a_client_that_waits_for_its_own_requests_owes_nothing() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let link = Link::new(Stream::from_fd(socket).unwrap(), Rc::default());
        let memory = Memory::new(|| ());
        let client = Client::new(link, &memory, &Rc::default(), &Rc::default(), &Rc::default());
        let held = memory.take(&client.share, 32 << 20).unwrap();
        assert!(held.is_some() && client.share.held() > 0);
        // Requests of its own are on their way, and it has nothing to say.
        assert_eq!([client.judge(0), client.judge(LONG_NS)], [Verdict::Fine, Verdict::Fine]);
        // The rest of a payload is waited for.
        client.filling.set(32 << 20);
        assert_eq!([client.judge(0), client.judge(LONG_NS)], [Verdict::Open, Verdict::TooSlow]);
    }
}
