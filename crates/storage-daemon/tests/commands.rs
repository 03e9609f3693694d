//! Commands of the daemon that wait: for each other, for disks that do not answer, and while it ends.
#![forbid(unsafe_code)]

mod util;

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;

use coblk::options::NodeOptions;
use coblk::{AioContext, Co};
use coblk_storage_daemon::daemon::{Daemon, DaemonError};
use coblk_storage_daemon::objects::{ObjectPlace, ObjectType};
use coblk_storage_daemon::options::from_argument;
use coblk_tests::nbd::{MAGIC, choose, request};
use coblk_tests::{sandbox, tools};
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Place, wait_until};

/// What has become of a command.
type Done<R> = Rc<Cell<Option<Result<R, DaemonError>>>>;

/// Begins a command, which suspends before it has done anything.
fn begin<R: 'static>(
    ctx: &AioContext,
    daemon: &Rc<Daemon>,
    command: impl FnOnce(&Rc<Daemon>, &Co<'_>) -> Result<R, DaemonError> + 'static,
) -> Done<R> {
    let done = Rc::new(Cell::new(None));
    let (own_done, own_daemon) = (Rc::clone(&done), Rc::clone(daemon));
    ctx.spawn("command", move |co| own_done.set(Some(command(&own_daemon, co))));
    assert!(done.take().is_none(), "it suspends");
    done
}

/// Objects that the loop has to turn for while they are made.
struct SlowType;

#[derive(Clone, serde::Deserialize, serde::Serialize)]
struct NoOptions {}

impl ObjectType for SlowType {
    const NAME: &'static str = "slow";
    type Options = NoOptions;
    type Object = ();

    fn co_make(&self, place: &ObjectPlace<'_, '_>, _: &NoOptions) -> Result<(), DaemonError> {
        place.co.yield_now();
        Ok(())
    }
}

#[test]
fn c85_a_command_that_comes_back_after_the_end_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let daemon = Daemon::builder().object_type(SlowType).build(&ctx);
    let file = format!("file,node-name=disk,filename={}", image.display());
    let node = NodeOptions::from_keyval(&file).unwrap();
    let added = begin(&ctx, &daemon, |daemon, co| daemon.blockdev_add(co, node).map(drop));
    let inet = from_argument("addr.type=inet,addr.host=127.0.0.1,addr.port=0", "addr").unwrap();
    let started = begin(&ctx, &daemon, |daemon, co| daemon.nbd_server_start(co, inet));
    let slow = from_argument("slow,id=slow", "qom-type").unwrap();
    let made = begin(&ctx, &daemon, |daemon, co| daemon.object_add(co, slow));
    ctx.run(|co| daemon.co_shutdown(co));
    for (what, result) in [("node", added), ("server", started), ("object", made)] {
        let result = result.take();
        let refused = matches!(result, Some(Err(DaemonError::ShuttingDown)));
        assert!(refused, "{what}: {result:?}");
    }
    assert_eq!(daemon.blockdevs().nodes().len(), 0);
    assert_eq!(daemon.nbd_connections(), None, "there is a server");
    assert!(daemon.objects().is_empty());
}

/// Two monitors.
const MONITORS: &str = "--chardev socket,id=c0,path=@/a.sock,server=on,wait=off --monitor chardev=c0 \
    --chardev socket,id=c1,path=@/b.sock,server=on,wait=off --monitor chardev=c1";

/// What is done with the image while another disk does not answer.
fn use_another_disk(qmp: &mut Client, place: &Place) {
    let file = json!({"driver": "file", "node-name": "disk", "filename": place.image()});
    qmp.run("blockdev-add", file.clone());
    qmp.run("block_resize", json!({"node-name": "disk", "size": util::SIZE * 2}));
    qmp.run("block_resize", json!({"node-name": "disk", "size": util::SIZE}));
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    assert!(nodes.as_array().unwrap().len() >= 2, "{nodes}");
    qmp.run("query-blockstats", json!({}));
    let export = json!({"type": "vhost-user-blk", "id": "v0", "node-name": "disk", "writable": true,
        "addr": {"type": "unix", "path": place.path("vhost.sock")}});
    qmp.run("block-export-add", export);
    qmp.run("block-export-del", json!({"id": "v0"}));
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED"), json!({"id": "v0"}));
    qmp.run("blockdev-del", json!({"node-name": "disk"}));
}

