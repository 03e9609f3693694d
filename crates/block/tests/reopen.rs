//! Other options for nodes that are in use.

mod util;

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use coblk_aio::sys::faults::Faults;
use coblk_aio::{AioContext, AioHandle, Co, IoThread, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::drivers::{Engine, File};
use coblk_block::filters::throttle::{ThrottleGroup, ThrottleLimits};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockNode, BlockdevError, CacheMode, ReadFlags,
    RemoteBackend, WriteFlags,
};
use util::bench::{Bench, IMAGE_BYTES, open_descriptors};
use util::errno;

const O_ACCMODE: u64 = libc::O_ACCMODE as u64;
const O_DIRECT: u64 = libc::O_DIRECT as u64;
const WRITABLE: u64 = libc::O_RDWR as u64;

impl Bench {
    /// Each line describes a node; `$` stands for the image.
    fn reopen(&self, lines: &[&str]) -> Result<(), BlockdevError> {
        let options = |line: &&str| {
            NodeOptions::from_keyval(line.replace('$', &self.image())).expect("options")
        };
        self.blockdevs.reopen(&self.ctx, lines.iter().map(options).collect())
    }

    #[track_caller]
    fn refused_reopen(&self, lines: &[&str], expected: &str) {
        let before = self.states();
        let error = self.reopen(lines).expect_err("refused").to_string();
        assert_eq!(error, expected.replace('$', &self.image()));
        assert_eq!(self.states(), before, "nothing has changed");
    }

    /// All that can be told of the nodes and of the image's open files.
    fn states(&self) -> (Vec<coblk_block::NodeInfo>, Vec<u64>) {
        let nodes = self.blockdevs.nodes();
        (nodes.iter().map(|node| node.describe()).collect(), flags_of(&self.image()))
    }
}

/// The flags that this process has a file open with.
fn flags_of(path: &str) -> Vec<u64> {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let of_path = links.filter(|it| fs::read_link(it.path()).is_ok_and(|it| *it == *path));
    let flags = |fd: fs::DirEntry| {
        let name = fd.file_name().into_string().unwrap();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{name}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        u64::from_str_radix(flags, 8).unwrap() & (O_ACCMODE | O_DIRECT)
    };
    of_path.map(flags).collect()
}

/// Those that it is written through: rings may have it open once more, to read.
fn writable_flags_of(path: &str) -> Vec<u64> {
    flags_of(path).into_iter().filter(|flags| flags & O_ACCMODE != 0).collect()
}

fn write(ctx: &AioContext, backend: &BlockBackend, byte: u8) -> io::Result<()> {
    backend.pwritev(ctx, 3, &IoVector::from(&[byte; 5][..]), WriteFlags::empty())
}

#[test]
fn an_image_becomes_read_only_and_writable_again() {
    let bench = Bench::new();
    let node = bench.open("raw,node-name=d0,file.driver=file,file.node-name=f0,file.filename=$");
    let node = node.unwrap();
    let tool = BlockBackend::new(&bench.ctx, "tool", Arc::clone(&node));
    write(&bench.ctx, &tool, 1).unwrap();
    let read_only = "raw,node-name=d0,read-only=on,file=f0";
    bench.reopen(&[read_only]).unwrap();
    assert!(node.is_read_only() && bench.blockdevs.node("f0").unwrap().is_read_only());
    assert!(tool.is_read_only());
    assert_eq!(errno(write(&bench.ctx, &tool, 2)), libc::EPERM);
    assert_eq!(flags_of(&bench.image()), [0]);
    // What is not mentioned goes back to its default.
    bench.reopen(&["raw,node-name=d0,file=f0"]).unwrap();
    write(&bench.ctx, &tool, 3).unwrap();
    assert_eq!(flags_of(&bench.image()), [WRITABLE]);
    assert_eq!(fs::read(bench.image()).unwrap()[..9], [7, 7, 7, 3, 3, 3, 3, 3, 7]);
    // The node itself, and not what is below.
    bench
        .reopen(&["raw,node-name=d0,read-only=on,file.driver=file,file.filename=$,\
                    file.read-only=off"])
        .unwrap();
    assert!(node.is_read_only() && !bench.blockdevs.node("f0").unwrap().is_read_only());
    assert_eq!(errno(write(&bench.ctx, &tool, 2)), libc::EPERM);
}

