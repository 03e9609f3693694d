//! A drain of all nodes, which disturbs other tests of its process, and throttled requests.

use std::cell::Cell;
use std::rc::Rc;

use coblk_aio::{AioContext, SimulationOptions};
use coblk_block::drivers::Null;
use coblk_block::filters::throttle::{Rate, Throttle, ThrottleGroup, ThrottleLimits};
use coblk_block::{BlockBackend, BlockNode, WriteFlags, drain_all};

#[test]
fn a_drain_of_all_lets_waiting_requests_through() {
    let options = SimulationOptions::new(1);
    let ctx = AioContext::test_builder().simulated(options).build().expect("a context");
    let limits = ThrottleLimits { iops_write: Rate::new(1), ..ThrottleLimits::default() };
    let group = ThrottleGroup::new("group", limits).expect("limits");
    let disk = BlockNode::new("disk", Null::new(1 << 20));
    let node = BlockNode::new("throttled", Throttle::new(disk, &group));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let done = Rc::new(Cell::new(0));
    for _ in 0..5 {
        let done = Rc::clone(&done);
        backend.aio_pwritev(&ctx, 0, vec![0; 512], WriteFlags::empty(), move |_, result, _| {
            result.expect("a write");
            done.set(done.get() + 1);
        });
    }
    assert_eq!(group.waiting(), 4);
    // The waiting ones are let through under the locks of the drain, outside of any coroutine:
    // if one of them ran there and then, this would hang.
    drop(drain_all(&ctx));
    assert_eq!((done.get(), group.waiting(), ctx.now_ns()), (5, 0, 0));
}
