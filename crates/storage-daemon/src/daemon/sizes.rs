//! How much storage nodes take: asked of their disks, which may not answer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk::aio::PoolShare;
use coblk::{BlockNode, Co};

use super::Daemon;

/// For how long disks are asked. A system call on a worker answers in microseconds, or from a disk.
const LIMIT: Duration = Duration::from_secs(1);

/// Nodes that are being asked, by their addresses: each is held until its disk has answered, so that
/// another one cannot have its address, and is asked once at a time, however often others want to know.
pub(super) type Asked = BTreeMap<usize, Rc<Question>>;

#[derive(Default)]
pub(super) struct Question {
    answer: Cell<Option<Option<u64>>>,
}

impl Daemon {
    /// The bytes that each of these nodes takes, as far as its disk tells, and within a second.
    pub(crate) fn co_allocated_bytes(
        self: &Rc<Self>,
        co: &Co<'_>,
        nodes: &[Arc<BlockNode>],
    ) -> Vec<Option<u64>> {
        let questions: Vec<_> = nodes.iter().map(|node| self.ask_for_size(co, node)).collect();
        let waiting = self.wait_within(co.context(), LIMIT);
        while questions.iter().any(|it| it.answer.get().is_none()) && !waiting.is_over(co) {
            self.co_wait(co, "the sizes of nodes");
        }
        questions.iter().map(|it| it.answer.get().flatten()).collect()
    }

    fn ask_for_size(self: &Rc<Self>, co: &Co<'_>, node: &Arc<BlockNode>) -> Rc<Question> {
        let address = Arc::as_ptr(node).addr();
        if let Some(question) = self.asked.borrow().get(&address) {
            return Rc::clone(question);
        }
        let question = Rc::new(Question::default());
        self.asked.borrow_mut().insert(address, Rc::clone(&question));
        let (daemon, node, own) = (Rc::downgrade(self), Arc::clone(node), Rc::clone(&question));
        co.context().spawn("ask for size", move |co| {
            // Unknown to some file systems.
            own.answer.set(Some(node.co_allocated_bytes(co).ok().flatten()));
            if let Some(daemon) = daemon.upgrade() {
                daemon.asked.borrow_mut().remove(&address);
                daemon.wake_waiters();
            }
            // The last to hold it closes its file, which is not for the loop.
            if let Some(node) = Arc::into_inner(node) {
                PoolShare::once(co, || drop(node));
            }
        });
        question
    }
}
