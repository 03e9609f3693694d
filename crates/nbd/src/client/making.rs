//! [`Making`]: a connection of another context of a node, while it is made.
//!
//! The request that it is made for waits for a moment: where the server takes no more connections, or hangs, requests
//! of the context are carried out in another one meanwhile. The coroutine that makes it belongs to no request.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::sync::CoSleep;
use coblk_aio::{AioContext, AioHandle, Co};

use crate::client::shared::Shared;
use crate::client::wire::Wire;
use crate::client::{keeper, lanes};

/// How long a request waits for a connection of its own context.
const MOMENT: Duration = Duration::from_secs(1);

thread_local! {
    /// What is being made on this thread, at most one for a node in a context.
    static ALL: RefCell<Vec<Rc<Making>>> = const { RefCell::new(Vec::new()) };
}

/// What a request does that has waited.
pub enum Waited {
    /// It looks which connection there is.
    GoOn,
    /// It fails.
    Cancelled,
}

/// Why it is given up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The node is drained or closed.
    Drained,
    /// What waits for a server is to fail.
    Cancelled,
}

struct Making {
    shared: Arc<Shared>,
    home: AioHandle,
    /// What is being negotiated.
    wire: RefCell<Weak<Wire>>,
    /// The request that it is made for.
    waiter: CoSleep,
    given_up: Cell<Option<Reason>>,
    is_over: Cell<bool>,
    /// The context has a connection.
    is_made: Cell<bool>,
}

/// Makes a connection in this context, which has entered for it, and waits for that as long as it makes sense.
pub fn co_make(co: &Co<'_>, shared: &Arc<Shared>) -> Waited {
    let making = Rc::new(Making {
        shared: Arc::clone(shared),
        home: co.context().handle(),
        wire: RefCell::new(Weak::new()),
        waiter: CoSleep::new(),
        given_up: Cell::new(None),
        is_over: Cell::new(false),
        is_made: Cell::new(false),
    });
    ALL.with_borrow_mut(|all| all.push(Rc::clone(&making)));
    let own = Listed(Rc::clone(&making));
    // Without memory for a stack there is none.
    let _ = co.context().try_spawn("nbd_client_connect", move |co| own.0.co_run(co));
    if !making.is_over.get() && making.given_up.get().is_none() {
        making.waiter.sleep(co, MOMENT);
    }
    match making.given_up.get() {
        Some(Reason::Cancelled) => Waited::Cancelled,
        _ => Waited::GoOn,
    }
}

/// Gives up what is being made for a node in this context.
pub fn give_up(node: usize, ctx: &AioContext, why: Reason) {
    if let Some(making) = find(node, ctx) {
        making.given_up.set(Some(why));
        if let Some(wire) = making.wire.borrow().upgrade() {
            wire.end("the connection is given up");
        }
        making.waiter.wake();
    }
}

/// Whether a connection is being made for a node in this context.
pub fn is_there(node: usize, ctx: &AioContext) -> bool {
    find(node, ctx).is_some()
}

fn find(node: usize, ctx: &AioContext) -> Option<Rc<Making>> {
    ALL.with_borrow(|all| {
        let is_it = |it: &&Rc<Making>| it.shared.number == node && it.home == ctx.handle();
        all.iter().find(is_it).cloned()
    })
}

/// Known as long as its coroutine lives.
struct Listed(Rc<Making>);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.is_over.set(true);
        let making = ALL.with_borrow_mut(|all| {
            let at = all.iter().position(|it| Rc::ptr_eq(it, &self.0))?;
            Some(all.swap_remove(at))
        });
        drop(making);
        if !self.0.is_made.get() {
            self.0.shared.leave(&self.0.home);
        }
        self.0.waiter.wake();
    }
}

impl Making {
    fn co_run(&self, co: &Co<'_>) {
        let (shared, has_begun) = (&self.shared, Cell::new(false));
        let begun = |wire: &Rc<Wire>| {
            has_begun.set(true);
            *self.wire.borrow_mut() = wire.weak();
            if self.given_up.get().is_some() {
                wire.end("the connection is given up");
            }
        };
        let made = keeper::co_connect(co, &shared.target, begun)
            .and_then(|made| shared.check(&made.1).map(|()| made))
            .and_then(|made| self.start(co.context(), made));
        let Err(error) = made else { return };
        tracing::debug!(%error, "no further connection with an NBD server");
        // One that is there, and does not want another.
        if has_begun.get() && self.given_up.get().is_none() {
            shared.leave(&self.home);
            shared.have_no_more();
        }
    }

    fn start(&self, ctx: &AioContext, made: keeper::Made) -> io::Result<()> {
        if self.given_up.get().is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        // One may have moved here meanwhile.
        if lanes::find(self.shared.number, ctx).is_none() {
            keeper::start(ctx, &self.shared, Some(made))?;
        }
        self.is_made.set(true);
        Ok(())
    }
}
