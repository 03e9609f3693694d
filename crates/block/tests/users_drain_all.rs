//! A drain of all nodes waits for users that are no backends. By itself: other tests would wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use coblk_aio::{AioContext, Co};
use coblk_block::drivers::Null;
use coblk_block::{BlockNode, NodeUse, NodeUser, Permissions, drain_all};

/// Counts what it was told, a digit each.
#[derive(Default)]
struct Job(AtomicU32);

impl Job {
    fn told(&self, digit: u32) {
        self.0.store(self.0.load(Ordering::SeqCst) * 10 + digit, Ordering::SeqCst);
    }
}

impl NodeUser for Job {
    fn name(&self) -> String {
        "job".to_owned()
    }

    fn drained_begin(&self) {
        self.told(1);
    }

    fn drained_end(&self) {
        self.told(3);
    }

    fn co_rest(&self, co: &Co<'_>) {
        co.sleep(std::time::Duration::from_millis(1));
        self.told(2);
    }
}

#[test]
fn a_drain_of_all_waits_until_users_rest() {
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("node", Null::new(512));
    let job = Arc::new(Job::default());
    let user = Arc::clone(&job) as Arc<dyn NodeUser>;
    let _use = NodeUse::new(user, &node, Permissions::empty(), Permissions::all()).unwrap();
    let section = drain_all(&ctx);
    assert_eq!(job.0.load(Ordering::SeqCst), 12);
    drop(section);
    assert_eq!(job.0.load(Ordering::SeqCst), 123);
}
