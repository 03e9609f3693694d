//! The filters copy-before-write and snapshot-access: the bytes of an instant are kept, and read.

mod util;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, IoVectorMut};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockLimits, BlockNode, Blockdevs, Drivers, NewBitmap,
};
use coblk_jobs::{CopyBeforeWrite, SnapshotAccess};
use util::disk::{DISCARDED, Disk, OnDisk, Op, Verdict};
use util::{simulated, until};

const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 16;
const LENGTH: u64 = CLUSTER * CLUSTERS;

fn drivers() -> Drivers {
    let mut drivers = coblk_block::drivers();
    drivers.add::<CopyBeforeWrite>();
    drivers.add::<SnapshotAccess>();
    drivers
}

/// A guest, the filter below it, and a reader of the instant.
struct Scene {
    ctx: AioContext,
    blockdevs: Blockdevs,
    source: Arc<Disk>,
    target: Arc<Disk>,
    guest: BlockBackend,
    reader: BlockBackend,
}

/// The bytes of the instant are 1.
fn scene(options: &str) -> Scene {
    let ctx = simulated(1);
    let blockdevs = Blockdevs::new(drivers());
    let disk = |name: &str| {
        let disk = Disk::new(LENGTH, BlockLimits::default());
        let node = BlockNode::new(name, OnDisk(Arc::clone(&disk)));
        blockdevs.adopt(node).unwrap();
        disk
    };
    let (source, target) = (disk("source"), disk("target"));
    source.fill(1);
    let bitmap = NewBitmap::new("dirty".to_owned(), CLUSTER);
    let node = blockdevs.node("source").unwrap();
    ctx.run(|co| node.co_add_bitmap(co, bitmap)).unwrap().bits().mark(0..4 * CLUSTER);
    let open = |text: &str| blockdevs.open(&ctx, NodeOptions::from_keyval(text).unwrap());
    let filter = format!(
        "copy-before-write,node-name=cbw,file=source,target=target,min-cluster-size={CLUSTER}{options}"
    );
    let filter = open(&filter).unwrap();
    let guest = BackendOptions::new("guest").share_rw(true).open(&ctx, filter).unwrap();
    let access = open("snapshot-access,node-name=access,file=cbw").unwrap();
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reader = reader.open(&ctx, access).unwrap();
    Scene { ctx, blockdevs, source, target, guest, reader }
}

