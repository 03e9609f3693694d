//! Transactions: actions that all take effect at one instant, or none.

mod util;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::{AioContext, Co};
use coblk_block::{
    BackendOptions, BlockBackend, BlockLimits, BlockNode, Child, ChildRole, DirtyBitmap, Filter,
    NewBitmap,
};
use coblk_jobs::{
    AbortAction, Action, ActionError, AddBitmap, BitmapAt, ClearBitmap, CompletionMode,
    InsertFilter, MergeBitmaps, Preparing, RecordBitmap, RemoveBitmap, RemoveFilter, Transaction,
};
use util::disk::{Disk, OnDisk, Op, Verdict};
use util::{simulated, until};

const GRANULE: u64 = 64 << 10;
const LENGTH: u64 = 32 * GRANULE;

/// Two disks, each with a guest.
struct Stage {
    ctx: AioContext,
    disks: [Arc<Disk>; 2],
    nodes: [Arc<BlockNode>; 2],
    guests: [BlockBackend; 2],
}

fn stage() -> Stage {
    let ctx = simulated(1);
    let disks = [0; 2].map(|_| Disk::new(LENGTH, BlockLimits::default()));
    let node =
        |place: usize| BlockNode::new(format!("n{place}"), OnDisk(Arc::clone(&disks[place])));
    let nodes = [node(0), node(1)];
    let guests = [0, 1].map(|place: usize| {
        let options = BackendOptions::new(format!("guest{place}")).share_rw(true);
        options.open(&ctx, Arc::clone(&nodes[place])).unwrap()
    });
    Stage { ctx, disks, nodes, guests }
}

impl Stage {
    fn add(&self, place: usize, name: &str) -> Arc<DirtyBitmap> {
        let new = NewBitmap::new(name.to_owned(), GRANULE);
        self.ctx.run(|co| self.nodes[place].co_add_bitmap(co, new)).unwrap()
    }

    fn at(&self, place: usize, name: &str) -> BitmapAt {
        BitmapAt::new(Arc::clone(&self.nodes[place]), name)
    }

    fn adding(&self, place: usize, name: &str) -> AddBitmap {
        let new = NewBitmap::new(name.to_owned(), GRANULE);
        AddBitmap::new(Arc::clone(&self.nodes[place]), new)
    }

    fn find(&self, place: usize, name: &str) -> Option<Arc<DirtyBitmap>> {
        self.nodes[place].bitmaps().find(name).ok()
    }

    fn run(&self, transaction: Transaction) -> Result<(), String> {
        self.ctx.run(|co| transaction.co_run(co)).map_err(|error| error.to_string())
    }

    fn write(&self, place: usize, granule: u64) {
        self.ctx.run(|co| self.guests[place].co_write(co, granule * GRANULE, &[1; 512])).unwrap();
    }

    /// Begins a write, and says when it has ended.
    fn begin_write(&self, place: usize, granule: u64) -> Rc<RefCell<bool>> {
        let (guest, ended) = (self.guests[place].clone(), Rc::new(RefCell::new(false)));
        let told = Rc::clone(&ended);
        self.ctx.spawn("write", move |co| {
            guest.co_write(co, granule * GRANULE, &[1; 512]).unwrap();
            *told.borrow_mut() = true;
        });
        ended
    }

    fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    /// Begins a transaction; its result comes later.
    fn begin(&self, transaction: Transaction) -> Rc<RefCell<Option<Result<(), String>>>> {
        let result = Rc::new(RefCell::new(None));
        let told = Rc::clone(&result);
        self.ctx.spawn("transaction", move |co| {
            let ended = transaction.co_run(co).map_err(|error| error.to_string());
            *told.borrow_mut() = Some(ended);
        });
        result
    }
}

fn dirty(bitmap: &DirtyBitmap) -> Vec<u64> {
    let ranges = bitmap.bits().dirty_ranges(0..u64::MAX);
    ranges.flat_map(|range| range.start / GRANULE..range.end.div_ceil(GRANULE)).collect()
}

/// Says what is done to it.
struct Scripted {
    name: &'static str,
    said: Rc<RefCell<Vec<String>>>,
    outcome: fn() -> Result<(), ActionError>,
}

impl Scripted {
    fn say(&self, what: &str) {
        self.said.borrow_mut().push(format!("{what} {}", self.name));
    }
}

