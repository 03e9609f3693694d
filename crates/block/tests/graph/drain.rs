//! Drains reach what stands on a node, and nothing else.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_block::filters::blkdebug::{BlkDebug, Rules};
use coblk_block::{BlockBackend, BlockNode, DrainedSection};

use crate::tagged::{Both, Tagged, co_read, read};

fn filter(name: &str, below: &Arc<BlockNode>) -> Arc<BlockNode> {
    BlockNode::new(name, BlkDebug::new(Arc::clone(below), Rules::new(1)))
}

/// Begins a read; tells what it read, when it has.
fn begin_read(ctx: &AioContext, backend: &BlockBackend) -> Rc<Cell<Option<u8>>> {
    let (done, backend) = (Rc::new(Cell::new(None)), backend.clone());
    let in_coroutine = Rc::clone(&done);
    ctx.spawn("read", move |co| in_coroutine.set(co_read(co, &backend).ok()));
    done
}

fn settle(ctx: &AioContext) {
    for _ in 0..20 {
        ctx.try_poll();
    }
}

#[test]
fn c76_a_drain_of_a_node_waits_for_what_came_in_above() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let below = disk.node("disk");
    let backend = BlockBackend::new(&ctx, "drive", filter("top", &filter("middle", &below)));
    disk.hold(true);
    let before = begin_read(&ctx, &backend);
    let section: Rc<RefCell<Option<DrainedSection>>> = Rc::default();
    let drained = Rc::clone(&section);
    ctx.spawn("drain", move |co| *drained.borrow_mut() = Some(below.co_drain(co)));
    settle(&ctx);
    assert!(section.borrow().is_none(), "drained with a request in flight above");
    disk.hold(false);
    ctx.run_until(|| section.borrow().is_some());
    assert_eq!((before.get(), disk.in_flight()), (Some(1), 0));

    let during = begin_read(&ctx, &backend);
    settle(&ctx);
    assert_eq!((during.get(), disk.served()), (None, 1), "a request came through the filter");
    drop(section.take());
    ctx.run_until(|| during.get().is_some());
    assert_eq!(disk.hooks(), "()");
}

#[test]
fn c77_a_drain_does_not_reach_what_is_below_or_beside() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, other) = (Tagged::new(1), Tagged::new(2));
    let (below, beside) = (disk.node("disk"), other.node("other"));
    let (left, right) = (filter("left", &below), filter("right", &below));
    let backends =
        [&below, &right, &beside].map(|node| BlockBackend::new(&ctx, "drive", node.clone()));
    let section = left.drain(&ctx);
    let tags = backends.each_ref().map(|backend| read(&ctx, backend).unwrap());
    assert_eq!((tags, disk.hooks().as_str()), ([1, 1, 2], ""));
    drop(section);
}

#[test]
fn c77_drains_along_several_paths_count_once() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, hooks) = (Tagged::new(1), Tagged::new(9));
    let below = disk.node("disk");
    // Two ways down, and one more node on top whose hooks are seen.
    let both = Both::node("both", &filter("left", &below), &filter("right", &below));
    let spare = hooks.node("spare");
    let top = Both::node("top", &both, &spare);
    let backend = BlockBackend::new(&ctx, "drive", top);
    let sections = [below.drain(&ctx), both.drain(&ctx), below.drain(&ctx)];
    let held = begin_read(&ctx, &backend);
    for section in sections {
        settle(&ctx);
        assert_eq!(held.get(), None);
        drop(section);
    }
    ctx.run_until(|| held.get().is_some());
    assert_eq!((disk.hooks().as_str(), hooks.hooks().as_str()), ("()", ""));
}

#[test]
fn c77_a_node_made_above_a_drained_one_is_born_quiet() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let below = disk.node("disk");
    let section = below.drain(&ctx);
    let backend = BlockBackend::new(&ctx, "drive", filter("born", &filter("between", &below)));
    let held = begin_read(&ctx, &backend);
    settle(&ctx);
    assert_eq!((held.get(), disk.served()), (None, 0));
    drop(section);
    ctx.run_until(|| held.get() == Some(1));
}

#[test]
fn a_node_above_may_go_during_a_drain() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let below = disk.node("disk");
    let above = filter("above", &below);
    let section = below.drain(&ctx);
    drop(above);
    drop(section);
    assert_eq!(disk.hooks(), "()");
    assert_eq!(Arc::strong_count(&below), 1);
}

#[test]
fn a_drain_waits_for_a_shrink() {
    // What happened: a shrink drained its node and was not itself in flight, so that a drain which
    // began meanwhile was over before it.
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let node = disk.node("disk");
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    disk.hold(true);
    let shrunk = Rc::new(Cell::new(false));
    let in_coroutine = Rc::clone(&shrunk);
    ctx.spawn("shrink", move |co| {
        backend.co_truncate(co, 512).unwrap();
        in_coroutine.set(true);
    });
    ctx.run_until(|| disk.in_flight() == 1);
    let release = disk.clone();
    ctx.schedule(move |_| release.hold(false));
    drop(node.drain(&ctx));
    assert!(shrunk.get(), "the drain was over before the shrink");
}

#[test]
fn a_drain_with_a_limit_gives_up_and_requests_go_on() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let below = disk.node("disk");
    let backend = BlockBackend::new(&ctx, "drive", filter("top", &below));
    disk.hold(true);
    let before = begin_read(&ctx, &backend);
    let limit = Duration::from_millis(5);
    assert!(ctx.run(|co| below.co_drain_within(co, limit).is_err()));
    // The gate is open again: this one comes as far as the disk.
    let after = begin_read(&ctx, &backend);
    settle(&ctx);
    assert_eq!((before.get(), after.get(), disk.in_flight()), (None, None, 2));
    disk.hold(false);
    ctx.run_until(|| before.get().is_some() && after.get().is_some());
    let drained = ctx.run(|co| below.co_drain_within(co, limit));
    assert!(drained.is_ok(), "nothing is in flight");
    assert_eq!(disk.hooks(), "()(");
}

#[test]
fn a_change_of_a_node_whose_disk_does_not_answer_fails_and_the_medium_of_another_comes_out() {
    let ctx = AioContext::for_test().unwrap();
    let (dead, other) = (Tagged::new(1), Tagged::new(2));
    let (dead_node, other_node) = (dead.node("dead"), other.node("other"));
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&dead_node));
    let second = BlockBackend::new(&ctx, "second", Arc::clone(&other_node));
    dead.hold(true);
    let hangs = begin_read(&ctx, &backend);
    let replaced = Rc::new(RefCell::new(None));
    let (told, new) = (Rc::clone(&replaced), Arc::clone(&other_node));
    ctx.spawn("replace", move |co| *told.borrow_mut() = Some(dead_node.co_replace(co, &new)));
    settle(&ctx);
    assert!(replaced.borrow().is_none(), "it waits");
    assert!(second.remove_medium(&ctx).is_some(), "and this does not wait for it");
    let is_late = Rc::new(Cell::new(false));
    let late = Rc::clone(&is_late);
    let patience = ctx.timer(move |_| late.set(true));
    patience.arm_after(Duration::from_secs(60));
    ctx.run_until(|| replaced.borrow().is_some() || is_late.get());
    let error = replaced.take().expect("an end of its waiting").unwrap_err().to_string();
    assert_eq!(error, "node 'dead' still has requests in flight after 10 s");
    assert_eq!(backend.node().unwrap().name(), "dead");
    dead.hold(false);
    ctx.run_until(|| hangs.get().is_some());
}
