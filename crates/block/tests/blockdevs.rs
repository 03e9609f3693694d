//! Nodes that come and go at the same time.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, IoVector};
use coblk_block::drivers::{Null, Raw};
use coblk_block::filters::throttle::{ThrottleGroup, ThrottleLimits};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockNode, BlockdevError, Blockdevs, WriteFlags};

use crate::util::bench::Bench;

fn options(line: &str) -> NodeOptions {
    NodeOptions::from_keyval(line).unwrap()
}

/// What was done, in the order in which it was.
#[derive(Clone, Default)]
struct Steps(Rc<RefCell<Vec<String>>>);

impl Steps {
    fn start(
        &self,
        ctx: &AioContext,
        name: &'static str,
        step: impl FnOnce(&Co<'_>) -> Result<(), BlockdevError> + 'static,
    ) {
        let steps = self.0.clone();
        ctx.spawn(name, move |co| {
            let result = step(co);
            let said = result.map_or_else(|error| error.to_string(), |()| "done".to_owned());
            steps.borrow_mut().push(format!("{name}: {said}"));
        });
    }

    fn wait(&self, ctx: &AioContext, steps: usize) -> Vec<String> {
        ctx.run_until(|| self.0.borrow().len() == steps);
        self.0.take()
    }
}

#[test]
fn a_node_is_not_closed_while_another_is_opened_on_it() {
    let bench = Bench::new();
    bench.open("null-co,node-name=disk,size=1048576").unwrap();
    // The image is opened by a worker, and so something else may happen meanwhile.
    let line = format!(
        "blklogwrites,node-name=top,file=disk,log.driver=file,log.filename={}",
        bench.image()
    );
    let (steps, blockdevs) = (Steps::default(), Rc::new(bench.blockdevs));
    let opening = Rc::clone(&blockdevs);
    steps.start(&bench.ctx, "open", move |co| opening.co_open(co, options(&line)).map(drop));
    let refused = blockdevs.close(&bench.ctx, "disk").unwrap_err().to_string();
    assert_eq!(refused, "node 'disk' is in use");
    assert_eq!(steps.wait(&bench.ctx, 1), ["open: done"]);
    assert_eq!(blockdevs.node("top").unwrap().children()[0].1.name(), "disk");
    blockdevs.close(&bench.ctx, "top").unwrap();
    blockdevs.close(&bench.ctx, "disk").unwrap();
}

#[test]
fn a_group_is_in_use_while_its_first_node_is_opened() {
    let bench = Bench::new();
    let group = Arc::new(ThrottleGroup::new("g", ThrottleLimits::default()).unwrap());
    bench.blockdevs.add_object("g", group).unwrap();
    let line = format!("throttle,node-name=t,throttle-group=g,file.filename={}", bench.image());
    let line = format!("{line},file.driver=file");
    let (steps, blockdevs) = (Steps::default(), Rc::new(bench.blockdevs));
    let opening = Rc::clone(&blockdevs);
    steps.start(&bench.ctx, "open", move |co| opening.co_open(co, options(&line)).map(drop));
    let refused = blockdevs.remove_object::<ThrottleGroup>("g").unwrap_err().to_string();
    assert_eq!(refused, "throttle group 'g' is in use");
    assert_eq!(steps.wait(&bench.ctx, 1), ["open: done"]);
    blockdevs.close(&bench.ctx, "t").unwrap();
    blockdevs.remove_object::<ThrottleGroup>("g").unwrap();
}

/// What is opened in vain lets go of what it was to stand on.
#[test]
fn a_node_can_be_closed_when_what_was_to_stand_on_it_was_refused() {
    let bench = Bench::new();
    bench.open("null-co,node-name=disk,size=1048576").unwrap();
    bench.open("raw,node-name=top,file=disk,offset=2097152").err().expect("refused");
    bench.blockdevs.close(&bench.ctx, "disk").unwrap();
}

/// A node with a write to flush, which takes a while.
fn closing() -> (AioContext, Rc<Blockdevs>, Steps) {
    let (ctx, blockdevs) =
        (AioContext::for_test().unwrap(), Rc::new(Blockdevs::new(coblk_block::drivers())));
    let steps = Steps::default();
    let disk = options("null-aio,node-name=disk,latency-ns=20000000");
    let disk = blockdevs.open(&ctx, disk).unwrap();
    let writer = BackendOptions::new("writer").open(&ctx, disk).unwrap();
    writer.pwritev(&ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    drop(writer);
    blockdevs.open(&ctx, options("null-co,node-name=other")).unwrap();
    (ctx, blockdevs, steps)
}

#[test]
fn a_close_that_flushes_holds_up_no_other_change() {
    let (ctx, blockdevs, steps) = closing();
    let (one, other) = (Rc::clone(&blockdevs), Rc::clone(&blockdevs));
    steps.start(&ctx, "close", move |co| one.co_close(co, "disk"));
    steps.start(&ctx, "reopen", move |co| {
        other.co_reopen(co, vec![options("null-co,node-name=other,read-only=on")])
    });
    assert_eq!(steps.wait(&ctx, 2), ["reopen: done", "close: done"]);
}

#[test]
fn a_node_that_gets_a_user_while_it_is_closed_stays() {
    let (ctx, blockdevs, steps) = closing();
    let (node, closing) = (blockdevs.node("disk").unwrap(), Rc::clone(&blockdevs));
    steps.start(&ctx, "close", move |co| closing.co_close(co, "disk"));
    let backend = BackendOptions::new("drive").open(&ctx, node).unwrap();
    assert_eq!(steps.wait(&ctx, 1), ["close: node 'disk' is in use"]);
    assert_eq!(blockdevs.node("disk").unwrap().name(), "disk");
    drop(backend);
    blockdevs.close(&ctx, "disk").unwrap();
    assert!(blockdevs.node("disk").is_none());
}

#[test]
fn a_node_that_was_made_in_code_is_adopted() {
    let bench = Bench::new();
    let node = BlockNode::new("made", Null::new(1 << 20));
    bench.blockdevs.adopt(Arc::clone(&node)).unwrap();
    let adopt = |name: &str| bench.blockdevs.adopt(BlockNode::new(name, Null::new(1 << 20)));
    assert_eq!(adopt("made").unwrap_err().to_string(), "there is a node 'made' already");
    assert!(adopt("#made").unwrap_err().to_string().starts_with("'#made' is not a name"));
    assert_eq!(bench.names(), ["made"]);
    bench.open("raw,node-name=top,file=made").unwrap();
    let in_use = bench.blockdevs.close(&bench.ctx, "made").unwrap_err();
    assert_eq!(in_use.to_string(), "node 'made' is in use");
    // A node above it can be reopened, and it cannot.
    let reopen = |line: &str| {
        let options = NodeOptions::from_keyval(line).unwrap();
        bench.blockdevs.reopen(&bench.ctx, vec![options]).map_err(|error| error.to_string())
    };
    assert_eq!(reopen("raw,node-name=top,file=made,offset=512"), Ok(()));
    let refused = reopen("null-co,node-name=made,size=1048576").unwrap_err();
    assert_eq!(refused, "node 'made' was not made from options");
    assert_eq!(bench.blockdevs.options().len(), 1);
    bench.blockdevs.close(&bench.ctx, "top").unwrap();
    bench.blockdevs.close(&bench.ctx, "made").unwrap();
    assert!(bench.names().is_empty());
    let closed = bench.blockdevs.adopt(node).unwrap_err();
    assert!(closed.to_string().contains("closed"), "{closed}");
}

#[test]
fn a_node_of_a_job_is_listed_and_left_alone() {
    let bench = Bench::new();
    let disk = bench.open("null-co,node-name=disk,size=1048576").unwrap();
    let filter = BlockNode::new("filter", Raw::new(disk));
    let hidden = bench.blockdevs.adopt_hidden(Arc::clone(&filter), "job 'copy'").unwrap();
    assert_eq!(bench.names(), ["disk", "filter"]);
    assert!(bench.blockdevs.node("filter").is_none());
    let refused = "node 'filter' is in use by job 'copy'";
    let close = || bench.blockdevs.close(&bench.ctx, "filter").unwrap_err().to_string();
    assert_eq!(close(), refused);
    let reopen = options("raw,node-name=filter,file=disk");
    let reopen = bench.blockdevs.reopen(&bench.ctx, vec![reopen]).unwrap_err();
    assert_eq!(reopen.to_string(), refused);
    let child = bench.open("raw,node-name=top,file=filter").err().unwrap();
    assert!(child.to_string().ends_with(refused), "{child}");
    let taken = bench.open("null-co,node-name=filter").err().unwrap();
    assert_eq!(taken.to_string(), "there is a node 'filter' already");
    // It is not for options to make again.
    assert_eq!(bench.blockdevs.options().len(), 1);
    drop(filter);
    drop(hidden);
    assert_eq!(close(), "there is no node 'filter'");
    bench.blockdevs.close(&bench.ctx, "disk").unwrap();
}

#[test]
fn a_node_of_a_job_is_closed_at_its_end() {
    let bench = Bench::new();
    let filter = BlockNode::new("filter", Null::new(1 << 20));
    let hidden = bench.blockdevs.adopt_hidden(Arc::clone(&filter), "job 'copy'").unwrap();
    bench.ctx.run(|co| hidden.co_end(co));
    assert!(bench.names().is_empty());
    assert!(bench.blockdevs.adopt(filter).unwrap_err().to_string().contains("closed"));
}

#[test]
fn options_mean_the_child_below_the_node_of_a_job() {
    let bench = Bench::new();
    let disk = bench.open("null-co,node-name=disk,size=1048576").unwrap();
    bench.open("null-co,node-name=other,size=1048576").unwrap();
    let top = bench.open("raw,node-name=top,file=disk").unwrap();
    let before = bench.blockdevs.options();
    let filter = BlockNode::new("filter", Raw::new(Arc::clone(&disk)));
    let hidden = bench.blockdevs.adopt_hidden(Arc::clone(&filter), "job 'copy'").unwrap();
    bench.ctx.run(|co| disk.co_replace(co, &filter)).unwrap();
    assert_eq!(top.children()[0].1.name(), "filter");
    assert_eq!(bench.blockdevs.options(), before);
    let reopen = |line: &str| {
        let reopened = bench.blockdevs.reopen(&bench.ctx, vec![options(line)]);
        reopened.map_err(|error| error.to_string())
    };
    assert_eq!(reopen("raw,node-name=top,file=disk,read-only=on"), Ok(()));
    assert_eq!(top.children()[0].1.name(), "filter");
    let refused = reopen("raw,node-name=top,file=other").unwrap_err();
    assert_eq!(refused, "node 'filter' is in use by job 'copy'");
    bench.ctx.run(|co| filter.co_replace(co, &disk)).unwrap();
    assert_eq!(top.children()[0].1.name(), "disk");
    bench.ctx.run(|co| hidden.co_end(co));
    assert_eq!(reopen("raw,node-name=top,file=other"), Ok(()));
}
