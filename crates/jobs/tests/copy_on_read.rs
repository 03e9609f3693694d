//! `copy-on-read`: what is read from backing files is written to the node itself.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, BlockNode};
use coblk_tests::recorded::{Disturbance, Kind, Moment};
use serde_json::json;
use util::chain::{CLUSTER, Chain, LENGTH};
use util::until;

fn open(chain: &Chain, bottom: Option<&str>) -> Arc<BlockNode> {
    let mut options = json!({"driver": "copy-on-read", "node-name": "cor", "file": "top"});
    if let Some(bottom) = bottom {
        options["bottom"] = json!(bottom);
    }
    chain.blockdevs.open(&chain.ctx, NodeOptions::from_value(options).unwrap()).unwrap()
}

fn guest(chain: &Chain) -> BlockBackend {
    BackendOptions::new("guest").open(&chain.ctx, chain.node("cor")).unwrap()
}

fn read(chain: &Chain, guest: &BlockBackend, at: u64, bytes: u64) -> Vec<u8> {
    let mut data = vec![0xee; bytes as usize];
    chain.ctx.run(|co| guest.co_read(co, at, &mut data)).unwrap();
    data
}

/// The clusters that a node has itself, or that it and those below it have down to another.
fn allocated(chain: &Chain, name: &str, down_to: Option<&str>) -> Vec<u64> {
    let node = chain.node(name);
    let backend = BlockBackend::read_only(&chain.ctx, "status", Arc::clone(&node));
    let base = match down_to {
        Some(down_to) => chain.node(down_to).backing_child(),
        None => node.backing_child(),
    };
    let is_there = |at: &u64| {
        let ask =
            |co: &coblk_aio::Co<'_>| backend.co_status_above(co, base.as_deref(), *at, CLUSTER);
        chain.ctx.run(ask).unwrap().extent.allocated
    };
    (0..LENGTH / CLUSTER).map(|it| it * CLUSTER).filter(is_there).collect()
}

#[test]
fn j96_what_is_read_is_in_the_top_then() {
    for bottom in [None, Some("mid")] {
        let chain = Chain::new(&["base", "mid", "top"], 1);
        let expected = allocated(&chain, "top", Some(bottom.unwrap_or("base")));
        assert!(expected.len() > allocated(&chain, "top", None).len());
        drop(open(&chain, bottom));
        let guest = guest(&chain);
        assert!(read(&chain, &guest, 0, LENGTH) == chain.disk);
        assert_eq!(allocated(&chain, "top", None), expected);
        drop(guest);
        chain.blockdevs.close(&chain.ctx, "cor").unwrap();
        chain.check("top");
    }
}

#[test]
fn j96_whole_clusters_are_copied_and_no_others() {
    let chain = Chain::new(&["base", "top"], 2);
    let (there, own) = (allocated(&chain, "base", None), allocated(&chain, "top", None));
    let at = *there.iter().find(|at| !own.contains(at)).unwrap();
    drop(open(&chain, None));
    let guest = guest(&chain);
    assert!(read(&chain, &guest, at + 100, 7) == chain.disk[at as usize + 100..][..7]);
    let mut expected = own;
    expected.push(at);
    expected.sort_unstable();
    assert_eq!(allocated(&chain, "top", None), expected);
}

#[test]
fn j96_a_write_during_a_copy_is_not_undone() {
    let mut chain = Chain::new(&["base", "top"], 3);
    let (there, own) = (allocated(&chain, "base", None), allocated(&chain, "top", None));
    let at = *there.iter().find(|at| !own.contains(at)).unwrap();
    drop(open(&chain, None));
    let guest = guest(&chain);
    // The bytes of the base are read, and the copy is held before they are written.
    chain.recorder.disturb(Disturbance::hold(Moment::After, 0).of(Kind::Read));
    let ended = Rc::<Cell<u32>>::default();
    let (reader, own) = (guest.clone(), Rc::clone(&ended));
    chain.ctx.spawn("reader", move |co| {
        reader.co_read(co, at, &mut vec![0; CLUSTER as usize]).unwrap();
        own.set(own.get() + 1);
    });
    until(&chain.ctx, || chain.recorder.held() == 1);
    let (writer, own) = (guest.clone(), Rc::clone(&ended));
    chain.ctx.spawn("writer", move |co| {
        writer.co_write(co, at + 10, &[0x99; 1000]).unwrap();
        own.set(own.get() + 1);
    });
    chain.ctx.run(|co| co.sleep(std::time::Duration::from_millis(100)));
    chain.recorder.release();
    until(&chain.ctx, || ended.get() == 2);
    chain.disk[at as usize + 10..][..1000].fill(0x99);
    assert!(read(&chain, &guest, 0, LENGTH) == chain.disk);
}

#[test]
fn j96_nothing_writes_beside_the_filter() {
    let chain = Chain::new(&["base", "top"], 4);
    drop(open(&chain, None));
    let shared = || BackendOptions::new("guest").share_rw(true);
    let guest = shared().open(&chain.ctx, chain.node("cor")).unwrap();
    assert!(shared().open(&chain.ctx, chain.node("top")).is_err());
    drop(guest);
    drop(shared().open(&chain.ctx, chain.node("top")).unwrap());
}

#[test]
fn j96_the_way_to_the_bottom_does_not_change() {
    let chain = Chain::new(&["base", "mid", "top"], 5);
    drop(open(&chain, Some("mid")));
    let changed = chain.ctx.run(|co| chain.node("top").co_set_child(co, "backing", None));
    let text = changed.unwrap_err().to_string();
    assert!(text.contains("'backing' link from 'top' to 'mid'"), "{text}");
    chain.ctx.run(|co| chain.node("mid").co_set_child(co, "backing", None)).unwrap();
    for (bottom, text) in [("nowhere", "not in the chain"), ("top.file", "not in the chain")] {
        let options = json!({
            "driver": "copy-on-read", "node-name": "other", "file": "top", "bottom": bottom});
        let opened = chain.blockdevs.open(&chain.ctx, NodeOptions::from_value(options).unwrap());
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(text), "{error}");
    }
    chain.blockdevs.close(&chain.ctx, "cor").unwrap();
    chain.ctx.run(|co| chain.node("top").co_set_child(co, "backing", None)).unwrap();
}
