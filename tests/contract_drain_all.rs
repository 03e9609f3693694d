//! Drains of all nodes: contract line 77. A program of its own, for such a drain holds for every
//! node of the process; its tests take turns.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk::{AioContext, BlockBackend, BlockNode, IoVectorMut, drain_all};
use coblk_tests::probe::{Call, Probe};

const SIZE: usize = 64 << 10;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn context() -> AioContext {
    AioContext::for_test().expect("a context")
}

/// A node on a new probe.
fn node(name: &str) -> (Arc<BlockNode>, Probe) {
    let probe = Probe::new(SIZE);
    (BlockNode::new(name, probe.clone()), probe)
}

/// Begins a read; the cell tells when it has ended.
fn begin_read(ctx: &AioContext, backend: &BlockBackend) -> Rc<Cell<bool>> {
    let ended = Rc::new(Cell::new(false));
    let in_callback = Rc::clone(&ended);
    backend.aio_preadv(ctx, 0, vec![0; 512], move |_, result, _| {
        result.expect("a read within the device");
        in_callback.set(true);
    });
    ended
}

#[test]
fn c77_a_drain_of_all_holds_for_every_node() {
    let _turn = turn();
    let ctx = context();
    let nodes = [node("a"), node("b")];
    let backends = nodes.each_ref().map(|(it, _)| BlockBackend::new(&ctx, "drive", it.clone()));
    let before = begin_read(&ctx, &backends[0]);
    let all = drain_all(&ctx);
    assert!(before.get(), "drained with a request in flight");
    let during = backends.each_ref().map(|backend| begin_read(&ctx, backend));
    while ctx.try_poll() {}
    assert!(during.iter().all(|ended| !ended.get()), "a request came through a drain");
    drop(all);
    ctx.run_until(|| during.iter().all(|ended| ended.get()));
    for (_, probe) in &nodes {
        let calls = probe.take_calls();
        let hooks: Vec<&Call> = calls.iter().filter(|it| !matches!(it, Call::Read(..))).collect();
        assert_eq!(hooks, [&Call::DrainedBegin, &Call::DrainedEnd]);
    }
}

#[test]
fn c77_a_node_made_during_a_drain_of_all_is_born_quiet() {
    let _turn = turn();
    let ctx = context();
    let all = drain_all(&ctx);
    let (born, probe) = node("born");
    assert_eq!(probe.take_calls(), [Call::DrainedBegin]);
    let backend = BlockBackend::new(&ctx, "drive", born);
    let ended = begin_read(&ctx, &backend);
    while ctx.try_poll() {}
    assert!(!ended.get(), "a request came through a drain");
    assert_eq!(probe.take_calls(), []);
    drop(all);
    ctx.run_until(|| ended.get());
    assert_eq!(probe.take_calls(), [Call::DrainedEnd, Call::Read(0, vec![512])]);
}

/// Two drains of all nodes, `old` made before them, `middle` between, `young` during both; the
/// first or the second ends first.
fn two_drains_of_all(first_ends_first: bool) {
    let ctx = context();
    let old = node("old");
    let first = drain_all(&ctx);
    let middle = node("middle");
    let second = drain_all(&ctx);
    let young = node("young");
    let nodes = [old, middle, young];
    let backends = nodes.each_ref().map(|(it, _)| BlockBackend::new(&ctx, "drive", it.clone()));
    let ended = backends.each_ref().map(|backend| begin_read(&ctx, backend));
    for (_, probe) in &nodes {
        assert_eq!(probe.take_calls(), [Call::DrainedBegin]);
    }

    let rest = if first_ends_first {
        drop(first);
        second
    } else {
        drop(second);
        first
    };
    while ctx.try_poll() {}
    for (node, probe) in &nodes {
        assert_eq!(probe.take_calls(), [], "{} during the second drain", node.name());
    }
    let (late, late_probe) = node("late");
    assert_eq!(late_probe.take_calls(), [Call::DrainedBegin]);

    drop(rest);
    ctx.run_until(|| ended.iter().all(|ended| ended.get()));
    for (node, probe) in &nodes {
        let expected = [Call::DrainedEnd, Call::Read(0, vec![512])];
        assert_eq!(probe.take_calls(), expected, "{} at the end", node.name());
    }
    assert_eq!(late_probe.take_calls(), [Call::DrainedEnd]);
    drop(late);
    let (_after, probe) = node("after");
    assert_eq!(probe.take_calls(), [], "born after all drains");
}

#[test]
fn c77_drains_of_all_nest() {
    let _turn = turn();
    two_drains_of_all(false);
    two_drains_of_all(true);
}

#[test]
fn c77_a_node_may_go_during_a_drain_of_all() {
    let _turn = turn();
    let ctx = context();
    let (old, old_probe) = node("old");
    let all = drain_all(&ctx);
    let (born, born_probe) = node("born");
    drop(born);
    assert_eq!(Arc::strong_count(&old), 2, "the section keeps what it drained");
    drop(old);
    drop(all);
    assert_eq!(old_probe.take_calls(), [Call::DrainedBegin, Call::DrainedEnd]);
    assert_eq!(born_probe.take_calls(), [Call::DrainedBegin]);
}

#[test]
fn c77_a_drain_of_all_and_one_of_a_node_nest() {
    let _turn = turn();
    let ctx = context();
    let (node, probe) = node("node");
    let backend = BlockBackend::new(&ctx, "drive", node);
    let all = drain_all(&ctx);
    let section = backend.drain(&ctx);
    drop(all);
    let ended = begin_read(&ctx, &backend);
    while ctx.try_poll() {}
    assert!(!ended.get(), "a request came through a drain");
    assert_eq!(probe.take_calls(), [Call::DrainedBegin]);
    drop(section);
    ctx.run_until(|| ended.get());
    let mut sector = [0; 512];
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut sector[..])).expect("a read");
}
