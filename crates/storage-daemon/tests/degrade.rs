//! The daemon degrades and does not die: it runs out of threads, descriptors, locked memory, room, or
//! is refused io_uring; its image is cut short or its disk hangs. An honest client is served before,
//! during and after, and finds what it has written.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use coblk_tests::images::sparse_image;
use coblk_tests::nbd::Session;
use coblk_tests::storage_daemon::{StorageDaemon, eventually};
use coblk_tests::{image_dir, sandbox, tools};

const PROGRAM: &str = env!("CARGO_BIN_EXE_coblk-storage-daemon");
const MIB: u64 = 1 << 20;

/// The one node "disk" on an image, exported; `node` and `export` are more options of both.
fn start(program: &Path, dir: &Path, wrapper: &[&str], node: &str, export: &str) -> StorageDaemon {
    let node = format!("file,filename=DIR/disk.img,node-name=disk{node}");
    let export = format!("nbd,id=e0,node-name=disk,writable=on{export}");
    let args = [
        "--blockdev",
        &node,
        "--nbd-server",
        "addr.type=unix,addr.path=DIR/nbd.sock",
        "--export",
        &export,
        "--metrics",
        "unix:DIR/metrics.sock",
    ];
    StorageDaemon::start(program, dir, wrapper, &args)
}

