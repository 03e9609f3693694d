//! [`Changes`]: the graph turns while requests run.

use std::sync::Arc;
use std::time::Duration;

use coblk::drivers::Raw;
use coblk::{BlockNode, Co};
use coblk_tests::random::Random;
use coblk_tests::stacks::{debugged, throttled};

/// At least so many happen to every run.
const AT_LEAST: u64 = 6;

/// Filters come and go above a node, it is drained, and another takes its place and gives it back.
pub struct Changes {
    /// The other one, which holds the same bytes.
    pub twin: Arc<BlockNode>,
}

impl Changes {
    /// Makes one after the other, until `finished`.
    pub fn make(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        random: &mut Random,
        finished: impl Fn() -> bool,
    ) {
        let mut made = 0;
        while made < AT_LEAST || !finished() {
            match random.below(4) {
                0 => {
                    let filter = insert(co, node, random);
                    pause(co, random);
                    filter.co_remove(co).expect("a filter goes");
                }
                1 => {
                    // The second goes between the first and the node.
                    let filters = [insert(co, node, random), insert(co, node, random)];
                    pause(co, random);
                    let first = random.below(2) as usize;
                    filters[first].co_remove(co).expect("a filter goes");
                    pause(co, random);
                    filters[1 - first].co_remove(co).expect("a filter goes");
                }
                2 => {
                    node.co_replace(co, &self.twin).expect("the twin takes its place");
                    pause(co, random);
                    self.twin.co_replace(co, node).expect("and gives it back");
                }
                _ => {
                    let drained = node.co_drain(co);
                    pause(co, random);
                    drop(drained);
                }
            }
            pause(co, random);
            made += 1;
        }
    }
}

fn insert(co: &Co<'_>, node: &Arc<BlockNode>, random: &mut Random) -> Arc<BlockNode> {
    let below = Arc::clone(node);
    let filter = match random.below(3) {
        0 => BlockNode::new("raw", Raw::new(below)),
        1 => debugged(below),
        _ => throttled(below),
    };
    node.co_insert_above(co, &filter).expect("a filter comes");
    filter
}

/// Lets requests run.
fn pause(co: &Co<'_>, random: &mut Random) {
    co.sleep(Duration::from_micros(random.below(500)));
}
