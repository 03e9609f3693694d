//! The daemon inside another program: exports are removed, stop at errors and go on, and events tell
//! of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use coblk::block::drivers::Null;
use coblk::block::{
    Background, BlockNode, Child, ChildRole, ErrorAction, Filter, IoStatus, RequestKind,
};
use coblk::export::RemoveMode;
use coblk::options::NodeOptions;
use coblk::{AioContext, AioHandle, Co};
use coblk_storage_daemon::daemon::{Daemon, DaemonError, Event, IoError, ShutdownCause};
use coblk_storage_daemon::options::from_argument;
use coblk_tests::nbd::{MAGIC, choose, request};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done on the daemon's thread.
type Task = Box<dyn FnOnce(&Rc<Daemon>, &Co<'_>) + Send>;

/// A daemon on a thread of its own, with an NBD server.
struct Running {
    dir: tempfile::TempDir,
    tasks: Sender<Task>,
    handle: AioHandle,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new() -> Running {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (tasks, to_do) = channel::<Task>();
        let (tell, events) = channel();
        let (started, handle) = channel();
        let socket = dir.path().join("nbd.sock");
        let thread = std::thread::spawn(move || {
            let ctx = AioContext::for_test().unwrap();
            let daemon = Daemon::new(&ctx);
            // The test may have stopped listening at the end.
            daemon.subscribe(move |_, event| drop(tell.send(event.clone())));
            let server = json!({"addr": {"type": "unix", "path": socket}});
            ctx.run(|co| daemon.nbd_server_start(co, coblk::qapi::from_value(server).unwrap()))
                .unwrap();
            daemon.begin();
            started.send(ctx.handle()).unwrap();
            while daemon.quit_cause().is_none() {
                let task: Option<Task> = to_do.try_recv().ok();
                match task {
                    Some(task) => ctx.run(|co| task(&daemon, co)),
                    None => drop(ctx.poll()),
                }
            }
            ctx.run(|co| daemon.co_shutdown(co));
            assert!(daemon.exports().is_empty() && daemon.blockdevs().nodes().is_empty());
        });
        let handle = handle.recv().unwrap();
        Running { dir, tasks, handle, events, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    /// Has the daemon do something, and waits for the result.
    fn call<R: Send + 'static>(
        &self,
        code: impl FnOnce(&Rc<Daemon>, &Co<'_>) -> R + Send + 'static,
    ) -> R {
        let (reply, answer) = channel();
        let task: Task = Box::new(move |daemon, co| reply.send(code(daemon, co)).unwrap());
        self.tasks.send(task).unwrap();
        self.handle.schedule(|_| ());
        answer.recv_timeout(PATIENCE).expect("the daemon answers")
    }

    fn blockdev(&self, line: &'static str) {
        self.call(move |daemon, co| {
            daemon.blockdev_add(co, NodeOptions::from_keyval(line).unwrap()).map(drop).unwrap();
        });
    }

    fn export(&self, line: &'static str) -> Result<(), DaemonError> {
        self.call(move |daemon, co| daemon.export_add(co, from_argument(line, "type")?))
    }

    fn export_del(&self, mode: RemoveMode) -> Result<(), DaemonError> {
        self.call(move |daemon, co| daemon.export_del(co, "e0", mode))
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.call(|daemon, _| daemon.quit(ShutdownCause::Quit));
        self.thread.take().unwrap().join().unwrap();
        let last: Vec<Event> = self.events.try_iter().collect();
        assert!(last.contains(&Event::Shutdown(ShutdownCause::Quit)), "{last:?}");
    }
}

fn deleted() -> Event {
    Event::BlockExportDeleted { id: "e0".to_owned() }
}

fn connect(path: &Path) -> UnixStream {
    let stream = choose(path);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Writes a block; its reply is read later.
fn write(stream: &mut UnixStream) {
    let mut bytes = request(MAGIC, 0, 1, 0, 4096);
    bytes.extend_from_slice(&[5; 4096]);
    stream.write_all(&bytes).unwrap();
}

/// The error of the next reply, 0 if there is none.
fn reply(stream: &mut UnixStream) -> u32 {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

#[test]
fn c86_an_export_in_use_is_removed_only_in_mode_hard() {
    let running = Running::new();
    running.blockdev("null-co,node-name=disk");
    running.export("nbd,id=e0,node-name=disk,writable=on").unwrap();
    let refused = running.call(|daemon, co| daemon.blockdev_del(co, "disk")).unwrap_err();
    assert_eq!(refused.to_string(), "Node 'disk' is in use");
    let mut client = connect(&running.socket());
    write(&mut client);
    assert_eq!(reply(&mut client), 0);
    let refused = running.export_del(RemoveMode::Safe).unwrap_err();
    assert_eq!(refused.to_string(), "export 'e0' still in use");
    write(&mut client);
    assert_eq!(reply(&mut client), 0, "nothing has happened to the client");
    running.export_del(RemoveMode::Hard).unwrap();
    assert_eq!(running.event(), deleted());
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0, "the client is disconnected");
    // The node is free as soon as the event has come.
    running.call(|daemon, co| daemon.blockdev_del(co, "disk")).unwrap();
    let gone = running.export_del(RemoveMode::Safe).unwrap_err();
    assert_eq!(gone.to_string(), "Export 'e0' is not found");

    running.blockdev("null-co,node-name=disk");
    running.export("nbd,id=e0,node-name=disk").unwrap();
    running.export_del(RemoveMode::Safe).unwrap();
    assert_eq!(running.event(), deleted());
}

#[test]
fn an_export_stops_at_an_error_and_goes_on_when_it_is_resumed() {
    let running = Running::new();
    running.blockdev(
        "blkdebug,node-name=disk,image.driver=null-co,inject-error.0.iotype=write,\
         inject-error.0.errno=28,inject-error.0.once=on",
    );
    running.export("nbd,id=e0,node-name=disk,writable=on,werror=enospc").unwrap();
    let mut client = connect(&running.socket());
    write(&mut client);
    let Event::BlockIoError(IoError { id, node_name, kind, errno, action, .. }) = running.event()
    else {
        panic!("another event");
    };
    assert_eq!((id.as_str(), node_name.as_str(), errno), ("e0", "disk", 28));
    assert_eq!((kind, action), (RequestKind::Write, ErrorAction::Stop));
    let status = || running.call(|daemon, _| daemon.exports()[0].io_status);
    assert_eq!(status(), IoStatus::NoSpace);
    running.call(|daemon, _| daemon.export_resume("e0")).unwrap();
    assert_eq!(reply(&mut client), 0);
    assert_eq!(status(), IoStatus::Ok);
    assert!(running.call(|daemon, _| daemon.export_resume("e1")).is_err());
}

/// It will not be resumed any more: what was held fails, and the export goes.
#[test]
fn an_export_that_has_stopped_can_be_removed() {
    let running = Running::new();
    running.blockdev("blkdebug,node-name=disk,image.driver=null-co,inject-error.0.iotype=write");
    running.export("nbd,id=e0,node-name=disk,writable=on,werror=stop").unwrap();
    let mut client = connect(&running.socket());
    write(&mut client);
    assert!(matches!(running.event(), Event::BlockIoError(_)));
    running.export_del(RemoveMode::Hard).unwrap();
    let mut event = running.event();
    while matches!(event, Event::BlockIoError(_)) {
        event = running.event();
    }
    assert_eq!(event, deleted());
    running.call(|daemon, co| daemon.blockdev_del(co, "disk")).unwrap();
}

#[test]
fn the_nbd_server_stops_with_its_exports_and_starts_again() {
    let running = Running::new();
    running.blockdev("null-co,node-name=disk");
    running.export("nbd,id=e0,node-name=disk").unwrap();
    let mut client = connect(&running.socket());
    let twice = json!({"addr": {"type": "unix", "path": running.dir.path().join("2")}});
    let start = move |daemon: &Rc<Daemon>, co: &Co<'_>| {
        daemon.nbd_server_start(co, coblk::qapi::from_value(twice.clone()).unwrap())
    };
    let refused = running.call(start.clone()).unwrap_err();
    assert_eq!(refused.to_string(), "NBD server already running");
    running.call(|daemon, co| daemon.nbd_server_stop(co)).unwrap();
    assert_eq!(running.event(), deleted());
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    let refused = running.call(|daemon, co| daemon.nbd_server_stop(co)).unwrap_err();
    assert_eq!(refused.to_string(), "NBD server not running");
    let refused = running.export("nbd,id=e0,node-name=disk").unwrap_err();
    assert_eq!(refused.to_string(), "NBD server not running");
    running.call(start).unwrap();
    running.export("nbd,id=e0,node-name=disk").unwrap();
    drop(connect(&running.dir.path().join("2")));
}

#[test]
fn objects_in_use_are_not_deleted() {
    let running = Running::new();
    let object_add = |line: &'static str| {
        running.call(move |daemon, co| daemon.object_add(co, from_argument(line, "qom-type")?))
    };
    let object_del = |id: &'static str| running.call(move |daemon, co| daemon.object_del(co, id));
    object_add("iothread,id=t0").unwrap();
    object_add("throttle-group,id=g0,limits.bps-total=1000000").unwrap();
    let taken = object_add("iothread,id=g0").unwrap_err().to_string();
    assert!(taken.contains("duplicate property 'g0'"), "{taken}");
    running.blockdev("throttle,node-name=disk,throttle-group=g0,file.driver=null-co");
    running.export("nbd,id=e0,node-name=disk,iothread=t0,fixed-iothread=on").unwrap();
    for id in ["t0", "g0"] {
        let refused = object_del(id).unwrap_err().to_string();
        assert_eq!(refused, format!("object '{id}' is in use, can not be deleted"));
    }
    running.export_del(RemoveMode::Safe).unwrap();
    assert_eq!(running.event(), deleted());
    object_del("t0").unwrap();
    running.call(|daemon, co| daemon.blockdev_del(co, "disk")).unwrap();
    object_del("g0").unwrap();
    assert_eq!(object_del("g0").unwrap_err().to_string(), "object 'g0' not found");
}

/// A driver with work of its own, and none to do.
struct AtHome(Child, Background);

impl Filter for AtHome {
    fn name(&self) -> &'static str {
        "at-home"
    }
    fn child(&self) -> &Child {
        &self.0
    }
    fn background(&self) -> Option<&Background> {
        Some(&self.1)
    }
}

#[test]
fn an_iothread_with_work_of_a_driver_is_in_use() {
    let running = Running::new();
    running.call(|daemon, co| {
        daemon.object_add(co, from_argument("iothread,id=t0", "qom-type").unwrap()).unwrap();
        let home = daemon.iothread_handles().remove(0).1;
        let below = BlockNode::new("below", Null::new(512));
        let child = Child::new("file", ChildRole::FILTER, below);
        let node = BlockNode::new("node", AtHome(child, Background::fixed(home)));
        let refused = daemon.object_del(co, "t0").unwrap_err();
        assert_eq!(refused.to_string(), "object 't0' is in use, can not be deleted");
        drop(node);
        daemon.object_del(co, "t0").unwrap();
    });
}

#[test]
fn json_has_types_and_command_lines_have_texts() {
    use coblk_storage_daemon::options::{ExportOptions, NbdServerOptions};
    let read =
        |json: &str| from_argument::<NbdServerOptions>(json, "addr").unwrap_err().to_string();
    let wrong = "{'type': 'nbd', 'id': 'e', 'node-name': 'n', 'writable': 'on'}";
    let error = from_argument::<ExportOptions>(wrong, "type").unwrap_err().to_string();
    assert_eq!(error, "Invalid parameter type for 'writable', expected: boolean");
    let wrong = "{'addr': {'type': 'unix', 'path': 'p'}, 'max-connections': -1}";
    assert_eq!(read(wrong), "Parameter 'max-connections' expects uint32_t");
    let wrong = "{'addr': {'type': 'unix', 'path': null}}";
    assert_eq!(read(wrong), "Invalid parameter type for 'addr.path', expected: string");
    let json = r#"{"type":"nbd","id":"e","node-name":"n","iothread":["a","b"],"werror":"stop"}"#;
    let options: ExportOptions = from_argument(json, "type").unwrap();
    assert_eq!(options.iothreads, ["a", "b"]);
    let line = "nbd,id=e,node-name=n,iothread.0=a,iothread.1=b,on-write-error=stop";
    assert_eq!(options, from_argument(line, "type").unwrap());
}
