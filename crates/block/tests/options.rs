//! Nodes from options: what is opened, what is refused, and what is left after that.

use std::fs;
use std::sync::Arc;

use coblk_aio::{IoVector, IoVectorMut};
use coblk_block::drivers::{FileNodeOptions, Locking, NullOptions, RawOptions};
use coblk_block::filters::blkdebug::{BlkDebugOptions, InjectError, SetState};
use coblk_block::filters::blklogwrites::BlkLogWritesOptions;
use coblk_block::filters::throttle::{Rate, ThrottleGroup, ThrottleLimits, ThrottleNodeOptions};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, DebugEvent, ReadFlags, WriteFlags};

use crate::util::PATIENCE;
use crate::util::bench::{Bench, IMAGE_BYTES, open_descriptors};

#[test]
fn a_stack_of_nodes_from_one_description() {
    let bench = Bench::new();
    let json = format!(
        r#"{{"driver": "raw", "node-name": "d0", "offset": 4096, "size": 8192, "file":
            {{"driver": "file", "node-name": "f0", "filename": "{}", "aio": "io_uring",
              "cache": {{"direct": true}}}}}}"#,
        bench.image()
    );
    let node = bench.blockdevs.open(&bench.ctx, NodeOptions::from_json(&json).unwrap()).unwrap();
    assert_eq!((node.name(), node.length(), node.is_read_only()), ("d0", 8192, false));
    assert_eq!(bench.names(), ["d0", "f0"]);
    let backend = BlockBackend::new(&bench.ctx, "drive", Arc::clone(&node));
    backend.pwritev(&bench.ctx, 5, &IoVector::from(&b"hello"[..]), WriteFlags::FUA).unwrap();
    assert_eq!(&fs::read(bench.image()).unwrap()[4099..4107], b"\x07\x07hello\x07");
    assert_eq!(
        bench.blockdevs.close(&bench.ctx, "d0").unwrap_err().to_string(),
        "node 'd0' is in use"
    );
    drop((backend, node));
    assert_eq!(
        bench.blockdevs.close(&bench.ctx, "f0").unwrap_err().to_string(),
        "there is no node 'f0'"
    );
    bench.blockdevs.close(&bench.ctx, "d0").unwrap();
    assert!(bench.names().is_empty());
    assert_eq!(open_descriptors(&bench.image()), 0);
}

#[test]
fn names_are_unique_while_their_nodes_live() {
    let bench = Bench::new();
    bench.open("driver=null-co,node-name=a").unwrap();
    bench.refused("driver=null-co,node-name=a", "there is a node 'a' already");
    bench.refused("driver=raw,file.driver=null-co,file.node-name=a", "a node 'a' already");
    // A node is not there for its own child.
    bench.refused("driver=raw,node-name=b,file=b", "there is no node 'b'");
    bench.refused("driver=raw,node-name=b,file.driver=null-co,file.node-name=b", "a node 'b'");
    bench.open("driver=raw,node-name=b,file.driver=null-co,file.node-name=c").unwrap();
    bench.refused("driver=null-co,node-name=c", "there is a node 'c' already");
    bench.blockdevs.close(&bench.ctx, "b").unwrap();
    bench.open("driver=null-co,node-name=c").unwrap();
    let error = bench
        .blockdevs
        .open(&bench.ctx, NodeOptions::new(FileNodeOptions::new("a")).named("#block1"));
    assert!(error.err().unwrap().to_string().contains("'#block1' is not a name"));
    let unnamed = bench.open("driver=null-aio").unwrap();
    assert!(unnamed.name().starts_with("#block"), "{}", unnamed.name());
    assert_ne!(unnamed.name(), bench.open("driver=null-aio").unwrap().name());
}

#[test]
fn what_cannot_be_opened_is_named_and_leaves_nothing() {
    let bench = Bench::new();
    bench.refused("driver=file,node-name=f,filename=$.not", "node 'f': cannot open image");
    bench.refused("driver=raw,file=nobody", "there is no node 'nobody'");
    bench.refused("driver=throttle,throttle-group=g,file.driver=null-co", "no throttle group 'g'");
    let line = "driver=raw,node-name=r,file.driver=file,file.filename=$,offset=2097152";
    bench.refused(line, "node 'r': offset 2097152 is beyond the end");
    bench.refused("driver=host_device,filename=$", "it is a regular file");
    // The first child is closed again when the second cannot be opened.
    let line =
        "driver=blklogwrites,file.driver=file,file.filename=$,log.driver=file,log.filename=/";
    bench.refused(line, "it is a directory");
}