#[test]
fn what_a_device_writes_to_does_not_become_read_only() {
    let bench = Bench::new();
    let node = bench.open("raw,node-name=d0,file.driver=file,file.node-name=f0,file.filename=$");
    let device = BackendOptions::new("device").open(&bench.ctx, node.unwrap()).unwrap();
    let expected = "node 'd0' cannot become read-only: backend 'device' writes to it";
    bench.refused_reopen(&["raw,node-name=d0,read-only=on,file=f0"], expected);
    bench.refused_reopen(&["file,node-name=f0,read-only=on,filename=$"], expected);
    write(&bench.ctx, &device, 1).unwrap();
    drop(device);
    bench.reopen(&["raw,node-name=d0,read-only=on,file=f0"]).unwrap();
    // Who comes now reads, and writes as soon as that can be.
    let node = bench.blockdevs.node("d0").unwrap();
    let device = BackendOptions::new("device").open(&bench.ctx, node).unwrap();
    assert_eq!(errno(write(&bench.ctx, &device, 1)), libc::EPERM);
    bench.reopen(&["raw,node-name=d0,file=f0"]).unwrap();
    write(&bench.ctx, &device, 1).unwrap();
}

/// A disk that, when a backend looks what it is like, finds out whether the graph can be asked.
struct Asking {
    is_free: Arc<Mutex<Vec<bool>>>,
    home: AioHandle,
}

impl BlockDriver for Asking {
    fn format_name(&self) -> &'static str {
        "asking"
    }

    fn length(&self) -> u64 {
        IMAGE_BYTES
    }

    fn leaves_reads_unwritten(&self) -> bool {
        let (tell, told) = mpsc::channel();
        let home = self.home.clone();
        std::thread::spawn(move || tell.send(coblk_block::is_home(&home)));
        self.is_free.lock().unwrap().push(told.recv_timeout(util::PATIENCE).is_ok());
        false
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A context takes its time, and others go on.
#[test]
fn the_graph_is_free_while_backends_look_what_their_nodes_have_become() {
    let bench = Bench::new();
    let is_free = Arc::new(Mutex::new(Vec::new()));
    let asking = Asking { is_free: Arc::clone(&is_free), home: bench.ctx.handle() };
    bench.blockdevs.adopt(BlockNode::new("asking", asking)).unwrap();
    let node = bench.open("raw,node-name=d0,file=asking").unwrap();
    let thread = IoThread::new("io").unwrap();
    let _remote = RemoteBackend::open(thread.handle(), "remote", node).wait().unwrap();
    is_free.lock().unwrap().clear();
    bench.reopen(&["raw,node-name=d0,file=asking,read-only=on"]).unwrap();
    assert_eq!(*is_free.lock().unwrap(), [true]);
}

/// Ends a thread also if the test fails meanwhile.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn caches_and_engines_change_while_requests_run_on_two_contexts() {
    let bench = Bench::new();
    let node = bench.open("raw,node-name=d0,file.driver=file,file.node-name=f0,file.filename=$");
    let node = node.unwrap();
    let thread = IoThread::new("io").unwrap();
    let remote = RemoteBackend::open(thread.handle(), "remote", node.clone()).wait().unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0u32;
            while !stop.load(Ordering::Relaxed) {
                // Neither offset nor length is whole blocks.
                let data = vec![rounds as u8; 1000];
                let (result, data) =
                    remote.pwritev(100_001, data, WriteFlags::empty()).wait().unwrap();
                result.unwrap();
                let (result, read) = remote.preadv(100_001, vec![0; 1000]).wait().unwrap();
                result.unwrap();
                assert_eq!(read, data);
                rounds += 1;
            }
            rounds
        });
        let _end = StopOnDrop(&stop);
        for round in 0..40u32 {
            let (direct, uring) = (round % 2 == 0, round % 3 == 0);
            let line = format!(
                "raw,node-name=d0,file.driver=file,file.filename=$,file.cache.direct={},file.aio={}",
                if direct { "on" } else { "off" },
                if uring { "io_uring" } else { "threads" }
            );
            for at in 0..8 {
                let data = vec![round as u8; 700];
                backend.aio_pwritev(&bench.ctx, at * 701, data, WriteFlags::empty(), |_, it, _| {
                    it.unwrap();
                });
            }
            bench.reopen(&[&line]).unwrap();
            bench.ctx.run_until(|| backend.in_flight() == 0);
            let mut data = [0; 8 * 701];
            backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
            assert!(data.chunks(701).all(|it| it[..700] == [round as u8; 700] && it[700] == 7));
            let file = bench.blockdevs.node("f0").unwrap();
            assert_eq!(file.limits().request_alignment > 1, direct, "round {round}");
            let file = file.describe();
            assert_eq!(file.cache, CacheMode { direct, no_flush: false });
            assert_eq!(file.engine == Some(Engine::IoUring), uring);
            let flags = writable_flags_of(&bench.image());
            assert_eq!(flags, [WRITABLE | if direct { O_DIRECT } else { 0 }]);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
}