impl Scene {
    fn write(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.ctx.run(|co| self.guest.co_write(co, offset, &vec![2; bytes as usize]))
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, i32> {
        let mut data = vec![0; bytes as usize];
        let read = self.ctx.run(|co| self.reader.co_read(co, offset, &mut data));
        read.map(|()| data).map_err(|error| error.raw_os_error().unwrap())
    }

    fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    /// Something that a guest or a reader does, and its end.
    fn begin<R: 'static>(
        &self,
        act: impl FnOnce(&coblk_aio::Co<'_>) -> R + 'static,
    ) -> Rc<Cell<Option<R>>> {
        let done = Rc::<Cell<Option<R>>>::default();
        let own = Rc::clone(&done);
        self.ctx.spawn("client", move |co| own.set(Some(act(co))));
        done
    }

    fn begin_write(&self, offset: u64) -> Rc<Cell<Option<io::Result<()>>>> {
        let guest = self.guest.clone();
        self.begin(move |co| guest.co_write(co, offset, &[2; 512]))
    }

    fn begin_read(&self, offset: u64) -> Rc<Cell<Option<io::Result<u8>>>> {
        let reader = self.reader.clone();
        self.begin(move |co| {
            let mut byte = [0];
            reader.co_read(co, offset, &mut byte).map(|()| byte[0])
        })
    }
}

fn is_open<T>(done: &Cell<Option<T>>) -> bool {
    let result = done.take();
    let is_open = result.is_none();
    done.set(result);
    is_open
}

#[test]
fn j82_the_bytes_of_the_instant_are_read_whatever_guests_write() {
    let scene = scene("");
    assert_eq!(scene.read(0, LENGTH), Ok(vec![1; LENGTH as usize]));
    scene.write(CLUSTER / 2, 2 * CLUSTER).unwrap();
    scene.write(9 * CLUSTER, 1).unwrap();
    assert_eq!(scene.read(0, LENGTH), Ok(vec![1; LENGTH as usize]));
    assert_eq!(scene.source.data()[9 * CLUSTER as usize], 2);
    // What was copied is read from the target.
    scene.source.take_ops();
    scene.read(0, 3 * CLUSTER).unwrap();
    assert_eq!(scene.source.take_ops(), []);
    let write = scene.ctx.run(|co| scene.reader.co_write(co, 0, &[3; 512]));
    assert!(write.is_err());
}

#[test]
fn j82_block_status_is_that_of_the_node_or_of_the_target() {
    let scene = scene("");
    scene.write(2 * CLUSTER, CLUSTER).unwrap();
    let lengths = |from: u64| {
        let status = |co: &coblk_aio::Co<'_>| scene.reader.co_block_status(co, from, LENGTH - from);
        let extent = scene.ctx.run(status).unwrap();
        assert!(extent.data && extent.allocated && extent.stored.is_none());
        extent.bytes
    };
    assert_eq!(lengths(0), 2 * CLUSTER);
    assert_eq!(lengths(2 * CLUSTER), CLUSTER);
    assert_eq!(lengths(3 * CLUSTER + 7), LENGTH - 3 * CLUSTER - 7);
}

#[test]
fn j74_with_a_bitmap_only_what_is_dirty_there_is_kept() {
    let scene = scene(",bitmap.node=source,bitmap.name=dirty");
    scene.write(3 * CLUSTER, 2 * CLUSTER).unwrap();
    let target = scene.target.data();
    assert_eq!([3, 4].map(|cluster| target[cluster * CLUSTER as usize]), [1, 0]);
    assert_eq!(scene.read(0, 4 * CLUSTER), Ok(vec![1; 4 * CLUSTER as usize]));
    for at in [4 * CLUSTER, 4 * CLUSTER - 1] {
        assert_eq!(scene.read(at, 2), Err(libc::EACCES));
    }
    let status = |co: &coblk_aio::Co<'_>| scene.reader.co_block_status(co, 5 * CLUSTER, 1);
    assert_eq!(scene.ctx.run(status).unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn j74_options_are_checked() {
    let scene = scene("");
    let short = BlockNode::new("short", OnDisk(Disk::new(CLUSTER, BlockLimits::default())));
    scene.blockdevs.adopt(short).unwrap();
    let refused = |text: &str| {
        let text = format!("copy-before-write,node-name=other,{text}");
        let options = NodeOptions::from_keyval(&text);
        let opened = options.map_err(|error| error.to_string()).and_then(|options| {
            scene.blockdevs.open(&scene.ctx, options).map_err(|error| error.to_string())
        });
        opened.map(|_| ()).unwrap_err()
    };
    for (text, why) in [
        ("file=source,target=short", "another length"),
        ("file=source,target=source", "is the node whose bytes"),
        ("file=source,target=target,min-cluster-size=3", "power of 2"),
        ("file=source,target=target,min-cluster-size=9223372036854775808", "too large"),
        ("file=source,target=target,on-cbw-error=x", "on-cbw-error"),
        ("file=source,target=target,cbw-timeout=-1", "cbw-timeout"),
        ("file=source,target=target,bitmap.node=x,bitmap.name=dirty", "no node 'x'"),
        ("file=source,target=target,bitmap.node=source,bitmap.name=x", "'x' not found"),
        ("file=source", "target"),
        ("target=target", "file"),
    ] {
        let refused = refused(text);
        assert!(refused.contains(why), "{text}: {refused}");
    }
}

#[test]
fn j82_above_another_driver_reads_are_not_supported() {
    let scene = scene("");
    let options = NodeOptions::from_keyval("snapshot-access,node-name=other,file=target").unwrap();
    let node = scene.blockdevs.open(&scene.ctx, options).unwrap();
    let reader = BackendOptions::new("other").read_only(true).share_rw(true);
    let reader = reader.open(&scene.ctx, node).unwrap();
    let read = scene.ctx.run(|co| reader.co_read(co, 0, &mut [0; 512]));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::ENOTSUP));
}

#[test]
fn j75_writes_below_the_filter_are_refused_once_it_has_a_user() {
    let scene = scene("");
    let (source, ctx) = (scene.blockdevs.node("source").unwrap(), &scene.ctx);
    let options = BackendOptions::new("other").share_rw(true);
    assert!(options.open(ctx, Arc::clone(&source)).is_err());
    let Scene { guest, reader, blockdevs, .. } = &scene;
    drop((guest.remove_medium(ctx), reader.remove_medium(ctx)));
    // The reader's node is there, used or not.
    assert!(options.open(ctx, Arc::clone(&source)).is_err());
    blockdevs.close(ctx, "access").unwrap();
    options.open(ctx, source).unwrap();
}

#[test]
fn j82_what_is_given_up_is_neither_kept_nor_read() {
    let scene = scene("");
    scene.write(0, 1).unwrap();
    let target = scene.blockdevs.node("target").unwrap();
    target.set_discard_enabled(true);
    for name in ["access", "cbw"] {
        scene.blockdevs.node(name).unwrap().set_discard_enabled(true);
    }
    let access = scene.blockdevs.node("access").unwrap();
    let writer = BackendOptions::new("writer").share_rw(true).open(&scene.ctx, access).unwrap();
    // Whole clusters alone.
    let end = 2 * CLUSTER + CLUSTER / 2;
    scene.ctx.run(|co| writer.co_pdiscard(co, 0, end)).unwrap();
    assert_eq!(scene.target.data()[0], DISCARDED);
    assert_eq!(scene.read(0, 1), Err(libc::EACCES));
    assert_eq!(scene.read(2 * CLUSTER - 1, 1), Err(libc::EACCES));
    assert_eq!(scene.read(2 * CLUSTER, CLUSTER), Ok(vec![1; CLUSTER as usize]));
    scene.target.take_ops();
    scene.write(CLUSTER, 1).unwrap();
    assert_eq!(scene.target.take_ops(), []);
}

#[test]
fn j77_j127_a_write_waits_for_reads_of_the_instant_under_way_there_and_they_for_nothing() {
    let scene = scene("");
    scene.source.judge(|op| match op {
        Op::Read(at, bytes) if bytes < CLUSTER && at < CLUSTER => Verdict::Hold,
        _ => Verdict::Go,
    });
    let read = scene.begin_read(5);
    scene.settle();
    let (there, elsewhere) = (scene.begin_write(1000), scene.begin_write(4 * CLUSTER));
    let after = scene.begin_write(3000);
    until(&scene.ctx, || !is_open(&elsewhere));
    scene.ctx.run(|co| co.sleep(Duration::from_secs(10)));
    assert!(is_open(&there) && is_open(&after), "a write has overtaken a read");
    assert_eq!(scene.source.data()[1000], 1);
    // The target has the cluster by now: a later read is not held up.
    scene.source.judge(|_| Verdict::Go);
    let late = scene.begin_read(7);
    until(&scene.ctx, || !is_open(&late));
    assert_eq!(late.take().unwrap().unwrap(), 1);
    assert!(is_open(&there) && is_open(&after));
    scene.source.release();
    until(&scene.ctx, || !is_open(&there) && !is_open(&after));
    assert_eq!(read.take().unwrap().unwrap(), 1);
}

#[test]
fn j79_a_broken_snapshot_is_not_read_any_more() {
    let scene = scene(",on-cbw-error=break-snapshot,x-coblk-hold=0");
    scene.write(0, 1).unwrap();
    scene.source.judge(|op| match op {
        Op::Read(at, bytes) if bytes < CLUSTER && at >= 8 * CLUSTER => Verdict::Hold,
        _ => Verdict::Go,
    });
    let read = scene.begin_read(8 * CLUSTER);
    scene.settle();
    scene.target.judge(|_| Verdict::Fail(libc::EIO));
    scene.write(4 * CLUSTER, 1).unwrap();
    assert_eq!(scene.source.data()[4 * CLUSTER as usize], 2);
    // This one does not wait for the read, as nothing is kept any more.
    scene.write(8 * CLUSTER, 1).unwrap();
    scene.source.release();
    until(&scene.ctx, || !is_open(&read));
    assert_eq!(read.take().unwrap().unwrap_err().raw_os_error(), Some(libc::EACCES));
    for at in [0, 4 * CLUSTER, 12 * CLUSTER] {
        assert_eq!(scene.read(at, 1), Err(libc::EACCES));
    }
}

#[test]
fn j79_a_write_waits_for_so_long_and_its_copy_goes_on() {
    for (options, errno) in
        [("", Some(libc::ETIMEDOUT)), (",on-cbw-error=break-snapshot,x-coblk-hold=0", None)]
    {
        let scene = scene(&format!(",cbw-timeout=2{options}"));
        scene.target.judge(|op| match op {
            Op::Write(..) => Verdict::Hold,
            _ => Verdict::Go,
        });
        let (write, same) = (scene.begin_write(0), scene.begin_write(4096));
        scene.ctx.run(|co| co.sleep(Duration::from_millis(1900)));
        assert!(is_open(&write) && is_open(&same));
        scene.ctx.run(|co| co.sleep(Duration::from_millis(200)));
        for done in [write, same] {
            let result = done.take().expect("it waits");
            assert_eq!(result.err().and_then(|error| error.raw_os_error()), errno);
        }
        assert_eq!(scene.source.data()[0], if errno.is_some() { 1 } else { 2 });
        scene.target.judge(|_| Verdict::Go);
        scene.target.release();
        // The copy has gone on by itself.
        until(&scene.ctx, || scene.target.data()[0] == 1);
        if errno.is_some() {
            scene.write(0, 1).unwrap();
            assert_eq!(scene.read(0, 2), Ok(vec![1; 2]));
        } else {
            assert_eq!(scene.read(0, 2), Err(libc::EACCES));
        }
    }
}

#[test]
fn j130_guests_go_on_once_old_bytes_are_read_as_long_as_few_are_held() {
    let scene = scene(",on-cbw-error=break-snapshot,x-coblk-hold=131072");
    scene.target.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    // The target does not answer.
    scene.write(CLUSTER - 1, 2).unwrap();
    scene.write(0, 1).unwrap();
    assert_eq!(scene.source.data()[0], 2);
    assert_eq!(scene.read(0, LENGTH), Ok(vec![1; LENGTH as usize]));
    let status = |co: &coblk_aio::Co<'_>| scene.reader.co_block_status(co, 5, LENGTH - 5);
    assert_eq!(scene.ctx.run(status).unwrap().bytes, 2 * CLUSTER - 5);
    // That is all that may be held.
    let third = scene.begin_write(4 * CLUSTER);
    scene.ctx.run(|co| co.sleep(Duration::from_secs(10)));
    assert!(is_open(&third));
    assert_eq!(scene.read(0, LENGTH), Ok(vec![1; LENGTH as usize]));
    scene.target.judge(|_| Verdict::Go);
    until(&scene.ctx, || !scene.target.release() && !is_open(&third));
    assert!(third.take().unwrap().is_ok());
    assert_eq!(scene.read(0, LENGTH), Ok(vec![1; LENGTH as usize]));
    scene.source.take_ops();
    assert_eq!(scene.read(0, 2 * CLUSTER), Ok(vec![1; 2 * CLUSTER as usize]));
    assert_eq!(scene.source.take_ops(), []);
}

#[test]
fn j130_held_bytes_that_cannot_be_written_break_the_snapshot() {
    let scene = scene(",on-cbw-error=break-snapshot,x-coblk-hold=67108864");
    scene.target.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    scene.write(0, 1).unwrap();
    assert_eq!(scene.read(0, 1), Ok(vec![1]));
    scene.target.fail_held(libc::ENOSPC);
    until(&scene.ctx, || scene.target.held() == 1);
    scene.target.release();
    until(&scene.ctx, || scene.read(0, 1) == Err(libc::EACCES));
}

#[test]
fn j127_j130_no_guest_overtakes_a_reader_though_its_old_bytes_are_held() {
    let scene = scene(",on-cbw-error=break-snapshot,x-coblk-hold=67108864");
    scene.source.judge(|op| match op {
        Op::Read(at, bytes) if bytes < CLUSTER && at < CLUSTER => Verdict::Hold,
        _ => Verdict::Go,
    });
    let read = scene.begin_read(5);
    until(&scene.ctx, || scene.source.held() == 1);
    let (there, after) = (scene.begin_write(0), scene.begin_write(1024));
    scene.ctx.run(|co| co.sleep(Duration::from_secs(10)));
    assert!(is_open(&there) && is_open(&after), "a write has overtaken a read");
    scene.source.release();
    until(&scene.ctx, || !is_open(&there) && !is_open(&after));
    assert_eq!(read.take().unwrap().unwrap(), 1);
}

#[test]
fn j81_zeroes_are_copied_as_zeroes() {
    let ctx = simulated(1);
    let blockdevs = Blockdevs::new(drivers());
    let target = Disk::new(LENGTH, BlockLimits::default());
    target.fill(9);
    blockdevs.adopt(BlockNode::new("target", OnDisk(Arc::clone(&target)))).unwrap();
    let text = format!(
        "copy-before-write,node-name=cbw,target=target,min-cluster-size={CLUSTER},\
         file.driver=null-co,file.size={LENGTH},file.read-zeroes=on"
    );
    let filter = blockdevs.open(&ctx, NodeOptions::from_keyval(&text).unwrap()).unwrap();
    let guest = BackendOptions::new("guest").open(&ctx, filter).unwrap();
    ctx.run(|co| guest.co_write(co, 1, &[2; 2])).unwrap();
    let ops = target.take_ops();
    assert!(matches!(ops[..], [Op::Zeroes(0, CLUSTER, _)]), "{ops:?}");
}

#[test]
fn the_instant_is_not_cut_off() {
    let scene = scene("");
    assert!(scene.ctx.run(|co| scene.guest.co_truncate(co, CLUSTER)).is_err());
    assert_eq!(scene.read(0, LENGTH), Ok(vec![1; LENGTH as usize]));
    let mut vector = vec![0; 8];
    let read = |co: &coblk_aio::Co<'_>| {
        scene.reader.co_preadv(co, LENGTH - 8, &mut IoVectorMut::from(&mut vector[..]))
    };
    scene.ctx.run(read).unwrap();
    assert_eq!(vector, [1; 8]);
}
