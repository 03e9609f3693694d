//! A host without space, and free space that is found in the background.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::{BlockNode, WriteFlags};
use coblk_tests::random::{Random, seeds};
use coblk_tests::sandbox::on_small_file_system;
use coblk_tests::{errno, tools};
use serde_json::json;

use crate::util::small_host::{Disk, PAGE, SmallHost};
use crate::util::{Stand, assert_same};

const MIB: u64 = 1 << 20;

fn simulated(seed: u64) -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().expect("a context")
}

/// The bytes of a new image.
fn image(options: &str, size: &str) -> Vec<u8> {
    let stand = Stand::in_memory();
    let path = stand.create("image.qcow2", options, size);
    let bytes = fs::read(path).unwrap();
    stand.end();
    bytes
}

/// That `qemu-img check` finds nothing, and the guest reads `content`.
#[track_caller]
fn check(image: Vec<u8>, content: &[u8], what: &str) {
    let stand = Stand::in_memory();
    let path = stand.path("image.qcow2");
    fs::write(&path, image).unwrap();
    stand.check(&path);
    assert_same(&stand.content(&path), content, what);
    stand.end();
}

/// Free clusters in the middle, which a former user of the image has left with their space.
fn with_gaps(ctx: &AioContext, options: &str) -> (SmallHost, Vec<u8>) {
    let host = SmallHost::new(image(options, "4M"));
    host.add_room(10_000);
    let disk = Disk::open(ctx, &host, json!({"discard": "unmap", "pass-discard-request": false}));
    disk.write(0, &vec![1; MIB as usize]).unwrap();
    disk.write(MIB, &[2; 65536]).unwrap();
    disk.discard(0, MIB);
    disk.close();
    let mut content = vec![0; 4 * MIB as usize];
    content[MIB as usize..][..65536].fill(2);
    (SmallHost::new(host.content()), content)
}

