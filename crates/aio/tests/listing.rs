//! The listing of live coroutines.

use coblk_aio::AioContext;
use coblk_coroutine::CoroutineState;

#[test]
fn live_coroutines_are_listed_with_what_they_wait_for() {
    let ctx = AioContext::test_builder().name("disk loop").build().unwrap();
    ctx.spawn("flusher", |co| co.suspend_for("a flush", std::mem::forget));
    ctx.spawn("short", |_| ());
    ctx.spawn("nosy", |co| {
        let own = co.context().coroutines().remove(0);
        assert_eq!((own.name, own.state), ("nosy", CoroutineState::Entered));
        co.yield_now();
    });
    let listed = ctx.coroutines();
    let short: Vec<_> = listed.iter().map(|it| (it.name, it.state, it.waits_for)).collect();
    assert_eq!(
        short,
        [
            ("nosy", CoroutineState::Suspended, "its turn"),
            ("flusher", CoroutineState::Suspended, "a flush"),
        ]
    );
    assert_ne!(listed[0].id, listed[1].id);
    let line = listed[1].to_string();
    assert!(line.contains("'flusher' in 'disk loop', Suspended, waits for a flush, "), "{line}");
    ctx.try_poll();
    assert_eq!(ctx.coroutines().len(), 1);
}