impl Action for Scripted {
    fn name(&self) -> &'static str {
        self.name
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        Vec::new()
    }

    fn co_prepare(&mut self, _: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        self.say("prepare");
        (self.outcome)()
    }

    fn co_commit(&mut self, _: &Co<'_>) {
        self.say("commit");
    }

    fn co_abort(&mut self, _: &Co<'_>) {
        self.say("abort");
    }

    fn co_clean(&mut self, _: &Co<'_>) {
        self.say("clean");
    }
}

#[test]
fn j122_actions_are_prepared_in_turn_and_end_in_reverse() {
    let stage = stage();
    let said = Rc::new(RefCell::new(Vec::new()));
    let scripted = |name, outcome| Scripted { name, said: Rc::clone(&said), outcome };
    let good = Transaction::new().action(scripted("a", || Ok(()))).action(scripted("b", || Ok(())));
    stage.run(good).unwrap();
    let expected = ["prepare a", "prepare b", "commit b", "commit a", "clean b", "clean a"];
    assert_eq!(said.take(), expected);
    for (last, why) in [
        ((|| Err("it fails".into())) as fn() -> _, "it fails"),
        (|| std::panic::resume_unwind(Box::new("p")), "the action panicked"),
    ] {
        let bad = Transaction::new()
            .action(scripted("a", || Ok(())))
            .action(scripted("b", || Ok(())))
            .action(scripted("c", last))
            .action(scripted("d", || Ok(())));
        assert_eq!(stage.run(bad).unwrap_err(), why);
        let expected =
            ["prepare a", "prepare b", "prepare c", "abort b", "abort a", "clean b", "clean a"];
        assert_eq!(said.take(), expected);
    }
}

#[test]
fn j121_j123_nothing_is_begun_that_cannot_be_grouped() {
    let stage = stage();
    stage.run(Transaction::new()).unwrap();
    let grouped = || Transaction::new().completion_mode(CompletionMode::Grouped);
    stage.run(grouped()).unwrap();
    let refused = stage.run(grouped().action(stage.adding(0, "a"))).unwrap_err();
    assert_eq!(
        refused,
        "Action 'block-dirty-bitmap-add' does not support transaction property \
         completion-mode = grouped"
    );
    assert!(stage.find(0, "a").is_none());
}

#[test]
fn j125_a_write_is_before_all_actions_or_after_all_of_them() {
    let stage = stage();
    let old = [stage.add(0, "old"), stage.add(1, "old")];
    // The first disk holds one write; the other disk is idle.
    stage.disks[0].judge(|op| match op {
        Op::Write(0, ..) => Verdict::Hold,
        _ => Verdict::Go,
    });
    let before = stage.begin_write(0, 0);
    stage.settle();
    let off = |place| RecordBitmap::new(stage.at(place, "old"), false);
    let transaction = Transaction::new()
        .action(off(0))
        .action(stage.adding(0, "new"))
        .action(off(1))
        .action(stage.adding(1, "new"));
    let result = stage.begin(transaction);
    stage.settle();
    assert!(result.borrow().is_none() && stage.find(0, "new").is_none());
    // Both gates are closed, though the second disk has nothing to wait for.
    let after = [stage.begin_write(0, 1), stage.begin_write(1, 1)];
    stage.settle();
    assert!(!*after[0].borrow() && !*after[1].borrow(), "a write got between the actions");
    assert!(stage.disks[0].release());
    until(&stage.ctx, || after.iter().all(|it| *it.borrow()));
    assert_eq!(*result.borrow(), Some(Ok(())));
    assert!(*before.borrow());
    let new = [0, 1].map(|place| stage.find(place, "new").unwrap());
    assert_eq!((dirty(&old[0]), dirty(&new[0])), (vec![0], vec![1]));
    assert_eq!((dirty(&old[1]), dirty(&new[1])), (vec![], vec![1]));
}

