//! Media that come and go under a backend that is in use.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, drivers::Null};

use crate::tagged::{Tagged, read};

/// What the reads gave, in the order of their ends.
type Results = Rc<RefCell<Vec<Result<u8, Option<i32>>>>>;

fn begin_read(ctx: &AioContext, backend: &BlockBackend, results: &Results) {
    let results = Rc::clone(results);
    backend.aio_preadv(ctx, 0, vec![0; 1], move |_, result, buffer| {
        let result = result.map(|()| buffer[0]).map_err(|error| error.raw_os_error());
        results.borrow_mut().push(result);
    });
}

#[test]
fn c74_a_medium_that_goes_takes_its_requests_in_flight_and_no_others() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let node = disk.node("disk");
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let refused = backend.insert_medium(node.clone()).unwrap_err();
    assert_eq!(refused.to_string(), "backend 'drive' has a medium, node 'disk'");
    let results = Results::default();
    disk.hold(true);
    begin_read(&ctx, &backend, &results);
    let removing = backend.clone();
    ctx.spawn("eject", move |co| drop(removing.co_remove_medium(co)));
    // Not before the drain has begun: other tests may be changing their graphs now.
    ctx.run_until(|| disk.hooks() == "(");
    begin_read(&ctx, &backend, &results);
    for _ in 0..20 {
        ctx.try_poll();
    }
    assert!(results.borrow().is_empty() && backend.node().is_some());
    disk.hold(false);
    ctx.run_until(|| results.borrow().len() == 2);
    assert_eq!(*results.borrow(), [Ok(1), Err(Some(libc::ENOMEDIUM))]);
    assert!(backend.node().is_none() && backend.remove_medium(&ctx).is_none());
    assert_eq!((Arc::strong_count(&node), backend.in_flight()), (1, 0));

    backend.insert_medium(Tagged::new(2).node("next")).unwrap();
    assert_eq!((read(&ctx, &backend).unwrap(), backend.length().unwrap()), (2, 4096));
}

#[test]
fn requests_held_by_a_drain_find_the_new_medium() {
    let ctx = AioContext::for_test().unwrap();
    let node = Tagged::new(1).node("disk");
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let stays = BlockBackend::new(&ctx, "stays", Arc::clone(&node));
    let (results, staying) = (Results::default(), Results::default());
    let section = node.drain(&ctx);
    begin_read(&ctx, &backend, &results);
    begin_read(&ctx, &stays, &staying);
    ctx.run(|co| {
        backend.co_remove_medium(co).unwrap();
        backend.insert_medium(Tagged::new(2).node("next")).unwrap();
    });
    // The old node stays drained: that is nothing to a backend which has left it.
    ctx.run_until(|| results.borrow().len() == 1);
    assert_eq!(*results.borrow(), [Ok(2)]);
    assert!(staying.borrow().is_empty());
    drop(section);
    ctx.run_until(|| staying.borrow().len() == 1);
    assert_eq!(*staying.borrow(), [Ok(1)]);
}

#[test]
fn c74_a_backend_writes_if_its_medium_can_be_written() {
    struct ReadOnly(Null);
    impl coblk_block::BlockDriver for ReadOnly {
        fn format_name(&self) -> &'static str {
            "read-only"
        }
        fn length(&self) -> u64 {
            self.0.length()
        }
        fn is_read_only(&self) -> bool {
            true
        }
        fn co_preadv(
            &self,
            co: &coblk_aio::Co<'_>,
            offset: u64,
            target: &mut coblk_aio::IoVectorMut<'_>,
            flags: coblk_block::ReadFlags,
        ) -> std::io::Result<()> {
            self.0.co_preadv(co, offset, target, flags)
        }
        fn co_pwritev(
            &self,
            _: &coblk_aio::Co<'_>,
            _: u64,
            _: &coblk_aio::IoVector<'_>,
            _: coblk_block::WriteFlags,
        ) -> std::io::Result<()> {
            panic!("a write to what is read-only")
        }
        fn co_flush(&self, _: &coblk_aio::Co<'_>) -> std::io::Result<()> {
            Ok(())
        }
    }
    let ctx = AioContext::for_test().unwrap();
    let backend = BlockBackend::empty(&ctx, "drive");
    let write = || {
        let byte = coblk_aio::IoVector::from(&[0u8; 1][..]);
        let result = backend.pwritev(&ctx, 0, &byte, coblk_block::WriteFlags::empty());
        result.map_err(|error| error.raw_os_error())
    };
    assert_eq!((write(), backend.is_read_only()), (Err(Some(libc::ENOMEDIUM)), false));
    let cd = coblk_block::BlockNode::new("cd", ReadOnly(Null::new(512)));
    backend.insert_medium(cd).unwrap();
    assert_eq!((write(), backend.is_read_only()), (Err(Some(libc::EPERM)), true));
    backend.remove_medium(&ctx).unwrap();
    backend.insert_medium(Tagged::new(1).node("disk")).unwrap();
    assert_eq!((write(), backend.is_read_only()), (Ok(()), false));
}
