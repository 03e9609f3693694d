//! Checks and repairs of an open image give way to drains of its node.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, Co, SimulationOptions};
use coblk_block::{BackendOptions, Repair};
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, Moment, RecordedFile, Recorder};
use coblk_tests::survey::Subject;

use crate::util::shape::{Format, Shape, shape};

/// A disk of four tables.
const SHAPE: Shape = shape("cluster_size=4k", 8, 4 * 4096);
const TABLE: u64 = 2 << 20;

fn spawn(ctx: &AioContext, work: impl FnOnce(&Co<'_>) + 'static) -> Rc<Cell<bool>> {
    let done = Rc::new(Cell::new(false));
    let is_done = Rc::clone(&done);
    ctx.spawn("work", move |co| {
        work(co);
        is_done.set(true);
    });
    done
}

/// An image whose last clusters leak, and nothing else is wrong with it; and where their refcounts are.
fn leaking(file: &RecordedFile) -> (Vec<u8>, usize) {
    let mut image = file.content();
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let block = word(word(48));
    let end = image.len().div_ceil(4096);
    image.resize((end + 3) * 4096, 0);
    for cluster in end..end + 3 {
        image[block + 2 * cluster + 1] = 1;
    }
    (image, block + 2 * end)
}

/// Has a drain begin while the read after `skip` others of a check waits, when the mapping stands still. If there is
/// such a read, returns whether leaks were mended by then, and whether the check gave way.
fn drain_beside(repair: Repair, skip: u64) -> Option<(bool, bool)> {
    let ctx =
        AioContext::test_builder().simulated(SimulationOptions::new(1)).build().expect("a context");
    let recorder = Recorder::new(Behaviour::default());
    let image = recorder.add_file(SHAPE.create(1).remove(0));
    let (leaking, leaks) = leaking(&image);
    let files = vec![recorder.add_file(leaking)];
    let format = Format::new(SHAPE);
    let node = format.open(&ctx, &files, false).unwrap();
    let user = Rc::new(BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap());
    ctx.run(|co| {
        (0..4).for_each(|table| user.co_write(co, table * TABLE, &[1; 4096]).unwrap());
        user.co_flush(co).unwrap();
    });
    recorder.disturb(Disturbance::hold(Moment::Before, skip).of(Kind::Read));
    let report = Rc::new(RefCell::new(None));
    let (checked, found) = (Arc::clone(&node), Rc::clone(&report));
    let is_checked = spawn(&ctx, move |co| {
        let checked = checked.co_image(co).unwrap().co_check(co, repair);
        *found.borrow_mut() = Some(checked.unwrap());
    });
    ctx.run_until(|| recorder.held() == 1 || is_checked.get());
    let is_held = recorder.held() == 1;
    let is_mended = files[0].content()[leaks..leaks + 6] == [0; 6];
    // A request that waits for the check, and that the drain waits for.
    let writer = Rc::clone(&user);
    let is_written = spawn(&ctx, move |co| writer.co_write(co, TABLE + 8192, &[2; 4096]).unwrap());
    let (drained, storage) = (Arc::clone(&node), recorder.clone());
    let (after, before) = (Rc::clone(&is_checked), Rc::clone(&is_written));
    let gave_way = Rc::new(Cell::new(false));
    let has_given_way = Rc::clone(&gave_way);
    let is_drained = spawn(&ctx, move |co| {
        co.sleep(Duration::from_millis(5));
        let section = drained.co_drain(co);
        assert!(before.get());
        has_given_way.set(!after.get());
        let now = storage.now();
        co.sleep(Duration::from_secs(1));
        assert_eq!(storage.now(), now, "something happens in a drained section");
        drop(section);
    });
    ctx.run(|co| co.sleep(Duration::from_millis(50)));
    assert!(!is_held || !is_written.get() && !is_drained.get());
    recorder.release();
    ctx.run_until(|| is_drained.get() && is_checked.get());
    let report = report.borrow_mut().take().unwrap();
    let leaks = if repair == Repair::None { (3, 0) } else { (0, 3) };
    assert_eq!((report.leaks, report.leaks_fixed), leaks);
    assert_eq!((report.corruptions, report.check_errors), (0, 0));
    let mut read = [0; 4096];
    ctx.run(|co| user.co_read(co, TABLE + 8192, &mut read)).unwrap();
    assert!(read == [2; 4096]);
    drop(user);
    format.close(&ctx, node).unwrap();
    if repair != Repair::None {
        format.expect_clean(&ctx, &files, "the repair").unwrap();
    }
    is_held.then(|| (is_mended, gave_way.get()))
}

/// A write waits for a cluster for a table, which is counted and nothing refers to: a check waits for that.
#[test]
fn q143_a_cluster_that_is_on_its_way_to_a_table_is_no_leak() {
    for repair in [Repair::None, Repair::All] {
        let ctx = AioContext::test_builder()
            .simulated(SimulationOptions::new(1))
            .build()
            .expect("a context");
        let recorder = Recorder::new(Behaviour::default());
        let files = vec![recorder.add_file(SHAPE.create(1).remove(0))];
        let format = Format::new(SHAPE);
        let node = format.open(&ctx, &files, false).unwrap();
        let user = Rc::new(BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap());
        ctx.run(|co| user.co_write(co, 0, &[1; 4096]).unwrap());
        // The zeroes of the table.
        recorder.disturb(Disturbance::hold(Moment::Before, 0).of(Kind::Write));
        let writer = Rc::clone(&user);
        let is_written = spawn(&ctx, move |co| writer.co_write(co, TABLE, &[2; 4096]).unwrap());
        ctx.run_until(|| recorder.held() == 1);
        let checked = Arc::clone(&node);
        let is_checked = spawn(&ctx, move |co| {
            let report = checked.co_image(co).unwrap().co_check(co, repair).unwrap();
            assert_eq!((report.leaks, report.leaks_fixed), (0, 0));
            assert_eq!((report.corruptions, report.corruptions_fixed), (0, 0));
        });
        ctx.run(|co| co.sleep(Duration::from_millis(50)));
        assert!(!is_checked.get() && !is_written.get());
        recorder.release();
        ctx.run_until(|| is_checked.get() && is_written.get());
        let mut read = [0; 4096];
        ctx.run(|co| user.co_read(co, TABLE, &mut read)).unwrap();
        assert!(read == [2; 4096]);
        drop(user);
        format.close(&ctx, node).unwrap();
        format.expect_clean(&ctx, &files, "the write").unwrap();
    }
}

#[test]
fn q143_q236_a_check_gives_way_to_a_drain_and_begins_again() {
    assert_eq!(drain_beside(Repair::None, 3), Some((false, true)));
}

/// At each of its reads, but for those of its last steps.
#[test]
fn q143_q236_a_repair_gives_way_to_a_drain_before_it_writes_and_after() {
    for repair in [Repair::Leaks, Repair::All] {
        let all: Vec<_> = (3..).map_while(|skip| drain_beside(repair, skip)).collect();
        let given_way = |mended| all.iter().filter(|it| **it == (mended, true)).count();
        assert!(given_way(false) >= 8 && given_way(true) >= 8, "{all:?}");
        let late = all.iter().rev().take_while(|it| **it == (true, false)).count();
        assert!(all[..all.len() - late].iter().all(|it| it.1), "{all:?}");
    }
}