#[test]
fn read_only_is_inherited_and_not_to_be_undone_above() {
    let bench = Bench::new();
    let line = "driver=raw,read-only=on,file.driver=file,file.node-name=f,file.filename=$";
    let node = bench.open(line).unwrap();
    assert!(node.is_read_only() && bench.blockdevs.node("f").unwrap().is_read_only());
    let error = bench.open("driver=raw,node-name=w,file=f").err().unwrap().to_string();
    assert_eq!(error, "node 'w': its child 'f' is read-only, so it must be read-only too");
    assert!(bench.open("driver=raw,file=f,auto-read-only=on").unwrap().is_read_only());
    // A node may be it above one that is not.
    bench.open("driver=null-co,node-name=rw").unwrap();
    let above = bench.open("driver=raw,file=rw,read-only=on").unwrap();
    assert!(above.is_read_only() && !bench.blockdevs.node("rw").unwrap().is_read_only());
    let backend = BlockBackend::new(&bench.ctx, "drive", above);
    let error = backend
        .pwritev(&bench.ctx, 0, &IoVector::from(&[0; 512][..]), WriteFlags::empty())
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn auto_read_only_opens_what_may_not_be_written() {
    // No user may write to this file, root included.
    let (bench, path) = (Bench::new(), "/sys/kernel/notes");
    let options = NodeOptions::new(FileNodeOptions::new(path)).named("notes");
    let error = bench.blockdevs.open(&bench.ctx, options.clone()).err().unwrap().to_string();
    assert!(error.contains("for writing"), "{error}");
    let node = bench.blockdevs.open(&bench.ctx, options.auto_read_only(true)).unwrap();
    assert!(node.is_read_only());
}

#[test]
fn discards_go_down_only_where_asked_for() {
    let bench = Bench::new();
    let child = "file.driver=file,file.node-name=f,file.filename=$";
    let ignore = bench.open(&format!("driver=raw,{child}")).unwrap();
    assert!(!ignore.is_discard_enabled());
    // Down from there nothing stands in the way of what the top asks for.
    assert!(bench.blockdevs.node("f").unwrap().is_discard_enabled());
    assert!(bench.open("driver=null-co,discard=unmap").unwrap().is_discard_enabled());
}

#[test]
fn throttle_groups_are_named() {
    let bench = Bench::new();
    let limits = ThrottleLimits { iops_total: Rate::new(1000), ..ThrottleLimits::default() };
    let group = ThrottleGroup::new("g", limits).unwrap();
    let group = Arc::new(group);
    bench.blockdevs.add_object("g", Arc::clone(&group)).unwrap();
    let error = bench.blockdevs.add_object("g", group).unwrap_err().to_string();
    assert_eq!(error, "there is a throttle group 'g' already");
    bench.open("driver=throttle,node-name=t,throttle-group=g,file.driver=null-co").unwrap();
    let error = bench.blockdevs.remove_object::<ThrottleGroup>("g").unwrap_err().to_string();
    assert_eq!(error, "throttle group 'g' is in use");
    bench.blockdevs.close(&bench.ctx, "t").unwrap();
    bench.blockdevs.remove_object::<ThrottleGroup>("g").unwrap();
    assert!(bench.blockdevs.object::<ThrottleGroup>("g").is_none());
}

#[test]
fn filters_work_as_described() {
    let bench = Bench::new();
    let json = format!(
        r#"{{"driver": "blkdebug", "inject-error": [{{"iotype": "read", "errno": 28, "once": true}}],
            "image": {{"driver": "blklogwrites", "log": {{"driver": "null-co"}},
            "file": {{"driver": "file", "filename": "{}"}}}}}}"#,
        bench.image()
    );
    let node = bench.blockdevs.open(&bench.ctx, NodeOptions::from_json(&json).unwrap()).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    let mut byte = [0];
    let error = backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut byte[..])).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28));
    backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut byte[..])).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn blkdebug_asks_for_blocks_and_permissions() {
    let bench = Bench::new();
    let line = "blkdebug,node-name=d0,align=4096,max-transfer=8192,take-child-perms.0=resize,\
                unshare-child-perms.0=write,image.driver=file,image.node-name=f0,image.filename=$";
    let node = bench.open(line).unwrap();
    let limits = node.limits();
    assert_eq!((limits.request_alignment, limits.max_transfer), (4096, 8192));
    // It passes the flags of requests on, as it does without such options.
    let flags = (ReadFlags::all(), WriteFlags::all());
    assert_eq!((limits.read_flags, limits.write_flags), flags);
    let backend = BlockBackend::new(&bench.ctx, "drive", Arc::clone(&node));
    let data = [1; 3 * 8192];
    backend.pwritev(&bench.ctx, 100, &IoVector::from(&data[..]), WriteFlags::empty()).unwrap();
    let image = fs::read(bench.image()).unwrap();
    assert_eq!((image[99], &image[100..100 + data.len()]), (7, &data[..]));
    assert_eq!(image[100 + data.len()], 7);
    // An image is locked by the users of its node, and not without users.
    let file = bench.blockdevs.node("f0").unwrap();
    let device = BackendOptions::new("device").share_rw(true);
    let first = device.open(&bench.ctx, Arc::clone(&node)).unwrap();
    let error = BackendOptions::new("other").share_rw(true).open(&bench.ctx, file.clone());
    let error = error.err().expect("not shared").to_string();
    assert!(error.contains("which node 'd0' does not share"), "{error}");
    let reader = BackendOptions::new("other").read_only(true);
    let error = reader.open(&bench.ctx, file.clone()).err().expect("taken").to_string();
    assert!(error.starts_with("node 'd0' needs write"), "{error}");
    drop(first);
    let error = reader.open(&bench.ctx, file).err().expect("still taken").to_string();
    assert!(error.starts_with("node 'd0' needs resize permission"), "{error}");
}

