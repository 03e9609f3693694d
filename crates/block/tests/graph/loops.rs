//! A node that is to be its own child, while others ask about it. A program of its own: it holds up all changes of the
//! graph until it has seen what one of them does, and others would keep that one waiting.

#[allow(dead_code, reason = "other tests use the rest")]
mod movable;

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoThread, IoVector, IoVectorMut};
use coblk_block::{
    BackendOptions, BlockDriver, BlockNode, PermissionError, Permissions, ReadFlags, RemoteBackend,
    WriteFlags,
};

use movable::{Copies, listed};

/// A disk on which permissions change when the test says so.
struct Slow {
    begun: Mutex<Sender<()>>,
    goes_on: Mutex<Receiver<()>>,
}

impl BlockDriver for Slow {
    fn format_name(&self) -> &'static str {
        "slow"
    }
    fn length(&self) -> u64 {
        4096
    }
    fn set_permissions(&self, _: Permissions, _: Permissions) -> Result<(), PermissionError> {
        let _ = self.begun.lock().unwrap().send(());
        // An error if the test has ended.
        let _ = self.goes_on.lock().unwrap().recv();
        Ok(())
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A driver finds no child in its list that leads to its own node, not even until that is refused: a
/// question such as for its length would have no end.
#[test]
fn a_list_has_no_child_before_the_graph_has_it() {
    let ctx = AioContext::for_test().unwrap();
    let thread = IoThread::new("io").unwrap();
    let ((begun, has_begun), (go_on, goes_on)) = (channel(), channel());
    let slow = Slow { begun: Mutex::new(begun), goes_on: Mutex::new(goes_on) };
    let slow = BlockNode::new("slow", slow);
    let opening = BackendOptions::new("drive").open_remote(thread.handle(), slow);
    has_begun.recv().unwrap();

    let (node, asked) = Copies::asked("copies", 0, &[]);
    let refused = Arc::<Mutex<Option<String>>>::default();
    let (itself, end) = (Arc::clone(&node), Arc::clone(&refused));
    ctx.spawn("add", move |co| {
        let error = itself.co_add_child(co, &itself).unwrap_err();
        *end.lock().unwrap() = Some(error.to_string());
    });
    // Then it waits for the permissions that are about to change. A worker has asked, which wakes no loop.
    while asked.lock().unwrap().len() < 2 {
        ctx.poll_timeout(Duration::from_millis(1));
    }
    // First, as the question would have no end.
    assert_eq!(listed(&node), 0);
    assert_eq!(node.driver().length(), 0);
    drop(go_on);
    let backend: RemoteBackend = opening.wait().unwrap().unwrap();
    ctx.run_until(|| refused.lock().unwrap().is_some());
    let expected = "making node 'copies' a child of node 'copies' would create a cycle";
    assert_eq!(refused.lock().unwrap().as_deref(), Some(expected));
    assert_eq!((listed(&node), node.graph_faults()), (0, vec![]));
    drop(backend);
}
