//! A child that may be none, as options say it: opened, reopened, and listed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::{IoThread, IoVector, IoVectorMut};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockNode, BlockdevError, Blockdevs, RemoteBackend, WriteFlags,
};

use crate::util::bench::Bench;
use crate::util::errno;
use crate::util::layer::bench;

/// A layer that reads as its `fill`, of a disk of its own.
fn base(name: &str, fill: u8) -> String {
    format!("layer,node-name={name},fill={fill},file.driver=null-co,file.size=1048576")
}

/// With the layers b1 and b2, and a layer `top` whose options end so.
fn with_top(rest: &str) -> (Bench, Arc<BlockNode>) {
    let bench = bench();
    for (name, fill) in [("b1", 1), ("b2", 2)] {
        bench.open(&base(name, fill)).unwrap();
    }
    bench.open("null-co,node-name=f,size=1048576").unwrap();
    let top = bench.open(&top(rest)).unwrap();
    (bench, top)
}

fn top(rest: &str) -> String {
    format!("layer,node-name=top,file=f,fill=99{rest}")
}

fn reopen(bench: &Bench, lines: &[&str]) -> Result<(), BlockdevError> {
    let options = lines.iter().map(|line| NodeOptions::from_keyval(line).unwrap());
    bench.blockdevs.reopen(&bench.ctx, options.collect())
}

#[track_caller]
fn refused(bench: &Bench, lines: &[&str], expected: &str) {
    let state = || {
        let nodes = bench.blockdevs.nodes();
        let nodes: Vec<_> = nodes.iter().map(|node| node.describe()).collect();
        (nodes, bench.blockdevs.options(), read(bench, "top"))
    };
    let before = state();
    assert_eq!(reopen(bench, lines).expect_err("refused").to_string(), expected);
    assert_eq!(state(), before, "nothing has changed");
    for node in bench.blockdevs.nodes() {
        assert!(node.graph_faults().is_empty(), "{:?}", node.graph_faults());
    }
}

fn read(bench: &Bench, node: &str) -> u8 {
    let node = bench.blockdevs.node(node).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "reader", node);
    let mut byte = [0];
    backend.preadv(&bench.ctx, 4096, &mut IoVectorMut::from(&mut byte[..])).unwrap();
    byte[0]
}

fn backing(node: &BlockNode) -> Option<String> {
    let edge = node.children().into_iter().find(|(name, _)| name == "backing");
    edge.map(|(_, node)| node.name().to_owned())
}

/// `backing` as it is listed; `None` where it is left out.
fn listed(blockdevs: &Blockdevs, node: &str) -> Option<serde_json::Value> {
    let options = blockdevs.options();
    let options = options.iter().find(|it| it.node_name.as_deref() == Some(node)).unwrap();
    serde_json::to_value(options).unwrap().get("backing").cloned()
}

#[test]
fn absent_is_what_the_header_names_and_null_is_none() {
    for (rest, expected) in [
        ("", None),
        (",backing=", None),
        (",header=b2", Some("b2")),
        (",header=b2,backing=", None),
        (",header=b2,backing=b1", Some("b1")),
        (",backing.driver=null-co,backing.node-name=own,backing.size=1048576", Some("own")),
    ] {
        let (bench, node) = with_top(rest);
        assert_eq!(backing(&node).as_deref(), expected, "{rest}");
        bench.blockdevs.close(&bench.ctx, "top").unwrap();
        assert_eq!(bench.names(), ["#block1", "#block2", "b1", "b2", "f"], "{rest}");
    }
}