/// The name of a number about the export.
fn of_export(name: &str) -> String {
    format!(r#"{name}{{export="e0",type="nbd",node="disk"}}"#)
}

/// Many clients at once, so that more than one worker has work, or would have.
fn many_check(daemon: &StorageDaemon) {
    let mut clients: Vec<Session> = (0..8).map(|_| Session::open(&daemon.nbd_socket())).collect();
    for (number, client) in (2u8..).zip(&mut clients) {
        let data = vec![number; 64 << 10];
        client.send(1, u64::from(number) * MIB, data.len() as u32, &data);
    }
    for (number, client) in (2u8..).zip(&mut clients) {
        assert_eq!(client.answer(), Ok(()));
        let read = client.read(u64::from(number) * MIB, 64 << 10);
        assert!(read == Ok(vec![number; 64 << 10]), "client {number} reads something else");
        assert_eq!(client.flush(), Ok(()));
    }
}

#[test]
fn without_threads_the_loop_does_the_work() {
    // The limit counts the threads of a user, and does not bind root: another user, with no
    // other.
    let user = "61735";
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let image = sparse_image(dir.path(), "disk.img", 16 * MIB);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
    let program = dir.path().join("program");
    // By a process of its own: one that another test starts meanwhile would inherit the file as open for writing, and
    // it could not be run.
    tools::run("cp", [PROGRAM, tools::text(&program)]);
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    let wrapper = ["setpriv", &uid, &gid, "--clear-groups", "prlimit", "--nproc=1:2000"];
    let daemon = start(&program, dir.path(), &wrapper, "", "");
    let workers = || daemon.metrics().number(r#"coblk_loop_workers{loop="main"}"#);
    Session::open(&daemon.nbd_socket()).check(1);
    many_check(&daemon);
    assert_eq!(workers(), 0.0, "a thread was started: the limit does not bind");
    let allow = |most: &str| {
        let most = format!("--nproc={most}:");
        let prlimit = ["--clear-groups", "prlimit", "--pid", &daemon.pid(), &most];
        tools::run("setpriv", [&[&uid[..], &gid][..], &prlimit].concat());
    };
    allow("2000");
    Session::open(&daemon.nbd_socket()).check(2);
    many_check(&daemon);
    assert!(workers() > 0.0, "no thread was started when there were some to be had");
    allow("1");
    Session::open(&daemon.nbd_socket()).check(3);
    many_check(&daemon);
    daemon.stop();
}

#[test]
fn with_32_descriptors_clients_wait_for_each_other() {
    let dir = image_dir!();
    sparse_image(dir.path(), "disk.img", 16 * MIB);
    let daemon = start(PROGRAM.as_ref(), dir.path(), &["prlimit", "--nofile=32:32"], "", "");
    let mut before = Session::open(&daemon.nbd_socket());
    before.check(1);
    let mut crowd: Vec<UnixStream> =
        (0..64).map(|_| UnixStream::connect(daemon.nbd_socket()).unwrap()).collect();
    eventually("its word about it", || daemon.log().contains("Too many open files"));
    // The daemon greets those it has descriptors for; it has them all by now.
    let mut greeted = 0;
    for client in &mut crowd {
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        match client.read_exact(&mut [0; 18]) {
            Ok(()) => greeted += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => break,
            Err(error) => panic!("client {greeted}: {error}"),
        }
    }
    assert!((1..32).contains(&greeted), "{greeted} clients of 64");
    before.check(2);
    // Who waits is served when others go.
    let mut next = crowd.split_off(greeted).into_iter();
    drop(crowd);
    let mut waited = next.next().unwrap();
    waited.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    waited.read_exact(&mut [0; 18]).expect("the greeting");
    drop((waited, next));
    before.check(3);
    Session::open(&daemon.nbd_socket()).check(4);
    daemon.metrics();
    daemon.stop();
}

#[test]
fn without_locked_memory_everything_goes_on() {
    for node in ["", ",aio=io_uring", ",cache.direct=on,aio=io_uring"] {
        let dir = image_dir!();
        sparse_image(dir.path(), "disk.img", 16 * MIB);
        let wrapper = ["prlimit", "--memlock=0:0"];
        let daemon = start(PROGRAM.as_ref(), dir.path(), &wrapper, node, "");
        Session::open(&daemon.nbd_socket()).check(1);
        many_check(&daemon);
        daemon.stop();
    }
}

#[test]
fn without_io_uring_threads_take_over() {
    for node in ["", ",aio=io_uring", ",cache.direct=on,aio=io_uring"] {
        let dir = image_dir!();
        sparse_image(dir.path(), "disk.img", 16 * MIB);
        // As seccomp refuses it in containers.
        let log = dir.path().join("strace.log");
        let mut wrapper = vec!["strace", "-f", "-qq", "-o", tools::text(&log)];
        wrapper.extend(["-e", "inject=io_uring_setup:error=EPERM", "--"]);
        let daemon = start(PROGRAM.as_ref(), dir.path(), &wrapper, node, "");
        Session::open(&daemon.nbd_socket()).check(1);
        many_check(&daemon);
        assert_eq!(daemon.metrics().number(r#"coblk_loop_ring{loop="main"}"#), 0.0);
        assert!(daemon.log().contains("no io_uring"), "{}", daemon.log());
        daemon.stop();
        assert!(fs::read_to_string(&log).unwrap().contains("(INJECTED)"), "nothing was refused");
    }
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
fn a_full_file_system_is_told_and_forgotten() {
    let test = "a_full_file_system_is_told_and_forgotten";
    sandbox::on_small_file_system(test, 24 * MIB, |dir| {
        sparse_image(dir, "disk.img", 64 * MIB);
        let daemon = start(PROGRAM.as_ref(), dir, &[], "", "");
        let mut client = Session::open(&daemon.nbd_socket());
        client.check(1);
        client.write(2 * MIB, &[5; 8192]).unwrap();
        let ballast = dir.join("ballast");
        fill(&ballast);
        // ENOSPC in the words of NBD.
        assert_eq!(client.write(32 * MIB, &[9; 65536]), Err(28));
        assert_eq!(client.read(2 * MIB, 8192), Ok(vec![5; 8192]));
        assert_eq!(client.write(2 * MIB, &[6; 8192]), Ok(()), "there is room for what is there");
        let metrics = daemon.metrics();
        let failed =
            r#"coblk_export_failed_total{export="e0",type="nbd",node="disk",operation="write"}"#;
        assert_eq!(metrics.number(failed), 1.0);
        fs::remove_file(&ballast).unwrap();
        assert_eq!(client.write(32 * MIB, &[9; 65536]), Ok(()));
        assert_eq!(client.read(32 * MIB, 65536), Ok(vec![9; 65536]));
        client.check(2);
        assert_eq!(client.read(2 * MIB, 8192), Ok(vec![6; 8192]));
        daemon.stop();
    });
}

#[test]
fn a_request_held_for_want_of_space_does_not_hold_up_the_end() {
    let test = "a_request_held_for_want_of_space_does_not_hold_up_the_end";
    sandbox::on_small_file_system(test, 24 * MIB, |dir| {
        sparse_image(dir, "disk.img", 64 * MIB);
        let daemon = start(PROGRAM.as_ref(), dir, &[], "", ",werror=enospc");
        let mut client = Session::open(&daemon.nbd_socket());
        client.check(1);
        fill(&dir.join("ballast"));
        client.send(1, 32 * MIB, 65536, &[9; 65536]);
        eventually("a request is held", || {
            daemon.metrics().number(&of_export("coblk_export_held")) == 1.0
        });
        let metrics = daemon.metrics();
        assert_eq!(metrics.number(&of_export("coblk_export_stopped")), 1.0);
        assert_eq!(metrics.number(&of_export("coblk_export_in_flight")), 1.0);
        daemon.stop();
        assert_eq!(client.answer(), Err(28), "who is not resumed is told at the end");
    });
}

#[test]
fn an_image_cut_short_under_load_costs_what_was_cut_off() {
    for node in ["", ",aio=io_uring", ",cache.direct=on,aio=io_uring"] {
        let dir = image_dir!();
        let image = sparse_image(dir.path(), "disk.img", 16 * MIB);
        let daemon = start(PROGRAM.as_ref(), dir.path(), &[], node, "");
        let mut client = Session::open(&daemon.nbd_socket());
        for piece in 0..16u8 {
            client.write(u64::from(piece) * MIB, &[piece + 1; 1 << 16]).unwrap();
        }
        client.flush().unwrap();
        let socket = daemon.nbd_socket();
        let load = std::thread::spawn(move || {
            let mut client = Session::open(&socket);
            for round in 0..400u64 {
                let offset = 8 * MIB + round % 32 * 65536;
                let byte = round as u8 | 1;
                assert_eq!(client.write(offset, &[byte; 4096]), Ok(()));
                match client.read(offset, 4096) {
                    Ok(read) => assert!(read.iter().all(|it| *it == byte), "round {round}"),
                    // It was cut off meanwhile, which no read may hide.
                    Err(error) => assert_eq!(error, 5, "round {round}"),
                }
            }
        });
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        let mut cuts = 0;
        while !load.is_finished() || cuts < 4 {
            file.set_len(4 * MIB + 512).unwrap();
            cuts += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        load.join().expect("the load");
        file.set_len(4 * MIB + 512).unwrap();
        for piece in 0..16u8 {
            let read = client.read(u64::from(piece) * MIB, 1 << 16);
            match piece {
                ..4 => assert!(read == Ok(vec![piece + 1; 1 << 16]), "{node}: piece {piece}"),
                _ => assert_eq!(read, Err(5), "{node}: piece {piece}, which is gone"),
            }
        }
        assert_eq!(client.read(4 * MIB, 512), Ok(vec![5; 512]), "what is left of it");
        client.check(1);
        assert_eq!(client.write(15 * MIB, &[3; 4096]), Ok(()));
        assert_eq!(client.read(15 * MIB, 4096), Ok(vec![3; 4096]));
        daemon.stop();
    }
}

/// A file system that is frozen as long as this lives: who writes to it hangs.
struct Frozen<'a>(&'a Path);

impl Frozen<'_> {
    fn freeze(path: &Path) -> Frozen<'_> {
        tools::run("fsfreeze", [Path::new("--freeze"), path]);
        Frozen(path)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = tools::command("fsfreeze").arg("--unfreeze").arg(self.0).status();
    }
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_else() {
    let test = "a_disk_that_hangs_holds_up_nobody_else";
    // In memory: on a disk a flush waits for what all others write there, and that may take minutes.
    sandbox::on_small_file_system(test, 128 * MIB, |dir| {
        for node in ["", ",aio=io_uring"] {
            hang(dir, node);
        }
    });
}

fn hang(dir: &Path, node: &str) {
    let mounted = dir.join("mounted");
    fs::create_dir_all(&mounted).unwrap();
    let disk = sparse_image(dir, "file-system.img", 32 * MIB);
    tools::run("mkfs.ext4", ["-q", "-F", tools::text(&disk)]);
    tools::run("mount", ["-o", "loop", tools::text(&disk), tools::text(&mounted)]);
    sparse_image(&mounted, "hangs.img", 4 * MIB);
    sparse_image(dir, "disk.img", 16 * MIB);
    let hangs = format!("file,filename=DIR/mounted/hangs.img,node-name=hangs{node}");
    let disk = format!("file,filename=DIR/disk.img,node-name=disk{node}");
    let args = [
        "--blockdev",
        &hangs,
        "--blockdev",
        &disk,
        "--nbd-server",
        "addr.type=unix,addr.path=DIR/nbd.sock",
        "--export",
        "nbd,id=e0,node-name=disk,writable=on",
        "--export",
        "nbd,id=e1,node-name=hangs,writable=on",
        "--metrics",
        "unix:DIR/metrics.sock",
    ];
    let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir, &[], &args);
    let mut honest = Session::open(&daemon.nbd_socket());
    let mut waits = Session::choose(&daemon.nbd_socket(), "hangs");
    let choose = |_| Session::choose(&daemon.nbd_socket(), "hangs");
    let mut crowd: Vec<Session> = (0..5).map(choose).collect();
    honest.check(1);
    waits.check(1);
    let in_flight = r#"coblk_export_in_flight{export="e1",type="nbd",node="hangs"}"#;
    let frozen = Frozen::freeze(&mounted);
    waits.send(1, 0, 4096, &[8; 4096]);
    // More than there are threads for all disks.
    for client in &mut crowd {
        (0..16).for_each(|block| client.send(1, MIB + block * 4096, 4096, &[9; 4096]));
    }
    eventually("requests hang", || daemon.metrics().number(in_flight) == 81.0);
    honest.check(2);
    many_check(&daemon);
    assert_eq!(daemon.metrics().number(in_flight), 81.0);
    drop(frozen);
    assert_eq!(waits.answer(), Ok(()));
    for client in &mut crowd {
        (0..16).for_each(|_| assert_eq!(client.answer(), Ok(())));
    }
    drop(crowd);
    assert_eq!(waits.read(0, 4096), Ok(vec![8; 4096]));
    waits.check(3);
    honest.check(3);
    drop((honest, waits));
    daemon.stop();
    tools::run("umount", [&mounted]);
}
