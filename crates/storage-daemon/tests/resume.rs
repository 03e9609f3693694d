//! A daemon as part of another program: the request of a client finds no room, is held, and goes on
//! when there is room, and the export is resumed.
#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use coblk::block::IoStatus;
use coblk::{AioContext, AioHandle, Co};
use coblk_storage_daemon::command_line::Job;
use coblk_storage_daemon::daemon::{Daemon, Event, ShutdownCause};
use coblk_tests::images::sparse_image;
use coblk_tests::nbd::Session;
use coblk_tests::sandbox;
use coblk_tests::storage_daemon::eventually;

const MIB: u64 = 1 << 20;

thread_local! {
    /// The daemon of this thread.
    static DAEMON: OnceCell<Rc<Daemon>> = const { OnceCell::new() };
}

/// Runs a daemon on the calling thread until it is told to quit.
fn run(dir: &Path, running: &mpsc::Sender<AioHandle>, told: mpsc::Sender<Event>) {
    let ctx = AioContext::for_test().unwrap();
    let daemon = Daemon::new(&ctx);
    DAEMON.with(|own| assert!(own.set(Rc::clone(&daemon)).is_ok()));
    daemon.subscribe(move |_, event| {
        // The test does not listen at the end.
        let _ = told.send(event.clone());
    });
    let place = dir.display();
    for (option, text) in [
        ("blockdev", format!("file,filename={place}/disk.img,node-name=disk")),
        ("nbd-server", format!("addr.type=unix,addr.path={place}/nbd.sock")),
        ("export", "nbd,id=e0,node-name=disk,writable=on,werror=enospc".to_owned()),
    ] {
        let job = Job::new(option, text).expect("an option");
        ctx.run(|co| job.perform(&daemon, co)).unwrap();
    }
    daemon.begin();
    running.send(ctx.handle()).unwrap();
    ctx.run_until(|| daemon.quit_cause().is_some());
    ctx.run(|co| daemon.co_shutdown(co));
}

/// Has the daemon do something.
fn command<R: Send + 'static>(
    daemon: &AioHandle,
    what: impl FnOnce(&Rc<Daemon>, &Co<'_>) -> R + Send + 'static,
) -> R {
    let done = daemon.spawn("command", move |co| {
        let daemon = DAEMON.with(|own| Rc::clone(own.get().expect("a daemon")));
        what(&daemon, co)
    });
    done.wait().expect("the daemon lives")
}

/// Leaves no byte free.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[0xaa; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull);
}

#[test]
fn a_request_that_found_no_room_goes_on_when_it_is_resumed() {
    let test = "a_request_that_found_no_room_goes_on_when_it_is_resumed";
    sandbox::on_small_file_system(test, 24 * MIB, |dir| {
        sparse_image(dir, "disk.img", 64 * MIB);
        let (running, started) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let place = dir.to_owned();
        let thread = thread::spawn(move || run(&place, &running, tell));
        let daemon = started.recv().expect("a daemon that runs");
        let status = || command(&daemon, |daemon, _| daemon.exports()[0].io_status);
        let mut client = Session::open(&dir.join("nbd.sock"));
        client.check(1);
        let ballast = dir.join("ballast");
        fill(&ballast);
        client.send(1, 32 * MIB, 65536, &[9; 65536]);
        eventually("the export stops", || status() == IoStatus::NoSpace);
        assert!(matches!(told.recv(), Ok(Event::BlockIoError(error)) if error.errno == 28));
        // Who resumes it too early finds it stopped again.
        command(&daemon, |daemon, _| daemon.export_resume("e0")).unwrap();
        assert!(matches!(told.recv(), Ok(Event::BlockIoError(error)) if error.errno == 28));
        eventually("the export stops again", || status() == IoStatus::NoSpace);
        fs::remove_file(&ballast).unwrap();
        command(&daemon, |daemon, _| daemon.export_resume("e0")).unwrap();
        assert_eq!(client.answer(), Ok(()), "the client has noticed");
        assert_eq!(status(), IoStatus::Ok);
        assert_eq!(client.read(32 * MIB, 65536), Ok(vec![9; 65536]));
        client.check(2);
        drop(client);
        command(&daemon, |daemon, _| daemon.quit(ShutdownCause::Quit));
        thread.join().expect("a daemon that ends in order");
    });
}
