//! [`Shared`]: what all connections of a node have in common. Any thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coblk_aio::{AioContext, AioHandle};
use slab::Slab;

use crate::client::connection::Connection;
use crate::client::lanes;
use crate::client::making::{self, Reason};
use crate::client::session::Facts;
use crate::client::target::Target;
use crate::protocol::TRANSMISSION_CAN_MULTI_CONN;

/// The numbers of nodes. They are used again, so that they stay small.
static NUMBERS: Mutex<Slab<()>> = Mutex::new(Slab::new());

pub struct Shared {
    /// By which a context finds its connection.
    pub number: usize,
    pub target: Target,
    /// For how long requests wait for a server to come back; 0 if they do not.
    pub reconnect_delay: Duration,
    /// What the first connection has found. Others must be able to do the same.
    pub facts: Facts,
    /// Length of the node in bytes.
    size: AtomicU64,
    /// Length of the export when a connection was last made, in bytes.
    found_size: AtomicU64,
    /// Contexts with a connection of their own, oldest first.
    homes: Mutex<Vec<AioHandle>>,
    /// Connections at once.
    max_connections: AtomicUsize,
    /// The node is drained: no connection is made.
    quiesced: AtomicBool,
    /// Links that were lost, and that the server may have closed or not.
    unclosed: AtomicUsize,
    /// Raised when a change fails that the server may still carry out. Links from before are not used any more.
    era: AtomicU64,
}

impl Shared {
    pub fn new(
        target: Target,
        facts: Facts,
        reconnect_delay: Duration,
        connections: usize,
    ) -> Shared {
        let has_several = facts.has(TRANSMISSION_CAN_MULTI_CONN);
        Shared {
            number: lock(&NUMBERS).insert(()),
            target,
            reconnect_delay,
            facts,
            size: AtomicU64::new(facts.size),
            found_size: AtomicU64::new(facts.size),
            homes: Mutex::default(),
            max_connections: AtomicUsize::new(if has_several { connections } else { 1 }),
            quiesced: AtomicBool::new(false),
            unclosed: AtomicUsize::new(0),
            era: AtomicU64::new(0),
        }
    }

    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Takes the length over that was found last, and returns it: whole blocks, as requests of the node have them.
    pub fn refresh_size(&self) -> u64 {
        let block = u64::from(self.facts.limits().request_alignment);
        let size = self.found_size.load(Ordering::Relaxed);
        let size = size - size % block;
        self.size.store(size, Ordering::Relaxed);
        size
    }

    /// Checks what a new connection has found.
    ///
    /// # Errors
    /// If requests of this node cannot go there.
    pub fn check(&self, facts: &Facts) -> std::io::Result<()> {
        facts.check_replaces(&self.facts, self.size())?;
        self.found_size.store(facts.size, Ordering::Relaxed);
        Ok(())
    }

    pub fn is_quiesced(&self) -> bool {
        self.quiesced.load(Ordering::Relaxed)
    }

    pub fn set_quiesced(&self, quiesced: bool) {
        self.quiesced.store(quiesced, Ordering::Relaxed);
    }

    /// A link was lost; until [`count_closed`](Self::count_closed) the server may carry out what it has received there.
    pub fn count_lost(&self) {
        self.unclosed.fetch_add(1, Ordering::Release);
    }

    /// The server has closed one that was lost, or is not waited for any longer.
    pub fn count_closed(&self) {
        self.unclosed.fetch_sub(1, Ordering::Release);
    }

    pub fn has_unclosed(&self) -> bool {
        self.unclosed.load(Ordering::Acquire) > 0
    }

    /// A change fails that the server may still carry out: what its caller does next must come after that, on all
    /// connections.
    pub fn begin_era(&self) {
        self.era.fetch_add(1, Ordering::Release);
    }

    #[inline]
    pub fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// The contexts that have a connection.
    pub fn homes(&self) -> Vec<AioHandle> {
        lock(&self.homes).clone()
    }

    /// Calls each context that has a connection.
    pub fn tell(&self, then: impl Fn(&Connection, &AioContext) + Copy + Send + 'static) {
        let number = self.number;
        for home in self.homes() {
            home.schedule(move |ctx| {
                if let Some(connection) = lanes::find(number, ctx) {
                    then(&connection, ctx);
                }
            });
        }
    }

    /// Gives up what is being made in contexts that are to have a connection.
    pub fn give_up_making(&self, why: Reason) {
        let number = self.number;
        for home in self.homes() {
            home.schedule(move |ctx| making::give_up(number, ctx, why));
        }
    }

    /// Takes a place for a connection in a context. False if there is none.
    pub fn enter(&self, home: &AioHandle) -> bool {
        let mut homes = lock(&self.homes);
        let has_room = homes.len() < self.max_connections.load(Ordering::Relaxed).max(1);
        let is_new = !homes.contains(home);
        if has_room && is_new {
            homes.push(home.clone());
        }
        has_room && is_new
    }

    pub fn leave(&self, home: &AioHandle) {
        lock(&self.homes).retain(|it| it != home);
    }

    /// The server has refused another connection.
    pub fn have_no_more(&self) {
        let now = lock(&self.homes).len();
        self.max_connections.store(now, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        lock(&NUMBERS).remove(self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