#[test]
fn q238_gaps_are_used_where_the_host_has_no_space_for_a_longer_file() {
    let ctx = simulated(1);
    for options in ["cluster_size=64k", "cluster_size=4k", "cluster_size=512"] {
        let (host, mut content) = with_gaps(&ctx, options);
        let disk = Disk::open(&ctx, &host, json!({"discard": "unmap"}));
        for at in 0..3 {
            let offset = 2 * MIB + at * (200 << 10);
            let data = vec![3 + at as u8; 128 << 10];
            disk.write(offset, &data).unwrap();
            content[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        disk.flush().unwrap();
        // All that is free is used, and no more.
        let refused = (0..100).find_map(|at| disk.write(3 * MIB + at * 8192, &[9; 8192]).err());
        assert_eq!(errno(Err::<(), _>(refused.unwrap())), libc::ENOSPC, "{options}");
        disk.flush().unwrap();
        // The host has space again.
        host.add_room(1000);
        disk.write(0, &[7; 512 << 10]).unwrap();
        content[..512 << 10].fill(7);
        disk.discard(3 * MIB, MIB);
        disk.close();
        check(host.content(), &content, options);
    }
}

#[test]
fn q238_what_was_given_up_is_free_before_a_write_is_refused() {
    let ctx = simulated(2);
    for options in ["cluster_size=64k", "cluster_size=4k"] {
        let host = SmallHost::new(image(options, "8M"));
        host.add_room(2 * MIB as usize / PAGE + 40);
        let disk = Disk::open(&ctx, &host, json!({"discard": "unmap"}));
        disk.write(0, &vec![1; 2 * MIB as usize]).unwrap();
        // Nothing is flushed: what is discarded is free after a commit and a grace.
        for round in 1..4 {
            disk.discard((round - 1) * 2 * MIB, 2 * MIB);
            let data = vec![1 + round as u8; 2 * MIB as usize];
            disk.write(round * 2 * MIB, &data).unwrap();
            assert_same(&disk.read(round * 2 * MIB, data.len()), &data, options);
        }
        disk.close();
        let mut content = vec![0; 8 * MIB as usize];
        content[6 * MIB as usize..].fill(4);
        check(host.content(), &content, options);
    }
}

/// A write to a full disk, while a read that reaches what was discarded goes on for some time. Returns how the write
/// ended, and when.
fn write_beside_a_read(held: Duration) -> (std::io::Result<()>, Duration) {
    let ctx = simulated(3);
    let host = SmallHost::new(image("cluster_size=64k", "8M"));
    host.add_room(MIB as usize / PAGE + 40);
    let disk = Disk::open(&ctx, &host, json!({"discard": "unmap"}));
    disk.write(0, &vec![1; MIB as usize]).unwrap();
    disk.flush().unwrap();
    host.hold_read(1);
    let backend = disk.backend().clone();
    let is_read = Rc::new(Cell::new(false));
    let done = Rc::clone(&is_read);
    ctx.spawn("read", move |co| {
        let mut data = vec![0xdb; 65536];
        let mut target = IoVectorMut::from(&mut data[..]);
        backend.co_preadv(co, 0, &mut target).unwrap();
        drop(target);
        assert_eq!(data, vec![1; 65536]);
        done.set(true);
    });
    ctx.run_until(|| host.held() == 1);
    disk.discard(0, MIB);
    let later = host.clone();
    ctx.spawn("release", move |co| {
        co.sleep(held);
        later.release();
    });
    let ended = Rc::new(RefCell::new(None));
    let (result, backend) = (Rc::clone(&ended), disk.backend().clone());
    ctx.run(move |co| {
        let begun = co.context().now_ns();
        let data = vec![2; MIB as usize];
        let source = IoVector::from(&data[..]);
        let written = backend.co_pwritev(co, 4 * MIB, &source, WriteFlags::empty());
        *result.borrow_mut() =
            Some((written, Duration::from_nanos((co.context().now_ns() - begun) as u64)));
    });
    ctx.run_until(|| is_read.get());
    disk.close();
    ended.take().expect("an end")
}

#[test]
fn q238_a_write_waits_a_second_for_requests_that_hold_space_back() {
    let (written, waited) = write_beside_a_read(Duration::from_millis(300));
    written.unwrap();
    assert!(waited >= Duration::from_millis(250), "{waited:?}");
    let (written, waited) = write_beside_a_read(Duration::from_secs(30));
    assert_eq!(errno(written), libc::ENOSPC);
    let bounds = Duration::from_millis(900)..Duration::from_secs(3);
    assert!(bounds.contains(&waited), "{waited:?}");
}

/// Random writes and discards on a host that is full most of the time. What was written can always be flushed.
fn fill(options: &str, seed: u64) {
    let ctx = simulated(seed);
    let mut random = Random::new(seed);
    let host = SmallHost::new(image(options, "2M"));
    host.add_room(100 + random.below(100) as usize);
    let disk = Disk::open(&ctx, &host, json!({"discard": "unmap"}));
    let mut content = vec![0; 2 * MIB as usize];
    let (mut refused, mut written) = (0, 0);
    for step in 0..600 {
        let (offset, bytes) = (random.below(2 * MIB - 20_000), 1 + random.below(20_000));
        let range = offset as usize..(offset + bytes) as usize;
        match random.below(20) {
            0 => {
                let cluster = 65536;
                let start = offset / cluster * cluster;
                disk.discard(start, cluster);
                content[start as usize..(start + cluster) as usize].fill(0);
            }
            1 => disk.flush().unwrap_or_else(|error| panic!("{options}, {seed}: {error}")),
            2 if step % 7 == 0 => host.add_room(2),
            _ => {
                let data = vec![step as u8; bytes as usize];
                match disk.write(offset, &data) {
                    Ok(()) => {
                        written += 1;
                        content[range].copy_from_slice(&data);
                    }
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{options}, {seed}");
                        refused += 1;
                        // A part of it was written, perhaps.
                        let read = disk.read(offset, bytes as usize);
                        let old = &mut content[range];
                        let is_mixed =
                            read.iter().zip(&*old).all(|(now, old)| now == old || *now == data[0]);
                        assert!(is_mixed, "{options}, {seed}: at {offset:#x}");
                        old.copy_from_slice(&read);
                    }
                }
            }
        }
    }
    disk.flush().unwrap_or_else(|error| panic!("{options}, {seed}, at the end: {error}"));
    assert_same(&disk.read(0, content.len()), &content, options);
    disk.close();
    check(host.content(), &content, options);
    assert!(refused > 5 && written > 50, "{options}, {seed}: {refused} of {written}");
}

#[test]
fn q223_q238_what_was_written_before_the_host_was_full_can_be_flushed() {
    for seed in seeds(3) {
        for options in ["cluster_size=512", "cluster_size=4k", "cluster_size=16k,extended_l2=on"] {
            fill(options, seed);
        }
    }
}

#[test]
fn q238_a_file_system_that_is_full() {
    let test = "space::q238_a_file_system_that_is_full";
    on_small_file_system(test, 16 * MIB, fill_file_system);
}

fn fill_file_system(dir: &Path) {
    let stand = Stand::in_parent(dir);
    let image = stand.create("image.qcow2", "cluster_size=4k", "64M");
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    let mut content = vec![0; 64 << 20];
    let data = |at: u64| vec![1 + at as u8 % 100; 64 << 10];
    for round in 0..3_u64 {
        let mut at = round;
        // Until nothing fits any more.
        let refused = loop {
            let offset = at * (64 << 10) % (64 << 20);
            if let Err(error) = opened.write(offset, &data(at)) {
                let read = opened.read(offset, 64 << 10).unwrap();
                content[offset as usize..][..64 << 10].copy_from_slice(&read);
                break error;
            }
            content[offset as usize..][..64 << 10].copy_from_slice(&data(at));
            at += 3;
        };
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
        assert!(at > 20, "{at}");
        opened.flush().unwrap();
        // What is discarded gives space to the host.
        opened.backend().pdiscard(&stand.ctx, 0, 64 << 20).unwrap();
        content.fill(0);
    }
    opened.write(5 << 20, &[7; 1 << 20]).unwrap();
    content[5 << 20..6 << 20].fill(7);
    assert_same(&opened.read(0, 64 << 20).unwrap(), &content, "the disk");
    drop(opened);
    stand.check(&image);
    stand.end();
}

#[test]
fn q190_q194_first_writes_are_flushed_by_one_sync_where_a_commit_has_counted_ahead() {
    let ctx = simulated(7);
    for options in ["cluster_size=8k", "extended_l2=on", "compat=0.10"] {
        let host = SmallHost::new(image(options, "4M"));
        host.add_room(10_000);
        let disk = Disk::open(&ctx, &host, json!({}));
        let mut content = vec![0; 4 << 20];
        let syncs: Vec<usize> = (0..12)
            .map(|at| {
                disk.write(at << 18, &[1 + at as u8; 4096]).unwrap();
                content[(at as usize) << 18..][..4096].fill(1 + at as u8);
                let before = host.flushes();
                disk.flush().unwrap();
                host.flushes() - before
            })
            .collect();
        // The first commit counts eight clusters more, the next one sixteen. With the last of 64 KiB clusters the
        // file has become longer, which has to be durable first.
        let last = if options == "cluster_size=8k" { 1 } else { 2 };
        assert_eq!(syncs, [2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, last], "{options}");
        // What is killed leaks no more than that.
        let killed = Stand::in_memory();
        fs::write(killed.path("killed.qcow2"), host.content()).unwrap();
        let (report, code) = killed.qemu_img("check", &killed.path("killed.qcow2"));
        assert_eq!((code, &report["leaks"]), (3, &json!(14)), "{report}");
        killed.end();
        disk.close();
        check(host.content(), &content, options);
    }
}

/// A file of many refcount blocks, with free clusters in the first ones.
fn with_many_blocks(ctx: &AioContext) -> SmallHost {
    let host = SmallHost::new(image("cluster_size=512", "4M"));
    host.add_room(10_000);
    let disk = Disk::open(ctx, &host, json!({"discard": "unmap"}));
    // A block counts 128 KiB.
    disk.write(0, &vec![1; 3 * MIB as usize]).unwrap();
    disk.discard(256 << 10, MIB);
    disk.close();
    let host = SmallHost::new(host.content());
    host.add_room(10_000);
    host
}

/// Offsets of refcount blocks.
fn blocks(image: &[u8]) -> Vec<u64> {
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let table = word(48) as usize;
    (0..64).map(|index| word(table + index * 8)).filter(|offset| *offset != 0).collect()
}

#[test]
fn q191_a_first_allocation_reads_one_block_and_the_others_are_read_behind_it() {
    let ctx = simulated(4);
    let host = with_many_blocks(&ctx);
    let blocks = blocks(&host.content());
    assert!(blocks.len() > 20, "{}", blocks.len());
    let disk = Disk::open(&ctx, &host, json!({}));
    host.take_reads();
    // The coroutine in the background begins, and finds its read held, when the write has ended.
    let backend = disk.backend().clone();
    let reads = ctx.run(|co| {
        let source = IoVector::from(&[2; 512][..]);
        backend.co_pwritev(co, 3500 << 10, &source, WriteFlags::empty()).unwrap();
        host.take_reads()
    });
    let read = |reads: &[u64]| blocks.iter().filter(|block| reads.contains(block)).count();
    assert!(read(&reads) <= 2, "{reads:x?} of {blocks:x?}");
    drop(backend);
    let mut all = reads;
    ctx.run_until(|| {
        all.extend(host.take_reads());
        read(&all) == blocks.len()
    });
    // From now on gaps are used.
    let end = disk.backend().node().unwrap().children()[0].1.length();
    disk.write(3 * MIB, &vec![3; 400 << 10]).unwrap();
    assert_eq!(disk.backend().node().unwrap().children()[0].1.length(), end);
    disk.close();
    host.take_reads();
    ctx.run(|co| co.sleep(Duration::from_millis(100)));
    assert_eq!(host.take_reads(), Vec::<u64>::new());
}

#[test]
fn q191_q236_a_drain_holds_up_the_look_for_free_space() {
    let ctx = simulated(5);
    let host = with_many_blocks(&ctx);
    let disk = Disk::open(&ctx, &host, json!({}));
    let backend = disk.backend().clone();
    let node: Arc<BlockNode> = backend.node().unwrap();
    ctx.run(|co| {
        let source = IoVector::from(&[2; 512][..]);
        backend.co_pwritev(co, 3500 << 10, &source, WriteFlags::empty()).unwrap();
        host.hold_read(1);
    });
    ctx.run_until(|| host.held() == 1);
    let is_drained = Rc::new(Cell::new(false));
    let (done, drained, inside) = (Rc::clone(&is_drained), Arc::clone(&node), host.clone());
    ctx.spawn("drain", move |co| {
        let section = drained.co_drain(co);
        done.set(true);
        inside.take_reads();
        co.sleep(Duration::from_secs(1));
        assert_eq!(inside.take_reads(), Vec::<u64>::new(), "reads in a drained section");
        drop(section);
        done.set(false);
    });
    ctx.run(|co| co.sleep(Duration::from_millis(50)));
    assert!(!is_drained.get(), "a drain that does not wait for a read");
    host.release();
    ctx.run_until(|| is_drained.get());
    ctx.run_until(|| !is_drained.get());
    // The next allocation goes on with it.
    let blocks = blocks(&host.content());
    disk.write(3400 << 10, &[4; 512]).unwrap();
    let mut reads = Vec::new();
    ctx.run_until(|| {
        reads.extend(host.take_reads());
        blocks[10..].iter().filter(|block| reads.contains(block)).count() > 5
    });
    drop((node, backend));
    disk.close();
}

/// Reads of whole L2 tables, which only the snapshot does, are held: writes go on, in place and elsewhere, and the
/// snapshot has what was there before them.
#[test]
fn q158_writes_go_on_while_a_snapshot_is_made_and_while_one_is_deleted() {
    let ctx = simulated(6);
    let stand = Stand::in_memory();
    let create = |options: &str| {
        let path = stand.create("image.qcow2", options, "64M");
        let commands = ["write -P 1 0 2M", "write -P 1 40M 1M"].map(str::to_owned);
        stand.qemu_io(&path, &commands);
        fs::read(path).unwrap()
    };
    let host = SmallHost::new(create("cluster_size=16k"));
    host.add_room(10_000);
    let options = json!({"l2-cache-entry-size": 4096, "discard": "unmap"});
    let disk = Disk::open(&ctx, &host, options);
    let node = disk.backend().node().unwrap();
    let mut before = vec![0; 64 << 20];
    before[..2 << 20].fill(1);
    before[40 << 20..41 << 20].fill(1);
    let mut content = before.clone();
    for round in 0..2_u8 {
        // The last table is read, and then the next operation.
        let (is_done, begun) = (Rc::new(Cell::new(false)), Arc::clone(&node));
        let done = Rc::clone(&is_done);
        host.hold_read(16 << 10);
        ctx.spawn("snapshot", move |co| {
            let image = begun.co_image(co).unwrap();
            match round {
                0 => drop(image.co_create_snapshot(co, "one").unwrap()),
                _ => image.co_delete_snapshot(co, "1").unwrap(),
            }
            done.set(true);
        });
        ctx.run_until(|| host.held() == 1);
        // Whole clusters: others are read around what is written.
        for (offset, bytes) in [(0, 64 << 10), (1 << 20, 16 << 10), (20 << 20, 32 << 10)] {
            let data = vec![10 + round; bytes];
            disk.write(offset, &data).unwrap();
            content[offset as usize..][..bytes].copy_from_slice(&data);
        }
        disk.discard(40 << 20, 512 << 10);
        content[40 << 20..][..512 << 10].fill(0);
        disk.flush().unwrap();
        assert!(!is_done.get(), "writes that wait for a snapshot");
        host.release();
        ctx.run_until(|| is_done.get());
        assert_same(&disk.read(0, 64 << 20), &content, "the disk");
        if round == 0 {
            disk.flush().unwrap();
            let path = stand.path("copy.qcow2");
            fs::write(&path, host.content()).unwrap();
            let raw = stand.path("one.raw");
            let (from, to) = (tools::text(&path).to_owned(), tools::text(&raw).to_owned());
            let args = ["convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.id=1", &from, &to];
            tools::run("qemu-img", args);
            assert_same(&fs::read(raw).unwrap(), &before, "the snapshot");
        }
    }
    drop(node);
    disk.close();
    check(host.content(), &content, "after both");
    stand.end();
}
