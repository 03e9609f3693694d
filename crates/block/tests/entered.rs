//! One count at the gate for several operations.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::drivers::Null;
use coblk_block::{BlockBackend, BlockNode, Entered, WriteFlags, ZeroFlags};

fn backend(ctx: &AioContext, name: &str) -> BlockBackend {
    BlockBackend::new(ctx, name, BlockNode::new(name, Null::new(1 << 20).read_zeroes(true)))
}

fn settle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

fn drain(ctx: &AioContext, backend: &BlockBackend) -> Rc<Cell<bool>> {
    let (node, is_drained) = (backend.node().unwrap(), Rc::new(Cell::new(false)));
    let seen = Rc::clone(&is_drained);
    ctx.spawn("drain", move |co| {
        drop(node.co_drain(co));
        seen.set(true);
    });
    settle(ctx);
    is_drained
}

#[test]
fn operations_of_what_has_entered_go_on_while_a_drain_waits_for_it() {
    let ctx = AioContext::for_test().unwrap();
    let disk = backend(&ctx, "disk");
    let mut entered = disk.try_enter().unwrap().expect("open");
    let drained = drain(&ctx, &disk);
    ctx.run(|co| {
        let mut bytes = [1; 512];
        entered.co_preadv(co, 0, &mut IoVectorMut::from(&mut bytes[..])).unwrap();
        assert_eq!(bytes, [0; 512]);
        entered.co_pwritev(co, 0, &IoVector::from(&bytes[..]), WriteFlags::empty()).unwrap();
        entered.co_pwrite_zeroes(co, 0, 512, ZeroFlags::empty()).unwrap();
        entered.co_pdiscard(co, 0, 512).unwrap();
        entered.co_flush(co).unwrap();
        assert_eq!(entered.co_block_status(co, 0, 512).unwrap().bytes, 512);
    });
    assert_eq!((drained.get(), disk.in_flight()), (false, 1));
    assert!(disk.try_enter().unwrap().is_none(), "another comes in");
    assert_eq!(entered.backend().name(), "disk");
    drop(entered);
    settle(&ctx);
    assert!(drained.get());
}

#[test]
fn both_are_entered_or_none() {
    let ctx = AioContext::for_test().unwrap();
    let [source, target] = ["source", "target"].map(|name| backend(&ctx, name));
    for closed in [&source, &target] {
        let section = closed.drain(&ctx);
        assert!(source.try_enter_both(&target).unwrap().is_none());
        assert_eq!((source.in_flight(), target.in_flight()), (0, 0));
        drop(section);
    }
    let both = source.try_enter_both(&target).unwrap().expect("open");
    assert_eq!((source.in_flight(), target.in_flight()), (1, 1));
    drop(both);
}

#[test]
fn who_waits_for_both_is_in_the_way_of_neither() {
    let ctx = AioContext::for_test().unwrap();
    let [source, target] = ["source", "target"].map(|name| backend(&ctx, name));
    for (first, second) in [(&source, &target), (&target, &source)] {
        let section = second.drain(&ctx);
        let both: Rc<RefCell<Option<(Entered, Entered)>>> = Rc::default();
        let (from, to, seen) = (source.clone(), target.clone(), Rc::clone(&both));
        ctx.spawn("copy", move |co| {
            *seen.borrow_mut() = Some(from.co_enter_both(co, &to).unwrap());
        });
        settle(&ctx);
        assert!(both.borrow().is_none());
        assert!(drain(&ctx, first).get(), "a drain waits for what waits for another");
        drop(section);
        settle(&ctx);
        assert!(both.borrow().is_some());
    }
}

#[test]
fn without_a_medium_or_an_active_node_there_is_nothing_to_enter() {
    let ctx = AioContext::for_test().unwrap();
    let (empty, disk) = (BlockBackend::empty(&ctx, "empty"), backend(&ctx, "disk"));
    let node = disk.node().unwrap();
    ctx.run(|co| node.co_set_active(co, false)).unwrap();
    for (backend, errno) in [(&empty, libc::ENOMEDIUM), (&disk, libc::EPERM)] {
        let errors = [
            backend.try_enter().err(),
            backend.try_enter_both(backend).err(),
            ctx.run(|co| backend.co_enter(co).err()),
            ctx.run(|co| backend.co_enter_both(co, backend).err()),
        ];
        let errors = errors.map(|error| error.and_then(|error| error.raw_os_error()));
        assert_eq!(errors, [Some(errno); 4]);
    }
}
