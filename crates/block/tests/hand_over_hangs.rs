//! A disk that does not answer is not handed over. By itself: changes of other tests would wait for it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, IoVector};
use coblk_block::drivers::Null;
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockBackend, BlockNode, RequestKind, WriteFlags};

#[test]
fn a_hand_over_that_hangs_ends_with_an_error_and_stops_no_other_change() {
    let ctx = AioContext::for_test().unwrap();
    let rules = Rules::new(1);
    let disk = BlockNode::new("disk", Null::new(1 << 20));
    let node = BlockNode::new("node", BlkDebug::new(disk, rules.clone()));
    let backend = BlockBackend::new(&ctx, "writer", Arc::clone(&node));
    backend.pwritev(&ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    drop(backend);
    rules.add(Rule::delay(Duration::from_secs(3600)).on(RequestKind::Flush));
    let refused = Rc::new(RefCell::new(None));
    let (told, own) = (Rc::clone(&refused), Arc::clone(&node));
    ctx.spawn("hand over", move |co| *told.borrow_mut() = own.co_set_active(co, false).err());
    while ctx.try_poll() {}
    // Other nodes change meanwhile.
    let [old, new] = ["old", "new"].map(|name| BlockNode::new(name, Null::new(1 << 20)));
    let user = BlockBackend::new(&ctx, "user", Arc::clone(&old));
    old.replace(&ctx, &new).unwrap();
    assert_eq!(user.node().unwrap().name(), "new");
    assert!(refused.borrow().is_none(), "the other change has waited");
    let is_late = Rc::new(RefCell::new(false));
    let late = Rc::clone(&is_late);
    let patience = ctx.timer(move |_| *late.borrow_mut() = true);
    patience.arm_after(Duration::from_secs(60));
    ctx.run_until(|| refused.borrow().is_some() || *is_late.borrow());
    let refused = refused.take().expect("an end of its waiting").to_string();
    assert!(refused.contains("timed out"), "{refused}");
    assert!(node.is_active());
}