#[test]
fn j122_bitmaps_are_as_before_when_a_transaction_fails() {
    let stage = stage();
    let [a, b] = [stage.add(0, "a"), stage.add(1, "b")];
    stage.write(0, 3);
    stage.write(1, 5);
    let off = stage.add(0, "off");
    off.set_recording(false).unwrap();
    let transaction = Transaction::new()
        .action(stage.adding(0, "new"))
        // Each sees what those before have done.
        .action(MergeBitmaps::new(stage.at(0, "new"), vec![stage.at(0, "a"), stage.at(1, "b")]))
        .action(MergeBitmaps::new(stage.at(0, "a"), vec![stage.at(0, "new")]))
        .action(ClearBitmap::new(stage.at(0, "a")))
        .action(ClearBitmap::new(stage.at(1, "b")))
        .action(RecordBitmap::new(stage.at(0, "off"), true))
        .action(RecordBitmap::new(stage.at(0, "a"), true))
        .action(RecordBitmap::new(stage.at(0, "a"), false))
        .action(RemoveBitmap::new(stage.at(1, "b")))
        .action(AbortAction::new());
    let failed = stage.run(transaction).unwrap_err();
    assert_eq!(failed, "Transaction aborted using Abort action");
    assert_eq!((dirty(&a), dirty(&b), dirty(&off)), (vec![3], vec![5], vec![]));
    assert!(a.is_recording() && b.is_recording() && !off.is_recording());
    assert!(stage.find(0, "new").is_none() && Arc::ptr_eq(&stage.find(1, "b").unwrap(), &b));
    assert!(!b.info().is_busy);
    stage.write(1, 6);
    assert_eq!(dirty(&b), [5, 6]);
}

#[test]
fn j122_a_bitmap_that_is_removed_has_its_name_until_the_end() {
    let stage = stage();
    let bitmap = stage.add(0, "a");
    let remove = || RemoveBitmap::new(stage.at(0, "a"));
    let twice = Transaction::new().action(remove()).action(stage.adding(0, "a"));
    assert_eq!(stage.run(twice).unwrap_err(), "Bitmap already exists: a");
    let busy = Transaction::new().action(remove()).action(ClearBitmap::new(stage.at(0, "a")));
    assert!(stage.run(busy).unwrap_err().contains("in use by another operation"));
    stage.run(Transaction::new().action(remove())).unwrap();
    assert!(stage.find(0, "a").is_none());
    stage.write(0, 0);
    assert!(dirty(&bitmap).is_empty());
}

/// A filter that passes requests on, above a node.
struct Pass(Child);

impl Filter for Pass {
    fn name(&self) -> &'static str {
        "pass"
    }

    fn child(&self) -> &Child {
        &self.0
    }
}

fn filter(name: &str, below: &Arc<BlockNode>) -> Arc<BlockNode> {
    let role = ChildRole::FILTERED | ChildRole::PRIMARY;
    BlockNode::new(name, Pass(Child::new("file", role, Arc::clone(below))))
}

#[test]
fn j85_filters_come_and_go_and_go_back_with_their_users() {
    let stage = stage();
    let [node, _] = &stage.nodes;
    let filter = filter("f", node);
    let own = BackendOptions::new("own").share_rw(true);
    let own = own.open(&stage.ctx, Arc::clone(&filter)).unwrap();
    let insert = || InsertFilter::new(Arc::clone(node), Arc::clone(&filter));
    let remove = || RemoveFilter::new(Arc::clone(&filter));
    let on = |backend: &BlockBackend| backend.node().unwrap().name().to_owned();
    // What was at the filter before stays there.
    let aborted = Transaction::new().action(insert()).action(AbortAction::new());
    stage.run(aborted).unwrap_err();
    assert_eq!((on(&stage.guests[0]), on(&own)), ("n0".to_owned(), "f".to_owned()));
    stage.run(Transaction::new().action(insert())).unwrap();
    assert_eq!((on(&stage.guests[0]), on(&own)), ("f".to_owned(), "f".to_owned()));
    stage.write(0, 1);
    let aborted = Transaction::new().action(remove()).action(AbortAction::new());
    stage.run(aborted).unwrap_err();
    assert_eq!((on(&stage.guests[0]), on(&own)), ("f".to_owned(), "f".to_owned()));
    stage.run(Transaction::new().action(remove())).unwrap();
    assert_eq!((on(&stage.guests[0]), on(&own)), ("n0".to_owned(), "n0".to_owned()));
    stage.write(0, 2);
}

/// Lets others have their turns while it is prepared.
struct Waits {
    node: Arc<BlockNode>,
    is_changed: Arc<AtomicBool>,
}

impl Action for Waits {
    fn name(&self) -> &'static str {
        "waits"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        vec![Arc::clone(&self.node)]
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        (0..100).for_each(|_| co.yield_now());
        assert!(!self.is_changed.load(Ordering::SeqCst), "another change was made");
        // Its own is not held up.
        let turned = self.node.co_insert_filter(co, &filter("own", &self.node))?;
        Ok(turned.co_turn_back(co)?)
    }
}

