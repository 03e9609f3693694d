//! A read meets a corruption while the image is repaired: it fails, and the repair and its header stay as they are.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, SimulationOptions};
use coblk_block::{BackendOptions, Repair};
use coblk_tests::errno;
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, Moment, Recorder};
use coblk_tests::survey::Subject;

use crate::util::shape::{Format, Shape, shape};

const SHAPE: Shape = shape("cluster_size=4k", 8, 4096);
const CLUSTER: u64 = 4096;
const OFFSETS: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster of the disk that has zeroes at a place that is none.
const BAD: u64 = 40;

fn simulated() -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(1)).build().expect("a context")
}

/// An image with data that passes for free, so that refcounts have to be written anew, and with an entry that no
/// request may meet.
fn damaged() -> Vec<u8> {
    let ctx = simulated();
    let recorder = Recorder::new(Behaviour::default());
    let files = vec![recorder.add_file(SHAPE.create(1).remove(0))];
    let format = Format::new(SHAPE);
    let node = format.open(&ctx, &files, false).unwrap();
    let user = BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap();
    ctx.run(|co| user.co_write(co, 0, &[1; 16 * CLUSTER as usize])).unwrap();
    drop(user);
    format.close(&ctx, node).unwrap();
    let mut image = files[0].content();
    let word = |at: u64| {
        u64::from_be_bytes(image[at as usize..at as usize + 8].try_into().unwrap()) & OFFSETS
    };
    let (table, block) = (word(word(40)), word(word(48)));
    let data = word(table + 3 * 8) / CLUSTER;
    image[(block + 2 * data) as usize..][..2].fill(0);
    let bad = (table + 512) | 1;
    image[(table + BAD * 8) as usize..][..8].copy_from_slice(&bad.to_be_bytes());
    image
}

/// Has the read after `skip` others of a repair wait, while a request meets the entry. Returns whether there is such a
/// read.
fn run(image: &[u8], skip: u64) -> bool {
    let ctx = simulated();
    let recorder = Recorder::new(Behaviour::default());
    let files = vec![recorder.add_file(image.to_vec())];
    let format = Format::new(SHAPE);
    let node = format.open(&ctx, &files, false).unwrap();
    let user = BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap();
    let mut read = [0; CLUSTER as usize];
    // The table is in memory from here on.
    ctx.run(|co| user.co_read(co, 0, &mut read)).unwrap();
    recorder.disturb(Disturbance::hold(Moment::Before, skip).of(Kind::Read));
    let is_checked = Rc::new(Cell::new(false));
    let (checked, done) = (Arc::clone(&node), Rc::clone(&is_checked));
    ctx.spawn("repair", move |co| {
        let report = checked.co_image(co).unwrap().co_check(co, Repair::All).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0));
        assert!(report.corruptions_fixed > 1, "{report:?}");
        done.set(true);
    });
    ctx.run(|co| {
        let give_up = ctx.now_ns() + 10_000_000_000;
        while recorder.held() == 0 && !is_checked.get() {
            assert!(ctx.now_ns() < give_up, "{skip}: {:?}", ctx.coroutines());
            co.sleep(Duration::from_millis(1));
        }
    });
    let is_met = recorder.held() > 0;
    // Reads that come after the repair do not wait.
    recorder.calm();
    if is_met {
        let met = ctx.run(|co| user.co_read(co, BAD * CLUSTER, &mut read));
        assert_eq!(errno(met), libc::EIO, "{skip}");
        recorder.release();
        ctx.run_until(|| is_checked.get());
    }
    // The node goes on.
    ctx.run(|co| {
        user.co_write(co, 100 * CLUSTER, &[2; 4 * CLUSTER as usize]).unwrap();
        user.co_read(co, BAD * CLUSTER, &mut read).unwrap();
        assert!(read == [0; CLUSTER as usize], "{skip}");
        for cluster in 0..16 {
            user.co_read(co, cluster * CLUSTER, &mut read).unwrap();
            assert!(read == [1; CLUSTER as usize], "{skip}: cluster {cluster}");
        }
    });
    drop(user);
    format.close(&ctx, node).unwrap();
    format.expect_clean(&ctx, &files, &format!("a read beside read {skip}")).unwrap();
    assert_eq!(files[0].content()[79] & 3, 0, "{skip}: marked as corrupt");
    is_met
}

#[test]
fn q135_q143_a_corruption_that_is_met_beside_a_repair_does_not_undo_it() {
    let image = damaged();
    let met = (0..).take_while(|skip| run(&image, *skip)).count();
    assert!(met > 10, "{met}");
}
