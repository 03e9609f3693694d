//! Entries that get their flags back while a write to them is on its way.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, SimulationOptions};
use coblk_block::BackendOptions;
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, Moment, Recorder};
use coblk_tests::survey::Subject;

use crate::util::assert_same;
use crate::util::shape::{Format, Shape, shape};

const SHAPE: Shape = shape("cluster_size=64k", 128, 2048);
const CLUSTER: usize = 64 << 10;

/// A write takes another cluster, as a snapshot has a share of the old one, and copies what is around it. Before it
/// is linked the snapshot is deleted: the entry says again that the disk is the only owner, and another write goes to
/// the old cluster in place.
#[test]
fn q189_a_write_whose_entry_got_its_flag_back_does_not_hide_a_write_in_place() {
    let ctx =
        AioContext::test_builder().simulated(SimulationOptions::new(1)).build().expect("a context");
    let recorder = Recorder::new(Behaviour::default());
    let files = vec![recorder.add_file(SHAPE.create(1).remove(0))];
    let format = Format::new(SHAPE);
    let node = format.open(&ctx, &files, false).unwrap();
    let user = Rc::new(BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap());
    ctx.run(|co| {
        user.co_write(co, 0, &vec![1; 16 * CLUSTER]).unwrap();
        let image = node.co_image(co).unwrap();
        image.co_create_snapshot(co, "one").unwrap();
        // The disk has a table of its own from here on.
        user.co_write(co, 8 * CLUSTER as u64, &vec![2; CLUSTER]).unwrap();
    });
    recorder.disturb(Disturbance::hold(Moment::Before, 0).of(Kind::Write));
    let is_written = Rc::new(Cell::new(false));
    let (done, writer) = (Rc::clone(&is_written), Rc::clone(&user));
    ctx.spawn("write", move |co| {
        writer.co_write(co, 4096, &[3; 4096]).unwrap();
        done.set(true);
    });
    ctx.run_until(|| recorder.held() == 1);
    ctx.run(|co| {
        node.co_image(co).unwrap().co_delete_snapshot(co, "1").unwrap();
        let before = recorder.count_records();
        user.co_write(co, 32768, &[4; 4096]).unwrap();
        assert_eq!(recorder.count_records(), before + 1, "a write that is not in place");
    });
    assert!(!is_written.get());
    recorder.release();
    ctx.run_until(|| is_written.get());
    let mut content = vec![1; CLUSTER];
    content[4096..8192].fill(3);
    content[32768..36864].fill(4);
    let mut read = vec![0; CLUSTER];
    ctx.run(|co| user.co_read(co, 0, &mut read)).unwrap();
    assert_same(&read, &content, "the cluster");
    drop(user);
    format.close(&ctx, node).unwrap();
    format.expect_clean(&ctx, &files, "the writes").unwrap();
}