#[test]
fn null_is_a_word_of_json_and_an_empty_text() {
    let bench = bench();
    bench.open(&base("b1", 1)).unwrap();
    bench.open("null-co,node-name=f,size=1048576").unwrap();
    for (value, expected) in [("null", None), ("\"\"", None), ("\"b1\"", Some("b1"))] {
        let json = format!(
            r#"{{"driver": "layer", "node-name": "top", "file": "f", "header": "b1", "backing": {value}}}"#
        );
        let options = NodeOptions::from_json(&json).unwrap();
        let node = bench.blockdevs.open(&bench.ctx, options).unwrap();
        assert_eq!(backing(&node).as_deref(), expected, "{value}");
        drop(node);
        bench.blockdevs.close(&bench.ctx, "top").unwrap();
    }
    for (value, why) in [
        ("1", "Invalid parameter type for 'backing', expected: BlockdevRefOrNull"),
        (r#"{"driver": "null-co", "sise": 1}"#, "Parameter 'backing.sise' is unexpected"),
        ("\"nothing\"", "there is no node 'nothing'"),
    ] {
        let json = format!(r#"{{"driver": "layer", "file": "f", "backing": {value}}}"#);
        let options = NodeOptions::from_json(&json).unwrap();
        let error = bench.blockdevs.open(&bench.ctx, options).err().expect("refused");
        assert_eq!(error.to_string(), why);
    }
}

#[test]
fn a_reopen_fills_changes_and_empties_a_slot() {
    let (bench, node) = with_top("");
    let inner = ",backing.driver=layer,backing.node-name=own,backing.file=b1";
    for (rest, expected, byte) in [
        (",backing=b1", Some("b1"), 1),
        (",backing=b1", Some("b1"), 1),
        (",backing=b2", Some("b2"), 2),
        (",backing=", None, 99),
        // It has none, and is to have none.
        ("", None, 99),
        (",backing=", None, 99),
        (",backing=b2", Some("b2"), 2),
    ] {
        reopen(&bench, &[&top(rest)]).unwrap();
        assert_eq!(backing(&node).as_deref(), expected, "{rest}");
        assert_eq!(read(&bench, "top"), byte);
        assert!(node.graph_faults().is_empty());
        let expected = expected.unwrap_or("");
        assert_eq!(listed(&bench.blockdevs, "top"), Some(expected.into()));
    }
    // As of other children, a description is of one that is there.
    let fixed = "node 'top': cannot change the option 'backing'";
    refused(&bench, &[&top(inner)], fixed);
    reopen(&bench, &[&top(",backing=")]).unwrap();
    refused(&bench, &[&top(inner)], fixed);
}

#[test]
fn a_child_that_was_described_is_reopened_with_its_parent_and_closed_when_it_leaves() {
    let own = |fill: u8| {
        format!(",backing.driver=layer,backing.node-name=own,backing.file=b1,backing.fill={fill}")
    };
    let (bench, node) = with_top(&own(7));
    assert_eq!(read(&bench, "top"), 7);
    reopen(&bench, &[&top(&own(8))]).unwrap();
    assert_eq!((read(&bench, "top"), backing(&node).as_deref()), (8, Some("own")));
    // By its name it stays as it is.
    reopen(&bench, &[&top(",backing=own")]).unwrap();
    assert_eq!(read(&bench, "top"), 8);
    reopen(&bench, &[&top(",backing=b2")]).unwrap();
    assert_eq!(read(&bench, "top"), 2);
    assert!(bench.blockdevs.node("own").is_none(), "it has no users any more");
    refused(&bench, &[&top(",backing=own")], "there is no node 'own'");
}

#[test]
fn a_slot_that_has_a_child_must_be_mentioned() {
    let missing = "node 'top': option 'backing' is missing: a reopen names the child, or has null";
    for rest in [",backing=b1", ",header=b1"] {
        let (bench, _) = with_top(rest);
        let line = top(if rest.starts_with(",header") { ",header=b1" } else { "" });
        refused(&bench, &[&line], missing);
    }
    // The driver knows what it would open if the option is left out.
    let (bench, node) = with_top(",header=b1,backing=");
    refused(&bench, &[&top(",header=b1")], "node 'top': option 'backing': its header names one");
    reopen(&bench, &[&top(",header=b1,backing=b1")]).unwrap();
    assert_eq!(backing(&node).as_deref(), Some("b1"));
    // Also where code has attached it.
    let (bench, node) = with_top("");
    let b1 = bench.blockdevs.node("b1").unwrap();
    bench.ctx.run(|co| node.co_attach(co, "backing", &b1)).unwrap();
    refused(&bench, &[&top("")], missing);
    reopen(&bench, &[&top(",backing=")]).unwrap();
    assert_eq!(backing(&node), None);
}

#[test]
fn what_is_refused_changes_nothing() {
    let (bench, node) = with_top(",backing=b1");
    bench.open("null-co,node-name=unwanted,size=1048576").unwrap();
    bench.open("layer,node-name=above,file=f,backing=top").unwrap();
    bench.open("null-co,node-name=idle,size=1048576,active=off").unwrap();
    let line = |backing: &str| format!("layer,node-name=top,file=f,fill=55,backing={backing}");
    refused(
        &bench,
        &[&line("unwanted")],
        "child 'backing' of node 'top' cannot change: it does not want that",
    );
    let cycle = |below| format!("making node '{below}' a child of node 'top' would create a cycle");
    refused(&bench, &[&line("above")], &cycle("above"));
    refused(&bench, &[&line("top")], &cycle("top"));
    refused(
        &bench,
        &[&line("idle")],
        "node 'top' needs node 'idle' to be active, and it is inactive",
    );
    // One of several: the slots before it go back.
    let both = ["layer,node-name=above,file=f,backing=", &line("idle")];
    refused(&bench, &both, "node 'top' needs node 'idle' to be active, and it is inactive");
    let frozen = bench.ctx.run(|co| node.co_freeze_chain(co, None, "a job")).unwrap();
    let words = "cannot change 'backing' link from 'top' to 'b1': a job";
    refused(&bench, &[&line("")], words);
    refused(&bench, &[&line("b2")], words);
    drop(frozen);
    bench.ctx.run(|co| node.co_detach(co, "backing")).unwrap();
    assert_eq!(read(&bench, "top"), 99, "the driver has gone back, too");
    reopen(&bench, &[&line("")]).unwrap();
    assert_eq!(read(&bench, "above"), 55);
}

#[test]
fn users_of_the_new_child_must_agree() {
    let (bench, node) = with_top("");
    let device = bench.blockdevs.node("b1").unwrap();
    let writer = BackendOptions::new("writer").open(&bench.ctx, device).unwrap();
    let reader = BackendOptions::new("reader").open(&bench.ctx, Arc::clone(&node)).unwrap();
    let words =
        "backend 'writer' needs write permission on node 'b1', which node 'top' does not share";
    refused(&bench, &[&top(",backing=b1")], words);
    drop(writer);
    reopen(&bench, &[&top(",backing=b1")]).unwrap();
    // And gets its permissions back afterwards.
    let open = || {
        let device = bench.blockdevs.node("b1").unwrap();
        BackendOptions::new("writer").open(&bench.ctx, device)
    };
    assert!(open().is_err());
    reopen(&bench, &[&top(",backing=")]).unwrap();
    open().unwrap();
    drop(reader);
}

#[test]
fn a_child_that_leaves_is_flushed() {
    let bench = bench();
    bench.open("null-co,node-name=f,size=1048576").unwrap();
    bench.open(&base("b2", 2)).unwrap();
    let faulty = "blkdebug,node-name=b1,image.driver=null-co,image.size=1048576,\
                  inject-error.0.event=none,inject-error.0.iotype=flush";
    let node = bench.open(faulty).unwrap();
    let lower = BlockBackend::new(&bench.ctx, "lower", node);
    let node = bench.open(&top(",backing=b1")).unwrap();
    let upper = BlockBackend::new(&bench.ctx, "upper", node);
    let written = lower.pwritev(&bench.ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty());
    written.unwrap();
    upper.flush(&bench.ctx).unwrap();
    reopen(&bench, &[&top(",backing=b2")]).unwrap();
    assert_eq!(errno(upper.flush(&bench.ctx)), libc::EIO, "the guest hears of it");
    upper.flush(&bench.ctx).unwrap();
    assert_eq!(read(&bench, "top"), 2);
}

/// Ends a thread also if the test fails meanwhile.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn slots_change_while_requests_run_on_two_contexts() {
    let (bench, node) = with_top("");
    let thread = IoThread::new("io").unwrap();
    let remote = RemoteBackend::open(thread.handle(), "remote", node.clone()).wait().unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let (result, data) = remote.preadv(4096, vec![0; 512]).wait().unwrap();
                result.unwrap();
                // One of the states, and not several.
                assert!([1, 2, 99].contains(&data[0]) && data.iter().all(|it| *it == data[0]));
                rounds += 1;
            }
            rounds
        });
        let _end = StopOnDrop(&stop);
        for round in 0..60 {
            let (rest, byte) =
                [(",backing=b1", 1), (",backing=b2", 2), (",backing=", 99)][round % 3];
            for at in 0..4 {
                backend.aio_preadv(&bench.ctx, at * 512, vec![0; 512], |_, result, _| {
                    result.unwrap();
                });
            }
            reopen(&bench, &[&top(rest)]).unwrap();
            assert_eq!(read(&bench, "top"), byte, "round {round}");
            bench.ctx.run_until(|| backend.in_flight() == 0);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

/// A parent that is reopened leaves the edges of its child alone, whatever that was opened with.
#[test]
fn a_child_keeps_its_children_when_its_parent_is_reopened() {
    let bench = bench();
    for (name, fill) in [("b1", 1), ("b2", 2)] {
        bench.open(&base(name, fill)).unwrap();
    }
    bench.open("null-co,node-name=f,size=1048576").unwrap();
    let line = "raw,node-name=r,file.driver=layer,file.node-name=top,file.file=f,file.backing=b1";
    bench.open(line).unwrap();
    let node = bench.blockdevs.node("top").unwrap();
    let b2 = bench.blockdevs.node("b2").unwrap();
    let other = bench.open("null-co,node-name=g,size=1048576").unwrap();
    bench.ctx.run(|co| node.co_set_child(co, "file", Some(&other))).unwrap();
    for child in [Some(&b2), None] {
        bench.ctx.run(|co| node.co_set_child(co, "backing", child)).unwrap();
        reopen(&bench, &["raw,node-name=r,file=top,read-only=on"]).unwrap();
        assert!(node.is_read_only());
        assert_eq!(backing(&node).as_deref(), child.map(|_| "b2"));
        assert_eq!(node.children()[0].1.name(), "g");
        reopen(&bench, &["raw,node-name=r,file=top"]).unwrap();
    }
}

#[test]
fn listed_options_open_the_same_nodes_again() {
    type Change = fn(&Bench, &Arc<BlockNode>);
    let detach: Change = |bench, node| bench.ctx.run(|co| node.co_detach(co, "backing")).unwrap();
    let attach: Change = |bench, node| {
        let b2 = bench.blockdevs.node("b2").unwrap();
        bench.ctx.run(|co| node.co_attach(co, "backing", &b2)).unwrap();
    };
    let own = ",backing.driver=layer,backing.node-name=own,backing.file=b1,backing.fill=7";
    let changes: [(&str, Change, Option<&str>); 8] = [
        ("", |_, _| (), None),
        ("", attach, Some("b2")),
        (",backing=b1", |_, _| (), Some("b1")),
        (",backing=b1", detach, None),
        (",header=b1", |_, _| (), Some("b1")),
        (",header=b1", detach, None),
        (own, |_, _| (), Some("own")),
        (own, |bench, _| reopen(bench, &[&top(",backing=b2")]).unwrap(), Some("b2")),
    ];
    for (rest, change, expected) in changes {
        let (first, node) = with_top(rest);
        change(&first, &node);
        assert_eq!(backing(&node).as_deref(), expected, "{rest}");
        let options = first.blockdevs.options();
        let lines = options.iter().map(|it| coblk_qapi::to_argument(it, "driver"));
        let lines = lines.map(|line| NodeOptions::from_keyval(line).unwrap());
        let json = options.iter().map(|it| serde_json::to_value(it).unwrap());
        let json = json.map(|value| NodeOptions::from_value(value).unwrap());
        for written in [lines.collect::<Vec<_>>(), json.collect()] {
            let second = bench();
            for options in written {
                second.blockdevs.open(&second.ctx, options).unwrap();
            }
            let again = second.blockdevs.node("top").unwrap();
            assert_eq!(backing(&again).as_deref(), expected, "{rest}");
            assert_eq!(read(&second, "top"), read(&first, "top"));
            assert_eq!(second.blockdevs.options(), options);
        }
    }
}

#[test]
fn the_schema_names_the_type() {
    let bench = bench();
    let schema = format!("{:?}", bench.blockdevs.drivers().schema().unwrap());
    let member = "Member { name: \"backing\", schema: Alternate(\"BlockdevRefOrNull\", []), \
                  optional: true }";
    assert!(schema.contains(member), "{schema}");
}
