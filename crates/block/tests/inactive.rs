//! Nodes that options make inactive, by their names.

use coblk_block::options::NodeOptions;

use crate::util::bench::Bench;

fn activity(bench: &Bench) -> Vec<(String, bool)> {
    let nodes = bench.blockdevs.nodes();
    nodes.iter().map(|node| (node.name().to_owned(), node.describe().active)).collect()
}

#[track_caller]
fn refused<T, E: std::fmt::Display>(result: Result<T, E>, why: &str) {
    assert_eq!(result.err().expect("must fail").to_string(), why);
}

#[test]
fn an_option_makes_a_node_inactive_and_not_those_that_are_opened_for_it() {
    let bench = Bench::new();
    let named = |it: &[(&str, bool)]| -> Vec<_> {
        it.iter().map(|(name, active)| ((*name).to_owned(), *active)).collect()
    };
    bench.open("null-co,node-name=a,active=off").unwrap();
    refused(
        bench.open("raw,node-name=b,file=a"),
        "node 'b' needs node 'a' to be active, and it is inactive",
    );
    refused(
        bench.open("raw,node-name=b,file.driver=null-co,file.node-name=c,file.active=off"),
        "node 'b' needs node 'c' to be active, and it is inactive",
    );
    bench.open("raw,node-name=b,file=a,active=off").unwrap();
    bench.open("raw,node-name=d,active=off,file.driver=null-co,file.node-name=e").unwrap();
    let states = named(&[("a", false), ("b", false), ("d", false), ("e", true)]);
    assert_eq!(activity(&bench), states);
    bench.blockdevs.set_active(&bench.ctx, Some(&["b"]), true).unwrap();
    bench.blockdevs.set_active(&bench.ctx, Some(&["d", "d"]), false).unwrap();
    let states = named(&[("a", true), ("b", true), ("d", false), ("e", false)]);
    assert_eq!(activity(&bench), states);
    refused(
        bench.blockdevs.set_active(&bench.ctx, Some(&["b", "x"]), false),
        "there is no node 'x'",
    );
    bench.blockdevs.set_active(&bench.ctx, None, false).unwrap();
    assert!(activity(&bench).iter().all(|(_, active)| !active));
}

/// The log may be another process's as well, which has entries in it.
#[test]
fn a_log_is_not_begun_while_it_may_be_another_process_s() {
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    std::fs::write(&log, [7; 4096]).unwrap();
    let line = format!(
        "blklogwrites,node-name=l,file.driver=null-co,log.driver=file,log.filename={}",
        log.display()
    );
    bench.refused(
        &format!("{line},active=off"),
        "node 'l': option 'active': a log is begun when its node is opened",
    );
    assert_eq!(std::fs::read(&log).unwrap(), [7; 4096]);
    bench.open(&line).unwrap();
}

#[test]
fn what_opens_nodes_again_says_which_are_inactive() {
    let (bench, again) = (Bench::new(), Bench::new());
    bench.open("raw,node-name=a,active=off,file.driver=null-co,file.node-name=b").unwrap();
    bench.open("raw,node-name=c,file.driver=null-co,file.node-name=d").unwrap();
    bench.blockdevs.set_active(&bench.ctx, Some(&["c"]), false).unwrap();
    for options in bench.blockdevs.options() {
        again.blockdevs.open(&again.ctx, options).unwrap();
    }
    assert_eq!(activity(&again), activity(&bench));
    bench.blockdevs.set_active(&bench.ctx, Some(&["a", "c"]), true).unwrap();
    assert!(bench.blockdevs.options().iter().all(|options| options.active.is_none()));
}

#[test]
fn a_reopen_changes_nothing_of_an_inactive_node_and_makes_none() {
    let bench = Bench::new();
    let reopen = |line: &str| {
        let options = NodeOptions::from_keyval(line).unwrap();
        bench.blockdevs.reopen(&bench.ctx, vec![options])
    };
    bench.open("null-co,node-name=a").unwrap();
    refused(
        reopen("null-co,node-name=a,active=off"),
        "node 'a': cannot change the option 'active'",
    );
    reopen("null-co,node-name=a,active=on,read-only=on").unwrap();
    bench.blockdevs.set_active(&bench.ctx, Some(&["a"]), false).unwrap();
    for line in ["null-co,node-name=a", "null-co,node-name=a,active=on"] {
        refused(reopen(line), "node 'a' is inactive");
    }
    assert!(bench.blockdevs.node("a").unwrap().is_read_only());
    refused(bench.blockdevs.resize(&bench.ctx, "a", 1 << 20), "node 'a' is read-only");
    bench.open("null-co,node-name=b,active=off").unwrap();
    refused(
        bench.blockdevs.resize(&bench.ctx, "b", 1 << 20),
        "backend 'block_resize' needs node 'b' to be active, and it is inactive",
    );
    for name in ["a", "b"] {
        bench.blockdevs.close(&bench.ctx, name).unwrap();
    }
}