#[test]
fn a_flush_that_did_nothing_is_made_up_for() {
    let bench = Bench::new();
    let line = "raw,node-name=d0,cache.no-flush=on,file.driver=file,file.node-name=f0,\
                file.filename=$";
    let node = bench.open(line).unwrap();
    // Here every system call fails that is made.
    let faults = Faults::default().error_per_mille(1000);
    let options = SimulationOptions::new(1).faults(faults);
    let faulty = AioContext::test_builder().simulated(options).build().unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", Arc::clone(&node));
    let on_faulty = BlockBackend::new(&faulty, "faulty", node);
    write(&bench.ctx, &backend, 1).unwrap();
    backend.flush(&bench.ctx).unwrap();
    on_faulty.flush(&faulty).unwrap();
    drop(on_faulty);
    bench.reopen(&["raw,node-name=d0,file=f0"]).unwrap();
    let on_faulty = BlockBackend::new(&faulty, "faulty", backend.node().unwrap());
    assert_eq!(errno(on_faulty.flush(&faulty)), libc::EIO);
}

#[test]
fn another_part_of_another_node() {
    let bench = Bench::new();
    let other = bench.dir.path().join("other");
    fs::write(&other, vec![9; 4096]).unwrap();
    let other = other.to_str().unwrap();
    bench.open(&format!("file,node-name=f1,filename={other}")).unwrap();
    bench.open("file,node-name=f0,filename=$").unwrap();
    let node = bench.open("raw,node-name=d0,file=f0").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    bench.reopen(&["raw,node-name=d0,file=f0,offset=512,size=1024"]).unwrap();
    assert_eq!(backend.length().unwrap(), 1024);
    write(&bench.ctx, &backend, 1).unwrap();
    assert_eq!(fs::read(bench.image()).unwrap()[514..521], [7, 1, 1, 1, 1, 1, 7]);
    let part = "raw,node-name=d0,file=f1,offset=4096,size=512";
    bench.refused_reopen(
        &[part],
        "node 'd0': offset 4096 and size 512 reach beyond the end of node 'f1', which has 4096 bytes",
    );
    assert_eq!(backend.length().unwrap(), 1024);
    bench.reopen(&["raw,node-name=d0,file=f1,offset=4000"]).unwrap();
    write(&bench.ctx, &backend, 2).unwrap();
    assert_eq!(backend.length().unwrap(), 96);
    assert_eq!(fs::read(other).unwrap()[4002..4009], [9, 2, 2, 2, 2, 2, 9]);
    // It has no parents any more.
    bench.blockdevs.close(&bench.ctx, "f0").unwrap();
    assert_eq!(open_descriptors(&bench.image()), 0);
    let nobody = "raw,node-name=d0,file=nobody";
    bench.refused_reopen(&[nobody], "there is no node 'nobody'");
    bench.refused_reopen(
        &["raw,node-name=d0,file=d0"],
        "making node 'd0' a child of node 'd0' would create a cycle",
    );
    bench.open("null-co,node-name=n0,read-only=on,size=4096").unwrap();
    bench.refused_reopen(
        &["raw,node-name=d0,file=n0"],
        "node 'd0': its child 'n0' is read-only, so it must be read-only too",
    );
    bench.reopen(&["raw,node-name=d0,file=n0,read-only=on"]).unwrap();
    assert!(backend.is_read_only());
}

#[test]
fn a_child_is_told_by_the_node_that_it_was_opened_for_and_by_no_other() {
    let bench = Bench::new();
    bench.open("raw,node-name=top,file.driver=file,file.node-name=image,file.filename=$").unwrap();
    bench.open("raw,node-name=reader,file=image,read-only=on").unwrap();
    let image = bench.blockdevs.node("image").unwrap();
    bench.reopen(&["raw,node-name=reader,file=image,read-only=on,cache.no-flush=on"]).unwrap();
    let told = || (image.is_read_only(), image.describe().cache.no_flush);
    assert_eq!(told(), (false, false));
    bench.reopen(&["raw,node-name=top,file=image,cache.no-flush=on"]).unwrap();
    assert_eq!(told(), (false, true));
    // Nor may it be described by another.
    bench.refused_reopen(
        &["raw,node-name=reader,read-only=on,file.driver=file,file.filename=$"],
        "node 'reader': cannot change the option 'file'",
    );
}

