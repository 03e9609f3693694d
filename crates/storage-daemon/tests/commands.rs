//! Commands of the daemon that wait: for each other, for disks that do not answer, and while it ends.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;

use coblk::options::NodeOptions;
use coblk::{AioContext, Co};
use coblk_storage_daemon::daemon::{Daemon, DaemonError};
use coblk_storage_daemon::options::from_argument;

/// Begins a command, which suspends before it has done anything.
fn begin<R: 'static>(
    ctx: &AioContext,
    daemon: &Rc<Daemon>,
    command: impl FnOnce(&Rc<Daemon>, &Co<'_>) -> Result<R, DaemonError> + 'static,
) -> Rc<Cell<Option<Result<R, DaemonError>>>> {
    let done = Rc::new(Cell::new(None));
    let (own_done, own_daemon) = (Rc::clone(&done), Rc::clone(daemon));
    ctx.spawn("command", move |co| own_done.set(Some(command(&own_daemon, co))));
    let result = done.take();
    assert!(result.is_none(), "it has not suspended");
    done
}

#[test]
fn c85_a_command_that_comes_back_after_the_end_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let daemon = Daemon::new(&ctx);
    let file = format!("file,node-name=disk,filename={}", image.display());
    let node = NodeOptions::from_keyval(&file).unwrap();
    let added = begin(&ctx, &daemon, |daemon, co| daemon.blockdev_add(co, node).map(drop));
    let inet = from_argument("addr.type=inet,addr.host=127.0.0.1,addr.port=0", "addr").unwrap();
    let started = begin(&ctx, &daemon, |daemon, co| daemon.nbd_server_start(co, inet));
    let thread = from_argument("iothread,id=t0", "qom-type").unwrap();
    let made = begin(&ctx, &daemon, |daemon, co| daemon.object_add(co, thread));
    ctx.run(|co| daemon.co_shutdown(co));
    for (what, result) in [("node", added), ("server", started), ("iothread", made)] {
        let result = result.take();
        let refused = matches!(result, Some(Err(DaemonError::ShuttingDown)));
        assert!(refused, "{what}: {result:?}");
    }
    assert_eq!(daemon.blockdevs().nodes().len(), 0);
    assert_eq!(daemon.nbd_connections(), None, "there is a server");
    assert_eq!(daemon.iothread_handles().len(), 0);
}