#[test]
fn a_command_that_waits_for_a_dead_disk_fails_in_time_and_stops_no_other_monitor() {
    let slow = "driver=null-co,node-name=dead,size=1048576,latency-ns=3600000000000";
    let place = Place::new();
    let daemon = place.start(&format!(
        "{MONITORS} --blockdev {slow} --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=dead,name=disk"
    ));
    let mut client = choose(&place.socket());
    client.write_all(&request(MAGIC, 0, 0, 4096, 512)).unwrap();
    // Its answer says that the request before it has been read.
    client.write_all(&request(MAGIC, 0, 99, 0, 0)).unwrap();
    client.read_exact(&mut [0; 16]).unwrap();
    let mut a = Client::new(&place.path("a.sock"));
    let mut b = Client::new(&place.path("b.sock"));
    let options = json!({"driver": "null-co", "node-name": "dead", "size": 1 << 20,
        "latency-ns": 3_600_000_000_000u64});
    a.send("blockdev-reopen", json!({"options": [options]}));
    use_another_disk(&mut b, &place);
    assert!(!a.is_answered(), "the dead disk has answered: {}", a.answer());
    let expected = "node 'dead' still has requests in flight after 10 s";
    assert_eq!(a.answer()["error"]["desc"], json!(expected));
    a.send("nbd-server-stop", json!({}));
    use_another_disk(&mut b, &place);
    assert!(!a.is_answered(), "the dead disk has answered: {}", a.answer());
    let answer = a.answer();
    let desc = answer["error"]["desc"].as_str().unwrap_or_default();
    assert!(desc.starts_with("Export 'e0' still waits for requests on node 'dead'"), "{answer}");
    daemon.signal(Signal::KILL);
}

/// A file whose server can be stopped: then system calls on it hang.
struct Stoppable {
    file: PathBuf,
    server: Child,
}

impl Stoppable {
    fn new(dir: &Path) -> Stoppable {
        let file = dir.join("fuse.img");
        fs::write(&file, "").unwrap();
        let export = format!("fuse,id=f,node-name=n,mountpoint={},writable=on", tools::text(&file));
        let node = "null-co,node-name=n,size=1048576,read-zeroes=on";
        let args = ["--blockdev", node, "--export", &export];
        let server = tools::command("qemu-storage-daemon").args(args).spawn();
        let server = server.expect("this test needs qemu-storage-daemon");
        wait_until("the file is there", || fs::metadata(&file).unwrap().len() == 1 << 20);
        Stoppable { file, server }
    }

    fn signal(&self, signal: Signal) {
        util::kill(self.server.id(), signal);
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let _ = self.server.wait();
    }
}

#[test]
fn a_query_leaves_out_what_a_dead_disk_does_not_tell() {
    let test = "a_query_leaves_out_what_a_dead_disk_does_not_tell";
    sandbox::with_own_mounts(test, env!("CARGO_TARGET_TMPDIR").as_ref(), |_| {
        let place = Place::new();
        let dead = Stoppable::new(&place.path(""));
        let node = format!("file,node-name=dead,filename={}", tools::text(&dead.file));
        let daemon = place.start(&format!(
            "{MONITORS} --blockdev {node} --blockdev file,node-name=other,filename=@/disk.img"
        ));
        // Let go on before the daemon is waited for.
        let dead = dead;
        let mut qmp = Client::new(&place.path("a.sock"));
        let mut sizes = || sizes_of(&mut qmp);
        assert_eq!(sizes(), [true, true]);
        dead.signal(Signal::STOP);
        // The kernel knows it for another second.
        wait_until("the size of the dead disk is missing", || sizes() == [false, true]);
        let mut b = Client::new(&place.path("b.sock"));
        b.run("query-named-block-nodes", json!({}));
        b.run("blockdev-del", json!({"node-name": "other"}));
        use_another_disk(&mut b, &place);
        dead.signal(Signal::CONT);
        wait_until("it has answered", || sizes_of(&mut b) == [true]);
        daemon.stop(Signal::TERM);
    });
}

/// Which nodes have one.
fn sizes_of(qmp: &mut Client) -> Vec<bool> {
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    let nodes = nodes.as_array().unwrap().iter();
    nodes.map(|node| node["image"].get("actual-size").is_some()).collect()
}
