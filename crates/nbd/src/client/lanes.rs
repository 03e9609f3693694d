//! Which connection a node has in a context: known to the thread alone, so that a request takes no lock.

use std::cell::RefCell;
use std::rc::Rc;

use coblk_aio::AioContext;

use crate::client::connection::Connection;

/// By the number of a context, which are few on one thread.
type Lanes = Vec<(usize, Rc<Connection>)>;

thread_local! {
    /// By the number of a node.
    static LANES: RefCell<Vec<Lanes>> = const { RefCell::new(Vec::new()) };
}

pub fn find(node: usize, ctx: &AioContext) -> Option<Rc<Connection>> {
    LANES.with_borrow(|all| {
        let lanes = all.get(node)?;
        let lane = lanes.iter().find(|(number, _)| *number == ctx.number());
        lane.map(|(_, connection)| Rc::clone(connection))
    })
}

/// There is none yet.
pub fn add(node: usize, ctx: &AioContext, connection: Rc<Connection>) {
    LANES.with_borrow_mut(|all| {
        if all.len() <= node {
            all.resize_with(node + 1, Vec::new);
        }
        all[node].push((ctx.number(), connection));
    });
}

/// Whether it was there.
pub fn remove(ctx: &AioContext, connection: &Rc<Connection>) -> bool {
    let removed = LANES.with_borrow_mut(|all| {
        let lanes = all.get_mut(connection.shared.number)?;
        let is_it = |(number, it): &(usize, Rc<Connection>)| {
            *number == ctx.number() && Rc::ptr_eq(it, connection)
        };
        let at = lanes.iter().position(is_it)?;
        Some(lanes.swap_remove(at))
    });
    removed.is_some()
}
