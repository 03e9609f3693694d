//! External snapshots: an overlay comes above a node, at one instant, and can be taken off again.

mod util;

use std::cell::Cell;
use std::rc::Rc;

use coblk_block::{BackendOptions, ChangeLock, SnapshotError};
use util::chain::{Chain, LENGTH};
use util::until;

fn chain() -> Chain {
    let mut chain = Chain::new(&["base", "top"], 1);
    chain.add("over", None, LENGTH);
    chain
}

#[test]
fn j97_users_turn_and_the_node_is_read_only() {
    let mut chain = chain();
    let guest = chain.guest("top");
    let [top, over] = ["top", "over"].map(|name| chain.node(name));
    chain.ctx.run(|co| chain.blockdevs.co_snapshot(co, &top, &over)).unwrap();
    assert_eq!(guest.node().unwrap().name(), "over");
    assert_eq!(chain.names("over"), ["over", "top", "base"]);
    assert!(top.is_read_only() && !over.is_read_only());
    chain.ctx.run(|co| guest.co_write(co, 500, &[7; 1000])).unwrap();
    drop(guest);
    chain.check("top");
    chain.disk[500..1500].fill(7);
    chain.check("over");
}

#[test]
fn j122_a_snapshot_that_is_aborted_leaves_all_as_it_was() {
    let mut chain = chain();
    let guest = chain.guest("top");
    let [top, over] = ["top", "over"].map(|name| chain.node(name));
    chain.ctx.run(|co| {
        let change = ChangeLock::co_take(co).unwrap();
        let prepared = chain.blockdevs.co_prepare_snapshot(co, &change, &top, &over).unwrap();
        assert_eq!(guest.node().unwrap().name(), "over");
        prepared.co_abort(co, &change);
    });
    assert_eq!(guest.node().unwrap().name(), "top");
    assert_eq!(chain.names("over"), ["over"]);
    assert!(!top.is_read_only());
    chain.ctx.run(|co| guest.co_write(co, 500, &[7; 1000])).unwrap();
    drop(guest);
    chain.disk[500..1500].fill(7);
    chain.check("top");
    chain.is_free();
}

#[test]
fn j97_j122_requests_wait_from_the_preparation_to_the_end() {
    let chain = chain();
    let guest = chain.guest("top");
    let [top, over] = ["top", "over"].map(|name| chain.node(name));
    let written = Rc::<Cell<bool>>::default();
    chain.ctx.run(|co| {
        let change = ChangeLock::co_take(co).unwrap();
        let prepared = chain.blockdevs.co_prepare_snapshot(co, &change, &top, &over).unwrap();
        let (guest, own) = (guest.clone(), Rc::clone(&written));
        co.context().spawn("guest", move |co| {
            guest.co_write(co, 0, &[9; 100]).unwrap();
            own.set(true);
        });
        co.sleep(std::time::Duration::from_secs(1));
        assert!(!written.get());
        prepared.co_commit(co, &change, &chain.blockdevs);
    });
    until(&chain.ctx, || written.get());
    drop(guest);
    // It is after all of the snapshot.
    chain.check("top");
    assert!(chain.read("over")[..100] == [9; 100]);
}

#[test]
fn j97_an_overlay_that_is_in_use_or_has_a_backing_file_is_refused() {
    let chain = chain();
    let [base, top, over] = ["base", "top", "over"].map(|name| chain.node(name));
    let snapshot = |node, overlay| {
        let taken = chain.ctx.run(|co| chain.blockdevs.co_snapshot(co, node, overlay));
        taken.unwrap_err()
    };
    assert!(matches!(snapshot(&base, &over), SnapshotError::IsBacking { .. }));
    assert!(matches!(snapshot(&over, &top), SnapshotError::HasBacking));
    let file = chain.node("over.file");
    assert!(matches!(snapshot(&top, &file), SnapshotError::InUse | SnapshotError::NoBacking));
    let reader = BackendOptions::new("reader").read_only(true);
    let reader = reader.open(&chain.ctx, chain.node("over")).unwrap();
    assert!(matches!(snapshot(&top, &over), SnapshotError::InUse));
    drop(reader);
    chain.ctx.run(|co| chain.blockdevs.co_snapshot(co, &top, &over)).unwrap();
}

#[test]
fn j98_an_overlay_that_is_written_gets_its_backing_file() {
    let chain = chain();
    let [top, over] = ["top", "over"].map(|name| chain.node(name));
    let writer = coblk_block::BlockBackend::new(&chain.ctx, "copy", chain.node("over"));
    chain.ctx.run(|co| writer.co_write(co, 0, &chain.disk[..5000])).unwrap();
    chain.ctx.run(|co| chain.blockdevs.co_snapshot(co, &top, &over)).unwrap();
    chain.ctx.run(|co| writer.co_write(co, 5000, &chain.disk[5000..9000])).unwrap();
    drop(writer);
    chain.check("over");
}