#[test]
fn names_are_for_life() {
    let bench = Bench::new();
    bench.open("raw,node-name=d0,file.driver=file,file.node-name=f0,file.filename=$").unwrap();
    bench.open("raw,node-name=d1,file.driver=null-co,file.size=1048576").unwrap();
    let made_up = bench.blockdevs.node("d1").unwrap().children()[0].1.name().to_owned();
    assert!(made_up.starts_with('#'), "{made_up}");
    let before = bench.blockdevs.options();
    // Left out where a child is described, and used where no option can have given it.
    bench.reopen(&["raw,node-name=d0,file.driver=file,file.filename=$"]).unwrap();
    bench.reopen(&[&format!("null-co,node-name={made_up},size=1048576")]).unwrap();
    assert_eq!(bench.blockdevs.options(), before);
}

#[test]
fn nodes_that_turn_together_make_no_cycle() {
    let bench = Bench::new();
    bench.open("file,node-name=f0,filename=$").unwrap();
    bench.open(&format!("null-co,node-name=n0,size={IMAGE_BYTES}")).unwrap();
    let node = bench.open("raw,node-name=d0,file=f0").unwrap();
    bench.open("raw,node-name=d1,file=n0").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    // Each alone would do.
    bench.refused_reopen(
        &["raw,node-name=d0,file=d1", "raw,node-name=d1,file=d0"],
        "making node 'd1' a child of node 'd0' would create a cycle",
    );
    write(&bench.ctx, &backend, 1).unwrap();
    assert_eq!(fs::read(bench.image()).unwrap()[2..9], [7, 1, 1, 1, 1, 1, 7]);
    // And these only together.
    bench.reopen(&["raw,node-name=d1,file=d0"]).unwrap();
    bench.reopen(&["raw,node-name=d0,file=d1", "raw,node-name=d1,file=f0"]).unwrap();
    let children = backend.node().unwrap().describe().children;
    assert_eq!(children.iter().map(|it| &it.node[..]).collect::<Vec<_>>(), ["d1"]);
    write(&bench.ctx, &backend, 2).unwrap();
    assert_eq!(fs::read(bench.image()).unwrap()[2..9], [7, 2, 2, 2, 2, 2, 7]);
}

#[test]
fn a_throttle_node_goes_to_another_group() {
    let bench = Bench::new();
    for name in ["g0", "g1"] {
        let group = ThrottleGroup::new(name, ThrottleLimits::default()).unwrap();
        bench.blockdevs.add_object(group.name(), Arc::new(group.clone())).unwrap();
    }
    let line = "throttle,node-name=t0,throttle-group=g0,file.driver=null-co,file.node-name=n0";
    let node = bench.open(line).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    bench.refused_reopen(
        &["throttle,node-name=t0,throttle-group=g2,file=n0"],
        "there is no throttle group 'g2'",
    );
    bench.reopen(&["throttle,node-name=t0,throttle-group=g1,file=n0"]).unwrap();
    write(&bench.ctx, &backend, 1).unwrap();
    bench.blockdevs.remove_object::<ThrottleGroup>("g0").unwrap();
    assert!(bench.blockdevs.remove_object::<ThrottleGroup>("g1").is_err());
}

#[test]
fn all_of_several_or_none() {
    let bench = Bench::new();
    bench.open("file,node-name=f0,filename=$").unwrap();
    bench.open("null-co,node-name=n0").unwrap();
    let direct = "file,node-name=f0,filename=$,cache.direct=on,discard=unmap";
    bench.refused_reopen(
        &[direct, "null-co,node-name=n0,size=1024"],
        "node 'n0': cannot change the option 'size'",
    );
    bench.refused_reopen(&[direct, "null-co,node-name=n1"], "there is no node 'n1'");
    let device = BackendOptions::new("device");
    let node = bench.blockdevs.node("n0").unwrap();
    let device = device.open(&bench.ctx, node).unwrap();
    bench.refused_reopen(
        &[direct, "null-co,node-name=n0,read-only=on"],
        "node 'n0' cannot become read-only: backend 'device' writes to it",
    );
    drop(device);
    bench.reopen(&[direct, "null-co,node-name=n0,read-only=on"]).unwrap();
    assert_eq!(flags_of(&bench.image()), [WRITABLE | O_DIRECT]);
    assert!(bench.blockdevs.node("f0").unwrap().is_discard_enabled());
    assert!(bench.blockdevs.node("n0").unwrap().is_read_only());
}