#[test]
fn a_log_has_sectors_as_asked() {
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    fs::write(&log, vec![0; IMAGE_BYTES as usize]).unwrap();
    for size in [512u32, 4096] {
        let line = format!(
            "blklogwrites,node-name=l0,file.driver=null-co,log.driver=file,log.filename={},\
             log-sector-size={size}",
            log.display()
        );
        let node = bench.open(&line).unwrap();
        assert_eq!(node.limits().request_alignment, size);
        drop(node);
        bench.blockdevs.close(&bench.ctx, "l0").unwrap();
        assert_eq!(fs::read(&log).unwrap()[24..28], size.to_le_bytes());
    }
    // Typed options may say anything.
    let [file, log] = [(); 2].map(|()| NodeOptions::from_keyval("null-co").unwrap());
    let options = NodeOptions::new(BlkLogWritesOptions::new(file, log).log_sector_size(3));
    let error = bench.blockdevs.open(&bench.ctx, options).err().unwrap();
    let expected = "option 'log-sector-size': 3 is not a power of two from 512 to 65536";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn what_is_closed_is_flushed() {
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    fs::write(&log, vec![0; IMAGE_BYTES as usize]).unwrap();
    let line = format!(
        "blklogwrites,node-name=logged,file.driver=file,file.filename=$,log.driver=file,log.filename={}",
        log.display()
    );
    let node = bench.open(&line).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    backend.pwritev(&bench.ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    // The superblock counts entries, and is written by flushes only.
    let entries = || u64::from_le_bytes(fs::read(&log).unwrap()[16..24].try_into().unwrap());
    assert_eq!(entries(), 0);
    drop(backend);
    bench.blockdevs.close(&bench.ctx, "logged").unwrap();
    assert_eq!(entries(), 2, "the write and the flush");
}

/// A request to this disk takes an hour.
const SLOW: &str = "null-co,node-name=slow,latency-ns=3600000000000";

#[test]
fn what_was_never_written_is_closed_without_a_flush() {
    let bench = Bench::new();
    for options in [SLOW, "raw,node-name=slow,file.driver=null-co,file.latency-ns=3600000000000"] {
        bench.open(options).unwrap();
        let blockdevs = Arc::clone(&bench.blockdevs);
        let closed = bench.ctx.run(|co| {
            co.timeout(PATIENCE, "close", move |co| blockdevs.co_close(co, "slow").unwrap())
        });
        assert!(closed.is_ok(), "{options}: it waits for the disk");
    }
}

#[test]
fn what_was_written_below_the_node_that_is_closed_is_flushed() {
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    fs::write(&log, vec![0; IMAGE_BYTES as usize]).unwrap();
    let line = format!(
        "raw,node-name=top,file.driver=blklogwrites,file.node-name=logged,file.file.driver=file,\
         file.file.filename=$,file.log.driver=file,file.log.filename={}",
        log.display()
    );
    bench.open(&line).unwrap();
    let logged = bench.blockdevs.node("logged").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", logged);
    backend.pwritev(&bench.ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    drop(backend);
    // Nothing was written through this one.
    bench.blockdevs.close(&bench.ctx, "top").unwrap();
    let entries = u64::from_le_bytes(fs::read(&log).unwrap()[16..24].try_into().unwrap());
    assert_eq!(entries, 2, "the write and the flush");
}

#[test]
fn a_stack_of_nodes_has_a_limit() {
    let bench = Bench::new();
    let open =
        |line: &str| bench.blockdevs.open(&bench.ctx, NodeOptions::from_keyval(line).unwrap());
    open("driver=null-co,node-name=n0,size=1048576").unwrap();
    let mut height = 0;
    let error = loop {
        match open(&format!("driver=raw,node-name=n{},file=n{height}", height + 1)) {
            Ok(_) => height += 1,
            Err(error) => break error,
        }
        assert!(height < 1000);
    };
    assert!(error.to_string().contains("more than 256 levels of children"), "{error}");
    assert_eq!(height, 256);
    // Nothing is left of the one that was refused.
    bench.blockdevs.close(&bench.ctx, "n256").unwrap();
}

/// Nothing is opened, locked or written on the way to a chain that is too high.
#[test]
fn a_chain_that_is_too_high_is_refused_before_a_file_is_opened() {
    let bench = Bench::new();
    bench.open("null-co,node-name=n0,size=16777216").unwrap();
    for level in 1..=256 {
        bench.open(&format!("raw,node-name=n{level},file=n{}", level - 1)).unwrap();
    }
    let why = "node 'top' would have more than 256 levels of children";
    bench.refused("raw,node-name=top,file=n256", why);
    bench.refused("blklogwrites,node-name=top,file.driver=file,file.filename=$,log=n256", why);
    // Opened first, this one would be what is wrong.
    bench.refused("blklogwrites,node-name=top,file.driver=file,file.filename=$.not,log=n256", why);
    // A log is begun when it is opened.
    bench.refused("blklogwrites,node-name=top,file=n256,log.driver=file,log.filename=$", why);
    assert!(fs::read(bench.image()).unwrap().iter().all(|byte| *byte == 7), "it was written to");
    // What is described counts as what is there.
    let deep = "blklogwrites,node-name=b,file.driver=file,file.filename=$,log.driver=raw,";
    let line = format!("{deep}log.node-name=mid,log.file=n255");
    bench.refused(&line, "node 'b' would have more than 256 levels of children");
    bench.open(&format!("{deep}log.node-name=mid,log.file=n254")).unwrap();
}

/// An embedder makes options of every driver in code.
#[test]
fn typed_options_are_made_by_constructors() {
    let null = || NodeOptions::new(NullOptions::default().size(1 << 20).read_zeroes(true));
    let mut file = FileNodeOptions::new("a.img");
    file.locking = Locking::Off;
    let mut debug = BlkDebugOptions::new(null());
    debug.inject_error.push(InjectError::new(libc::ENOSPC));
    debug.set_state.push(SetState::new(DebugEvent::L2Load, 2));
    debug.constraints.align = 512;
    let all: [(NodeOptions, &str); 6] = [
        (null(), "null-co,latency-ns=0,read-zeroes=on,size=1048576"),
        (NodeOptions::new(file), "file,aio=threads,filename=a.img,locking=off"),
        (NodeOptions::new(RawOptions::new("a").part(512, Some(5))), "raw,file=a,offset=512,size=5"),
        (NodeOptions::new(debug), "blkdebug,align=512,image.driver=null-co,"),
        (NodeOptions::new(ThrottleNodeOptions::new("a", "g")), "throttle,file=a,throttle-group=g"),
        (
            NodeOptions::new(BlkLogWritesOptions::new("a", "b").log_sector_size(512)),
            "blklogwrites,file=a,log=b,log-sector-size=512",
        ),
    ];
    for (options, expected) in all {
        let line = coblk_qapi::to_argument(&options, "driver").into_string().unwrap();
        assert!(line.contains(expected) || line.starts_with(expected), "{line}");
        let read = NodeOptions::from_keyval(&line).unwrap();
        assert_eq!(coblk_block::drivers().resolve(read).unwrap(), options);
    }
}