#[test]
fn j125_no_other_change_comes_between() {
    let stage = stage();
    let [node, other] = &stage.nodes;
    let (filter, is_changed) = (filter("f", node), Arc::new(AtomicBool::new(false)));
    let waits = Waits { node: Arc::clone(other), is_changed: Arc::clone(&is_changed) };
    let result = stage.begin(Transaction::new().action(waits));
    let (node, told) = (Arc::clone(node), Arc::clone(&is_changed));
    stage.ctx.spawn("another change", move |co| {
        node.co_insert_above(co, &filter).unwrap();
        told.store(true, Ordering::SeqCst);
    });
    until(&stage.ctx, || result.borrow().is_some() && is_changed.load(Ordering::SeqCst));
    assert_eq!(result.take(), Some(Ok(())));
}

/// Waits in its preparation, for ever, and says that it does.
struct Stuck(Rc<RefCell<bool>>);

impl Action for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        Vec::new()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        *self.0.borrow_mut() = true;
        co.suspend_for("nothing", std::mem::forget);
        Ok(())
    }
}

/// A context that ends in the midst of a transaction.
#[test]
fn j122_a_transaction_that_is_unwound_takes_its_bitmaps_back() {
    let stage = stage();
    let (cleared, merged, disabled) = (stage.add(0, "a"), stage.add(1, "b"), stage.add(0, "c"));
    stage.write(0, 3);
    stage.write(1, 5);
    let waits = Rc::default();
    let (nodes, before) = (stage.nodes.clone(), [dirty(&cleared), dirty(&merged)]);
    stage.begin(
        Transaction::new()
            .action(MergeBitmaps::new(stage.at(1, "b"), vec![stage.at(0, "a")]))
            .action(ClearBitmap::new(stage.at(0, "a")))
            .action(RecordBitmap::new(stage.at(0, "c"), false))
            .action(stage.adding(1, "d"))
            .action(Stuck(Rc::clone(&waits))),
    );
    until(&stage.ctx, || *waits.borrow());
    assert_eq!((dirty(&cleared), dirty(&merged)), (vec![], vec![3, 5]));
    drop(stage);
    assert_eq!([dirty(&cleared), dirty(&merged)], before);
    assert!(disabled.is_recording());
    assert!(nodes[1].bitmaps().find("d").is_err(), "a bitmap of no transaction");
}

/// Filters and overlays stay where they are when a transaction is unwound: to turn users back their contexts have to be
/// waited for. What there is then is valid, and requests go on.
#[test]
fn j122_a_transaction_that_is_unwound_leaves_a_graph_that_requests_go_through() {
    let Stage { ctx, disks, nodes, guests } = stage();
    drop(guests);
    let other = simulated(2);
    let options = BackendOptions::new("guest").share_rw(true);
    let guest = options.open(&other, Arc::clone(&nodes[0])).unwrap();
    let (waits, above) = (Rc::default(), filter("f", &nodes[0]));
    let transaction = Transaction::new()
        .action(InsertFilter::new(Arc::clone(&nodes[0]), above))
        .action(Stuck(Rc::clone(&waits)));
    ctx.spawn("transaction", move |co| drop(transaction.co_run(co)));
    until(&ctx, || {
        while other.try_poll() {}
        *waits.borrow()
    });
    drop(ctx);
    assert_eq!(guest.node().unwrap().name(), "f");
    other.run(|co| guest.co_write(co, 0, &[7; 512])).unwrap();
    assert_eq!(disks[0].data()[0], 7);
}

/// Its end panics.
struct Panics(&'static str, Rc<RefCell<Vec<String>>>);

impl Action for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        Vec::new()
    }

    fn co_prepare(&mut self, _: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        Ok(())
    }

    fn co_commit(&mut self, _: &Co<'_>) {
        self.1.borrow_mut().push("commit".to_owned());
        if self.0 == "commit" {
            std::panic::resume_unwind(Box::new("p"));
        }
    }

    fn co_clean(&mut self, _: &Co<'_>) {
        self.1.borrow_mut().push("clean".to_owned());
        if self.0 == "clean" {
            std::panic::resume_unwind(Box::new("p"));
        }
    }
}

#[test]
fn j122_a_panic_of_one_action_keeps_no_other_from_its_end() {
    for at in ["commit", "clean"] {
        let stage = stage();
        let said = Rc::new(RefCell::new(Vec::new()));
        let panics = || Panics(at, Rc::clone(&said));
        stage.run(Transaction::new().action(panics()).action(panics())).unwrap();
        assert_eq!(said.take(), ["commit", "commit", "clean", "clean"]);
        // Requests go on.
        stage.write(0, 1);
    }
}