#[test]
fn what_cannot_change_is_named() {
    let bench = Bench::new();
    bench.open("raw,node-name=d0,file.driver=file,file.node-name=f0,file.filename=$").unwrap();
    bench.open("raw,node-name=d1,file=f0").unwrap();
    let fixed = |line: &str, node: &str, option: &str| {
        let expected = format!("node '{node}': cannot change the option '{option}'");
        bench.refused_reopen(&[line], &expected);
    };
    fixed("null-co,node-name=f0", "f0", "driver");
    fixed("host_device,node-name=f0,filename=$", "f0", "driver");
    fixed("file,node-name=f0,filename=$.other", "f0", "filename");
    fixed("file,node-name=f0,filename=$,locking=off", "f0", "locking");
    fixed("raw,node-name=d0,file.driver=file,file.node-name=f1,file.filename=$", "d0", "file");
    // It was made for another node, and is reopened by its own name.
    fixed("raw,node-name=d0,file.driver=null-co", "f0", "driver");
    bench.refused_reopen(&["raw,file=f0"], "Parameter 'node-name' is missing");
    let line = "file,node-name=f0,filename=$";
    bench.refused_reopen(&[line, line], "node 'f0' is to be reopened twice");
}

#[test]
fn a_reopened_image_is_the_same_also_if_another_file_has_its_name() {
    let bench = Bench::new();
    let renamed = bench.dir.path().join("renamed");
    let node = bench.open("file,node-name=f0,filename=$").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    fs::rename(bench.image(), &renamed).unwrap();
    fs::write(bench.image(), [0; 4096]).unwrap();
    bench.reopen(&["file,node-name=f0,filename=$,cache.direct=on"]).unwrap();
    write(&bench.ctx, &backend, 1).unwrap();
    assert_eq!(fs::read(&renamed).unwrap()[2..9], [7, 1, 1, 1, 1, 1, 7]);
    fs::remove_file(&renamed).unwrap();
    bench.reopen(&["file,node-name=f0,filename=$,read-only=on"]).unwrap();
    assert_eq!(errno(write(&bench.ctx, &backend, 1)), libc::EPERM);
    assert_eq!(fs::read(bench.image()).unwrap(), [0; 4096]);
}

#[test]
fn an_image_stays_locked_throughout() {
    let bench = Bench::new();
    let node = bench.open("file,node-name=f0,filename=$").unwrap();
    let device = BackendOptions::new("device").open(&bench.ctx, node).unwrap();
    let stranger = || {
        let file = File::options().open(bench.image()).unwrap();
        let node = BlockNode::new("stranger", file);
        BackendOptions::new("stranger").open(&bench.ctx, node).map(drop)
    };
    assert!(stranger().is_err());
    for line in ["cache.direct=on", "cache.direct=off", "aio=io_uring", "cache.direct=on"] {
        bench.reopen(&[&format!("file,node-name=f0,filename=$,{line}")]).unwrap();
        assert!(stranger().is_err(), "{line}");
        write(&bench.ctx, &device, 1).unwrap();
        bench.open("null-co,node-name=n0").unwrap();
        bench.refused_reopen(
            &["file,node-name=f0,filename=$,cache.direct=off", "null-co,node-name=n0,size=1"],
            "node 'n0': cannot change the option 'size'",
        );
        bench.blockdevs.close(&bench.ctx, "n0").unwrap();
        assert!(stranger().is_err(), "{line}");
    }
    let read_only = "file,node-name=f0,filename=$,read-only=on";
    bench.refused_reopen(
        &[read_only],
        "node 'f0' cannot become read-only: backend 'device' writes to it",
    );
    assert!(stranger().is_err(), "refused after the images had changed places");
    drop(device);
    stranger().unwrap();
    bench.reopen(&[read_only]).unwrap();
    stranger().unwrap();
    // Who wants to write now is asked for that.
    let node = bench.blockdevs.node("f0").unwrap();
    let device = BackendOptions::new("device").open(&bench.ctx, node).unwrap();
    let file = File::options().open(bench.image()).unwrap();
    let other = BackendOptions::new("other").share_rw(true);
    let reader = other.read_only(true).open(&bench.ctx, BlockNode::new("other", file)).unwrap();
    drop(reader);
    let length = IMAGE_BYTES;
    bench.reopen(&["file,node-name=f0,filename=$"]).unwrap();
    assert!(stranger().is_err());
    assert_eq!(device.length().unwrap(), length);
    write(&bench.ctx, &device, 1).unwrap();
}
