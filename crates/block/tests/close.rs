//! Two that close a node at once.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use coblk_aio::{AioContext, Co, IoThread, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, BlockNode, ReadFlags, WriteFlags};

/// A disk that is closed when the test says so.
#[derive(Default)]
struct Gate {
    closes: AtomicUsize,
    may_end: AtomicBool,
    errno: AtomicI32,
}

struct Slow(Arc<Gate>);

impl BlockDriver for Slow {
    fn format_name(&self) -> &'static str {
        "slow"
    }
    fn length(&self) -> u64 {
        4096
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
    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.0.closes.fetch_add(1, Ordering::SeqCst);
        while !self.0.may_end.load(Ordering::SeqCst) {
            co.yield_now();
        }
        match self.0.errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

type Results = Rc<RefCell<Vec<Result<(), String>>>>;

fn close(ctx: &AioContext, node: &Arc<BlockNode>, results: &Results) {
    let (node, results) = (Arc::clone(node), Rc::clone(results));
    ctx.spawn("close", move |co| {
        let closed = node.co_close(co).map_err(|error| error.to_string());
        results.borrow_mut().push(closed);
    });
}

/// A node that another call is about to close.
fn begin(ctx: &AioContext, errno: i32) -> (Arc<BlockNode>, Arc<Gate>, Results) {
    let gate = Arc::<Gate>::default();
    gate.errno.store(errno, Ordering::SeqCst);
    let (node, results) = (BlockNode::new("disk", Slow(Arc::clone(&gate))), Results::default());
    close(ctx, &node, &results);
    ctx.run_until(|| gate.closes.load(Ordering::SeqCst) == 1);
    (node, gate, results)
}

#[test]
fn a_second_close_waits_for_the_first_and_has_its_result() {
    let error = "node 'disk' cannot be closed: Input/output error (os error 5)";
    for (errno, expected) in [(0, Ok(())), (libc::EIO, Err(error.to_owned()))] {
        let ctx = AioContext::for_test().unwrap();
        let (node, gate, results) = begin(&ctx, errno);
        close(&ctx, &node, &results);
        for _ in 0..50 {
            ctx.poll();
        }
        assert!(results.borrow().is_empty(), "the driver is not closed yet");
        gate.may_end.store(true, Ordering::SeqCst);
        ctx.run_until(|| results.borrow().len() == 2);
        assert_eq!(*results.borrow(), [expected.clone(), expected.clone()]);
        // The driver was asked once. Later it is asked again if that has failed.
        assert_eq!(gate.closes.load(Ordering::SeqCst), 1);
        gate.errno.store(0, Ordering::SeqCst);
        ctx.run(|co| node.co_close(co)).unwrap();
        ctx.run(|co| node.co_close(co)).unwrap();
        let asked = if expected.is_ok() { 1 } else { 2 };
        assert_eq!(gate.closes.load(Ordering::SeqCst), asked);
    }
}

#[test]
fn a_second_close_in_another_context_waits_too() {
    let ctx = AioContext::for_test().unwrap();
    let thread = IoThread::new("io").unwrap();
    let (node, gate, results) = begin(&ctx, libc::ENOSPC);
    let [begun, over] = [(); 2].map(|()| Arc::<AtomicBool>::default());
    let (itself, begins, ends) = (Arc::clone(&node), Arc::clone(&begun), Arc::clone(&over));
    let second = thread.handle().spawn("close", move |co| {
        begins.store(true, Ordering::SeqCst);
        let closed = itself.co_close(co).map_err(|error| error.to_string());
        ends.store(true, Ordering::SeqCst);
        closed
    });
    // It runs on that thread when the second one has suspended there, or is over.
    let waits = thread.handle().spawn("look", move |co| {
        while !begun.load(Ordering::SeqCst) {
            co.yield_now();
        }
        !over.load(Ordering::SeqCst)
    });
    // The first one goes on only after that.
    assert!(waits.wait().unwrap(), "the driver is not closed yet");
    gate.may_end.store(true, Ordering::SeqCst);
    ctx.run_until(|| results.borrow().len() == 1);
    let expected = "node 'disk' cannot be closed: No space left on device (os error 28)";
    assert_eq!(*results.borrow(), [Err(expected.to_owned())]);
    assert_eq!(second.wait().unwrap(), Err(expected.to_owned()));
    assert_eq!(gate.closes.load(Ordering::SeqCst), 1);
}

/// A close that ends with its context is none: the node is open, and the next one closes it.
#[test]
fn a_close_that_is_given_up_leaves_the_node_open() {
    let ctx = AioContext::for_test().unwrap();
    let (node, gate, results) = begin(&ctx, 0);
    drop(ctx);
    assert!(results.borrow().is_empty());
    let ctx = AioContext::for_test().unwrap();
    gate.may_end.store(true, Ordering::SeqCst);
    ctx.run(|co| node.co_close(co)).unwrap();
    assert_eq!(gate.closes.load(Ordering::SeqCst), 2);
}
