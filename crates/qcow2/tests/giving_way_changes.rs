//! Snapshots, properties, and an image that is emptied give way to drains of the node, and not where requests wait for
//! them.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, Co, SimulationOptions};
use coblk_block::{Amend, BackendOptions, BlockBackend, BlockNode, Truncate, ZeroFlags};
use coblk_qapi::Deferred;
use coblk_tests::recorded::{Behaviour, Disturbance, Moment, RecordedFile, Recorder};
use coblk_tests::survey::Subject;
use serde_json::{Value, json};

use crate::util::shape::{Format, Shape, shape};

/// A disk of four tables, of which few are in memory.
const SHAPE: Shape = Shape {
    node: r#"{"l2-cache-size": 1024, "l2-cache-entry-size": 512, "discard": "unmap"}"#,
    ..shape("cluster_size=4k", 8, 4 * 4096)
};
const TABLE: u64 = 2 << 20;
const DISK: usize = 4 * TABLE as usize;
/// Where a request writes beside a change: clusters that nothing else writes.
const BESIDE: u64 = TABLE + (64 << 12);

type Change = fn(&Co<'_>, &BlockNode) -> io::Result<()>;

fn amend(co: &Co<'_>, node: &BlockNode, options: &Value) -> io::Result<()> {
    let options = Deferred::new(options.as_object().unwrap().clone());
    node.co_image(co)?.co_amend(co, Amend::new(options))
}

/// Each with whether the disk reads as the snapshot then, or as zeroes, or as before.
const CHANGES: [(&str, Change, Option<u8>); 6] = [
    ("create", |co, node| node.co_image(co)?.co_create_snapshot(co, "two").map(drop), Some(2)),
    ("delete", |co, node| node.co_image(co)?.co_delete_snapshot(co, "1"), Some(2)),
    ("apply", |co, node| node.co_image(co)?.co_apply_snapshot(co, "1"), Some(1)),
    ("empty", |co, node| node.co_image(co)?.co_make_empty(co), None),
    ("width", |co, node| amend(co, node, &json!({"refcount-bits": 32})), Some(2)),
    ("version 2", |co, node| amend(co, node, &json!({"version": "v2"})), Some(2)),
];

struct Stage {
    ctx: AioContext,
    recorder: Recorder,
    files: Vec<RecordedFile>,
    format: Format,
    node: Arc<BlockNode>,
    user: Rc<BlockBackend>,
}

/// An image whose disk has 2 in its tables, and a snapshot that has 1 there.
fn image() -> Vec<u8> {
    let Stage { ctx, files, format, node, user, .. } = Stage::new(&SHAPE.create(1).remove(0));
    ctx.run(|co| {
        for value in [1, 2] {
            for table in 0..4 {
                user.co_write(co, table * TABLE, &[value; 3 * 4096]).unwrap();
                let zeroes = table * TABLE + (1 << 20);
                user.co_pwrite_zeroes(co, zeroes, 8192, ZeroFlags::empty()).unwrap();
            }
            if value == 1 {
                node.co_image(co).unwrap().co_create_snapshot(co, "one").unwrap();
            }
        }
    });
    drop(user);
    format.close(&ctx, node).unwrap();
    files[0].content()
}

impl Stage {
    fn new(image: &[u8]) -> Stage {
        let ctx = AioContext::test_builder().simulated(SimulationOptions::new(1));
        let ctx = ctx.build().expect("a context");
        let recorder = Recorder::new(Behaviour::default());
        let files = vec![recorder.add_file(image.to_vec())];
        let format = Format::new(SHAPE);
        let node = format.open(&ctx, &files, false).unwrap();
        let user = Rc::new(BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap());
        Stage { ctx, recorder, files, format, node, user }
    }

    fn spawn(&self, work: impl FnOnce(&Co<'_>) + 'static) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let is_done = Rc::clone(&done);
        self.ctx.spawn("work", move |co| {
            work(co);
            is_done.set(true);
        });
        done
    }

    fn begin(&self, change: Change) -> Rc<Cell<bool>> {
        let node = Arc::clone(&self.node);
        self.spawn(move |co| change(co, &node).unwrap())
    }

    /// Drains the node, and looks that nothing happens meanwhile. The second is whether the change was over by then.
    fn drain(&self, is_changed: &Rc<Cell<bool>>) -> (Rc<Cell<bool>>, Rc<Cell<bool>>) {
        let (drained, storage) = (Arc::clone(&self.node), self.recorder.clone());
        let (was_changed, changed) = (Rc::new(Cell::new(false)), Rc::clone(is_changed));
        let result = Rc::clone(&was_changed);
        let is_drained = self.spawn(move |co| {
            let section = drained.co_drain(co);
            result.set(changed.get());
            let now = storage.now();
            co.sleep(Duration::from_secs(1));
            assert_eq!(storage.now(), now, "something happens in a drained section");
            drop(section);
        });
        (is_drained, was_changed)
    }

    /// Ends the node. The disk has `value` in its tables, and the image is clean.
    fn end(self, value: Option<u8>, what: &str) {
        let Stage { ctx, files, format, node, user, .. } = self;
        let mut disk = vec![0; DISK];
        ctx.run(|co| user.co_read(co, 0, &mut disk)).unwrap();
        for (table, bytes) in disk.chunks(TABLE as usize).enumerate() {
            let data = value.unwrap_or(0);
            assert!(bytes[..3 * 4096].iter().all(|it| *it == data), "{what}: table {table}");
        }
        drop(user);
        format.close(&ctx, node).unwrap();
        format.expect_clean(&ctx, &files, what).unwrap();
        let content = files[0].content();
        assert!(content[7] == 2 || content[79] & 3 == 0, "{what}: marked as dirty or corrupt");
    }
}

/// Has a drain begin while the request after `skip` others of a change waits. Returns whether the change gave way, if
/// there is such a request.
fn drain_beside(
    image: &[u8],
    (what, change, value): (&str, Change, Option<u8>),
    (skip, is_beside): (u64, bool),
) -> Option<bool> {
    let stage = Stage::new(image);
    let what = format!("{what}, {skip}");
    stage.recorder.disturb(Disturbance::hold(Moment::Before, skip));
    let is_changed = stage.begin(change);
    stage.ctx.run_until(|| stage.recorder.held() == 1 || is_changed.get());
    if is_changed.get() {
        stage.recorder.calm();
        stage.end(value, &what);
        return None;
    }
    // A request that may wait for the change, and that the drain waits for.
    let is_written = match is_beside {
        true => {
            let user = Rc::clone(&stage.user);
            stage.spawn(move |co| user.co_write(co, BESIDE, &[3; 4096]).unwrap())
        }
        false => Rc::new(Cell::new(true)),
    };
    let (is_drained, was_changed) = stage.drain(&is_changed);
    stage.ctx.run(|co| co.sleep(Duration::from_millis(50)));
    assert!(!is_drained.get(), "{what}");
    stage.recorder.release();
    stage.ctx.run_until(|| is_drained.get() && is_changed.get());
    assert!(is_written.get(), "{what}");
    stage.end(value, &what);
    Some(!was_changed.get())
}

#[test]
fn q143_q158_q236_changes_of_a_whole_image_give_way_to_a_drain_at_each_table() {
    let image = image();
    for change in CHANGES {
        for is_beside in [false, true] {
            let run = |skip| drain_beside(&image, change, (skip, is_beside));
            let all: Vec<bool> = (0..).step_by(4).map_while(run).collect();
            let given_way = all.iter().filter(|it| **it).count();
            // But for the last steps, and where something else was under way for as long.
            let late = all.iter().rev().take_while(|it| !**it).count();
            let are_most = 4 * given_way >= 3 * (all.len() - late);
            assert!(given_way >= 3 && (are_most || is_beside), "{}: {all:?}", change.0);
        }
    }
}

/// A drain waits for a request that waits for a change: that does not wait for the drain.
#[test]
fn q158_q236_a_change_that_a_request_waits_for_does_not_give_way() {
    let image = image();
    for (what, change, value) in CHANGES {
        for skip in [1, 5, 9] {
            let stage = Stage::new(&image);
            stage.recorder.disturb(Disturbance::hold(Moment::Before, skip));
            let is_changed = stage.begin(change);
            stage.ctx.run_until(|| stage.recorder.held() == 1);
            // It needs the turn.
            let user = Rc::clone(&stage.user);
            let result = Rc::new(RefCell::new(None));
            let truncated = Rc::clone(&result);
            let is_truncated = stage.spawn(move |co| {
                let longer = user.co_truncate_with(co, DISK as u64 + 4096, Truncate::default());
                *truncated.borrow_mut() = Some(longer);
            });
            let (is_drained, was_changed) = stage.drain(&is_changed);
            stage.ctx.run(|co| co.sleep(Duration::from_millis(50)));
            stage.recorder.release();
            stage.ctx.run_until(|| is_drained.get() && is_changed.get() && is_truncated.get());
            assert!(was_changed.get(), "{what}, {skip}");
            let truncated = result.borrow_mut().take().unwrap();
            // One of version 2 with snapshots stays as long as it is.
            assert_eq!(truncated.is_err(), what == "version 2", "{truncated:?}");
            stage.end(value, what);
        }
    }
}

/// Has a change wait for the end of a drained section. Returns the stage, the section, and whether the change is over.
fn given_way(change: Change, skip: u64) -> (Stage, coblk_block::DrainedSection, Rc<Cell<bool>>) {
    let stage = Stage::new(&image());
    stage.recorder.disturb(Disturbance::hold(Moment::Before, skip));
    let is_changed = stage.begin(change);
    stage.ctx.run_until(|| stage.recorder.held() == 1);
    let recorder = stage.recorder.clone();
    stage.spawn(move |co| {
        co.sleep(Duration::from_millis(5));
        recorder.release();
    });
    let section = stage.ctx.run(|co| stage.node.co_drain(co));
    assert!(!is_changed.get(), "it was over before");
    (stage, section, is_changed)
}

#[test]
fn q158_q236_what_would_wait_for_a_change_in_a_drained_section_fails() {
    let (stage, section, is_changed) = given_way(CHANGES[1].1, 8);
    let driver = stage.node.driver();
    let busy = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    };
    stage.ctx.run(|co| {
        busy(driver.co_inactivate(co));
        busy(driver.co_close(co));
        // A commit waits for nothing.
        driver.co_write_back(co).unwrap();
    });
    assert!(!is_changed.get());
    drop(section);
    stage.ctx.run_until(|| is_changed.get());
    stage.end(Some(2), "a close that was refused");
}

#[test]
fn q158_q236_drains_that_follow_each_other_are_all_given_way_to() {
    let image = image();
    for (what, change, value) in CHANGES {
        let stage = Stage::new(&image);
        let is_changed = stage.begin(change);
        let mut count = 0;
        while !is_changed.get() {
            let section = stage.ctx.run(|co| stage.node.co_drain(co));
            count += u32::from(!is_changed.get());
            drop(section);
            stage.ctx.run(|co| co.sleep(Duration::from_micros(1)));
        }
        assert!(count >= 3, "{what}: {count}");
        stage.end(value, what);
    }
}
