//! Free clusters that are punched in the file: a write that needs space waits for that, and none stays closed.

use std::fs;
use std::time::Duration;

use coblk_aio::{AioContext, IoThread, SimulationOptions};
use coblk_block::BlockBackend;
use serde_json::json;

use crate::util::small_host::{Disk, PAGE, SmallHost};
use crate::util::{Stand, assert_same};

const MIB: usize = 1 << 20;

/// A host with space for 1 MiB of data, and little more.
fn host() -> SmallHost {
    let stand = Stand::in_memory();
    let path = stand.create("image.qcow2", "cluster_size=64k", "8M");
    let host = SmallHost::new(fs::read(path).unwrap());
    host.add_room(MIB / PAGE + 40);
    stand.end();
    host
}

/// A disk of a host that is full, of which all has been discarded.
fn discarded<'a>(ctx: &'a AioContext, host: &SmallHost) -> Disk<'a> {
    let disk = Disk::open(ctx, host, json!({"discard": "unmap"}));
    disk.write(0, &vec![1; MIB]).unwrap();
    disk.flush().unwrap();
    disk.discard(0, MIB as u64);
    host.hold_punches();
    disk
}

#[test]
fn q238_a_write_waits_for_space_that_is_being_punched() {
    let ctx =
        AioContext::test_builder().simulated(SimulationOptions::new(1)).build().expect("a context");
    let host = host();
    let disk = discarded(&ctx, &host);
    let backend = disk.backend().clone();
    ctx.spawn("flush", move |co| backend.co_flush(co).unwrap());
    ctx.run_until(|| host.held() == 1);
    let later = host.clone();
    ctx.spawn("release", move |co| {
        co.sleep(Duration::from_millis(300));
        later.release();
    });
    let begun = ctx.now_ns();
    disk.write(4 << 20, &vec![2; MIB]).unwrap();
    let waited = ctx.now_ns() - begun;
    assert!(waited >= 250_000_000, "a write that was {waited} ns on its way");
    assert_same(&disk.read(4 << 20, MIB), &vec![2; MIB], "the disk");
    disk.close();
}

#[test]
fn q237_a_punch_that_is_unwound_leaves_its_clusters_free() {
    let ctx = AioContext::for_test().unwrap();
    let host = host();
    let disk = discarded(&ctx, &host);
    let thread = IoThread::new("other").unwrap();
    let node = disk.backend().node().unwrap();
    thread.handle().schedule(move |ctx| {
        let backend = BlockBackend::new(ctx, "flush", node);
        ctx.spawn("flush", move |co| backend.co_flush(co).unwrap());
    });
    while host.held() == 0 {
        ctx.run(|co| co.sleep(Duration::from_millis(1)));
    }
    drop(thread);
    host.release();
    disk.write(4 << 20, &vec![2; MIB]).unwrap();
    assert_same(&disk.read(4 << 20, MIB), &vec![2; MIB], "the disk");
    disk.close();
    let stand = Stand::in_memory();
    let path = stand.path("image.qcow2");
    fs::write(&path, host.content()).unwrap();
    stand.check(&path);
    stand.end();
}
