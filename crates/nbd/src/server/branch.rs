//! [`Branch`]: what a server has in one context: the clients that are served there, and their memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coblk_aio::{AioContext, BottomHalf, Timer};

use crate::server::budget::Budget;
use crate::server::client::Client;
use crate::server::link::Link;
use crate::server::memory::Memory;
use crate::server::pace::Verdict;
use crate::transport::Transport;

/// How often clients are looked at that hold memory when others got none.
const LOOK: Duration = Duration::from_secs(1);

/// The clients of one context. It stays on that context's thread.
pub struct Branch {
    /// Among those of all servers.
    number: u64,
    memory: Rc<Memory>,
    budget: Arc<Budget>,
    clients: RefCell<BTreeMap<u64, Rc<Client>>>,
    /// How many these are, for each of them.
    count: Rc<Cell<usize>>,
    /// Armed while clients keep memory of which others got none.
    look: Timer,
    /// Other contexts were told of that since the last look.
    told: Cell<bool>,
    /// What other contexts tell.
    _attend: BottomHalf,
}

impl Branch {
    pub fn new(ctx: &AioContext, budget: &Arc<Budget>) -> Rc<Branch> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Rc::new_cyclic(|own: &Weak<Branch>| {
            let calls = |call: fn(&Branch, &AioContext)| {
                let own = Weak::clone(own);
                move |ctx: &AioContext| {
                    if let Some(own) = own.upgrade() {
                        call(&own, ctx);
                    }
                }
            };
            let short = Weak::clone(own);
            let on_shortage = move || {
                if let Some(own) = short.upgrade() {
                    own.memory_is_short();
                }
            };
            let attend = ctx.bottom_half("nbd_memory", calls(|own, _| own.attend()));
            budget.join(number, attend.remote());
            Branch {
                number,
                memory: Memory::new(budget, on_shortage),
                budget: Arc::clone(budget),
                clients: RefCell::default(),
                count: Rc::default(),
                look: ctx.timer(calls(Branch::look_after_memory)),
                told: Cell::new(false),
                _attend: attend,
            }
        })
    }

    /// A client, to be served here.
    pub fn welcome(&self, id: u64, transport: Transport) -> Rc<Client> {
        let link = Link::new(transport, Rc::clone(&self.count));
        let client = Client::new(link, &self.memory);
        self.clients.borrow_mut().insert(id, Rc::clone(&client));
        self.count.set(self.clients.borrow().len());
        client
    }

    /// A client is gone, or is served in another context from now on. The memory of the last one comes back.
    pub fn leave(&self, id: u64) {
        let gone = self.clients.borrow_mut().remove(&id);
        self.count.set(self.clients.borrow().len());
        drop(gone);
        if self.is_empty() {
            self.memory.clear();
        }
    }

    pub fn find(&self, id: u64) -> Option<Rc<Client>> {
        self.clients.borrow().get(&id).cloned()
    }

    /// Disconnects them all at once.
    pub fn fail_all(&self) {
        self.all().iter().for_each(|client| client.link.fail());
    }

    /// All clients, to be called: they may leave meanwhile.
    fn all(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().values().cloned().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.clients.borrow().is_empty()
    }

    /// A client got no memory: from now on those that hold some are watched, in all contexts.
    fn memory_is_short(&self) {
        self.watch();
        if !self.told.replace(true) {
            self.budget.tell_others(self.number);
        }
    }

    /// A client of another context got none, or that context is new.
    fn attend(&self) {
        self.memory.trim();
        self.watch();
    }

    fn watch(&self) {
        if !self.look.is_armed() {
            self.clients.borrow().values().for_each(|client| client.pace.forget());
            self.look.arm_after(LOOK);
        }
    }

    fn look_after_memory(&self, ctx: &AioContext) {
        self.told.set(false);
        let mut again = false;
        for client in self.all() {
            match client.judge(ctx.now_ns()) {
                Verdict::Fine => {}
                Verdict::Open => again = true,
                Verdict::TooSlow => {
                    tracing::warn!("an NBD client that keeps memory from others is disconnected");
                    client.link.fail();
                }
            }
        }
        if again {
            self.look.arm_after(LOOK);
        }
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        self.budget.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use coblk_aio::net::Stream;

    use super::*;

    #[test]
    fn the_memory_of_the_last_client_comes_back() {
        let ctx = AioContext::for_test().unwrap();
        let branch = Branch::new(&ctx, &Arc::default());
        let peers = [0, 1].map(|id| {
            let (socket, peer) = UnixStream::pair().unwrap();
            let transport = Transport::new(Stream::from_fd(socket).unwrap());
            let client = branch.welcome(id, transport);
            drop(client.memory.take(&client.share, 1 << 20).unwrap().unwrap());
            peer
        });
        assert_eq!(branch.memory.idle_bytes(), 1 << 20);
        branch.leave(0);
        assert_eq!(branch.memory.idle_bytes(), 1 << 20);
        branch.leave(1);
        assert_eq!(branch.memory.idle_bytes(), 0);
        drop(peers);
    }
}
