//! Locks on images: QEMU's programs respect ours, and ours theirs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use coblk::aio::WaitMode;
use coblk::block::{PermissionError, Permissions};
use coblk::drivers::{Engine, File, Locking};
use coblk::options::NodeOptions;
use coblk::{
    AioContext, BackendOptions, BlockBackend, BlockDriver, BlockNode, Blockdevs, IoVector,
    IoVectorMut, WriteFlags,
};
use coblk_tests::holder::{Holder, locked_bytes};
use coblk_tests::images::sparse_image;
use coblk_tests::rings::rings_with;
use coblk_tests::{image_dir, sandbox, tools};
use tempfile::TempDir;

const READ: Permissions = Permissions::CONSISTENT_READ;
const WRITE: Permissions = Permissions::WRITE;
const ALL: Permissions = Permissions::all();

const NOBODY: [u64; 0] = [];
/// The bytes that a disk of a guest locks.
const DISK_LOCKS: [u64; 4] = [100, 101, 201, 203];

/// Set for the process that is killed while it holds an image.
const HOLD: &str = "COBLK_TEST_HOLD";

fn image() -> (TempDir, PathBuf) {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "disk.img", 1 << 20);
    (dir, image)
}

/// What a disk of a guest asks for.
fn as_disk(file: &File) -> Result<(), PermissionError> {
    file.set_permissions(READ | WRITE, READ | Permissions::WRITE_UNCHANGED)
}

fn open(image: &Path) -> File {
    File::options().open(image).expect("an image")
}

#[track_caller]
fn refused(result: Result<(), PermissionError>, words: &str, image: &Path) {
    let said = result.expect_err("others hold the image").to_string();
    let image = image.display();
    assert_eq!(
        said,
        format!("failed to get {words} lock on image '{image}': is another process using it?")
    );
}

fn qemu_io(args: &[&str], image: &str) -> Command {
    let mut command = tools::command("qemu-io");
    command.args(args).arg(image);
    command
}

fn try_qemu_io(args: &[&str], image: &str) -> Output {
    tools::finish("qemu-io", qemu_io(args, image).args(["-c", "read 0 512"]))
}

/// An image that qemu-io uses without sharing these permissions with others.
fn without_sharing(image: &Path, permissions: &str) -> String {
    let image = tools::text(image);
    let file = format!(r#"{{"driver":"file","filename":"{image}"}}"#);
    format!(r#"json:{{"driver":"blkdebug","unshare-child-perms":[{permissions}],"image":{file}}}"#)
}

fn storage_daemon(dir: &Path, image: &Path) -> Command {
    let mut command = tools::command("qemu-storage-daemon");
    let socket = dir.join("daemon.sock");
    command.args(["--blockdev", &format!("file,node-name=disk,filename={}", image.display())]);
    command.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
    command.args(["--export", "nbd,id=export,node-name=disk,writable=on"]);
    command
}

fn nbd_server(dir: &Path, image: &Path) -> Command {
    let mut command = tools::command("qemu-nbd");
    command.args(["-f", "raw", "-k"]).arg(dir.join("nbd.sock")).arg(image);
    command
}

/// Runs a server that should refuse to start; ends it if it does.
fn try_server(server: &Command) -> Output {
    let mut command = tools::command("timeout");
    command.arg("10").arg(server.get_program()).args(server.get_args());
    tools::finish("timeout", &mut command)
}

#[track_caller]
fn assert_refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("Failed to get {words} lock")), "{said}");
}

#[track_caller]
fn assert_let_in(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn qemu_may_not_write_what_a_disk_of_ours_holds() {
    let (dir, image) = image();
    let path = tools::text(&image);
    let file = open(&image);
    as_disk(&file).unwrap();
    assert_eq!(locked_bytes(&image), DISK_LOCKS);
    assert_refused(&try_qemu_io(&["-f", "raw"], path), r#""write""#);
    let bench = ["bench", "-f", "raw", "-c", "1", "-w", path];
    assert_refused(&tools::output("qemu-img", bench), r#""write""#);
    assert_refused(&try_server(&nbd_server(dir.path(), &image)), r#""write""#);
    assert_refused(&try_server(&storage_daemon(dir.path(), &image)), r#""write""#);
    // A reader that does not share writing.
    let alone = without_sharing(&image, r#""write""#);
    assert_refused(&try_qemu_io(&["-r"], &alone), r#"shared "write""#);
    // Readers that share it are let in.
    assert_let_in(&try_qemu_io(&["-r", "-f", "raw"], path));
    assert_let_in(&try_qemu_io(&["-r", "-U", "-f", "raw"], path));
    drop(file);
    assert_eq!(locked_bytes(&image), NOBODY);
    assert_let_in(&try_qemu_io(&["-f", "raw"], path));
    assert_let_in(&try_qemu_io(&[], &alone));
}

#[test]
fn qemu_may_write_along_with_who_shares_that() {
    let (_dir, image) = image();
    let path = tools::text(&image);
    let file = open(&image);
    file.set_permissions(READ | WRITE, ALL).unwrap();
    assert_eq!(locked_bytes(&image), [100, 101]);
    assert_let_in(&try_qemu_io(&["-f", "raw"], path));
    let alone = without_sharing(&image, r#""write""#);
    assert_refused(&try_qemu_io(&[], &alone), r#"shared "write""#);
}

#[test]
fn what_qemu_writes_is_for_no_disk_of_ours() {
    let (dir, image) = image();
    let path = tools::text(&image);
    let writers = [
        qemu_io(&["-f", "raw"], path),
        nbd_server(dir.path(), &image),
        storage_daemon(dir.path(), &image),
    ];
    for mut writer in writers {
        eprintln!("{writer:?}");
        let file = open(&image);
        let holder = Holder::start(&mut writer, &image, 101);
        let theirs = locked_bytes(&image);
        refused(as_disk(&file), r#"shared "write""#, &image);
        assert_eq!(locked_bytes(&image), theirs, "nothing of ours is left");
        // A reader who does not mind, and a writer who does not.
        file.set_permissions(READ, ALL).unwrap();
        file.set_permissions(READ | WRITE, ALL).unwrap();
        refused(as_disk(&file), r#"shared "write""#, &image);
        file.set_permissions(Permissions::empty(), ALL).unwrap();
        assert_eq!(locked_bytes(&image), theirs);
        // A crash of theirs gives the image free.
        holder.kill();
        as_disk(&file).unwrap();
    }
}

#[test]
fn what_qemu_has_for_itself_is_only_to_be_read() {
    let (_dir, image) = image();
    let alone = without_sharing(&image, r#""write","resize""#);
    let _holder = Holder::start(&mut qemu_io(&["-r"], &alone), &image, 201);
    let file = open(&image);
    refused(file.set_permissions(READ | WRITE, ALL), r#""write""#, &image);
    refused(file.set_permissions(Permissions::RESIZE, ALL), r#""resize""#, &image);
    file.set_permissions(READ, ALL).unwrap();
}

#[test]
fn qemu_is_let_in_when_a_writer_becomes_a_reader() {
    let (_dir, image) = image();
    let file = open(&image);
    as_disk(&file).unwrap();
    file.set_permissions(READ, ALL).unwrap();
    assert_eq!(locked_bytes(&image), [100]);
    let mut writer = qemu_io(&["-f", "raw"], tools::text(&image));
    let holder = Holder::start(&mut writer, &image, 101);
    refused(as_disk(&file), r#"shared "write""#, &image);
    assert_eq!(locked_bytes(&image), [100, 101], "as before, and theirs");
    holder.kill();
    assert_eq!(locked_bytes(&image), [100]);
    as_disk(&file).unwrap();
    assert_eq!(locked_bytes(&image), DISK_LOCKS);
}

#[test]
fn two_open_images_of_one_process_are_strangers() {
    let (_dir, image) = image();
    let (first, second) = (open(&image), open(&image));
    as_disk(&first).unwrap();
    refused(as_disk(&second), r#""write""#, &image);
    let reader = File::options().read_only(true).open(&image).unwrap();
    refused(reader.set_permissions(READ, READ), r#"shared "write""#, &image);
    reader.set_permissions(READ, ALL).unwrap();
    drop(first);
    as_disk(&second).unwrap();
}

#[test]
fn of_two_who_come_at_the_same_time_one_at_most_is_let_in() {
    let (_dir, image) = image();
    let (start, inside) = (Barrier::new(2), AtomicUsize::new(0));
    let attempts = || {
        let file = open(&image);
        let mut let_in = 0;
        for _ in 0..500 {
            start.wait();
            let mine = usize::from(as_disk(&file).is_ok());
            inside.fetch_add(mine, Ordering::SeqCst);
            start.wait();
            // Both have tried, and neither has given up what it has.
            let together = inside.load(Ordering::SeqCst);
            start.wait();
            assert!(together <= 1, "both were let in");
            inside.fetch_sub(mine, Ordering::SeqCst);
            file.set_permissions(Permissions::empty(), ALL).unwrap();
            let_in += mine;
        }
        let_in
    };
    let let_in = std::thread::scope(|scope| {
        let other = scope.spawn(attempts);
        attempts() + other.join().unwrap()
    });
    assert!(let_in > 0, "in no round was anybody let in");
    assert_eq!(locked_bytes(&image), NOBODY);
}

#[test]
fn an_image_with_locking_off_is_anybodys() {
    let (_dir, image) = image();
    let file = File::options().locking(Locking::Off).open(&image).unwrap();
    as_disk(&file).unwrap();
    assert_eq!(locked_bytes(&image), NOBODY);
    as_disk(&open(&image)).unwrap();
}

/// Holds an image until this process is killed, or its parent is gone and its input ends. Its ring
/// has the image registered, which the kernel keeps open for longer than the process lives.
fn hold(image: &Path) {
    let options = File::options().engine(Engine::IoUring).in_place_reads(false);
    let node = BlockNode::new("disk", options.open(image).unwrap());
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Auto).build().unwrap();
    let backend = BlockBackend::new(&ctx, "drive", node.clone());
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut [0; 512][..])).unwrap();
    assert_eq!(rings_with(&image.canonicalize().unwrap()), 1);
    let _locked = BackendOptions::new("disk").open(&ctx, node).unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_crash_of_ours_gives_the_image_free() {
    if let Some(image) = std::env::var_os(HOLD) {
        return hold(Path::new(&image));
    }
    let (_dir, image) = image();
    let path = tools::text(&image);
    let mut ours = Command::new(std::env::current_exe().unwrap());
    ours.args(["--exact", "a_crash_of_ours_gives_the_image_free"]).env(HOLD, &image);
    let holder = Holder::start(&mut ours, &image, 203);
    assert_eq!(locked_bytes(&image), DISK_LOCKS);
    assert_refused(&try_qemu_io(&["-f", "raw"], path), r#""write""#);
    holder.kill();
    assert_eq!(locked_bytes(&image), NOBODY);
    assert_let_in(&try_qemu_io(&["-f", "raw"], path));
}

#[test]
fn a_backend_locks_the_image_for_as_long_as_it_uses_it() {
    let (_dir, image) = image();
    let path = tools::text(&image);
    let (ctx, blockdevs) = (AioContext::for_test().unwrap(), Blockdevs::new(coblk::drivers()));
    let line = format!("raw,file.driver=file,file.locking=on,file.filename={path}");
    let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&line).unwrap()).unwrap();
    assert_eq!(locked_bytes(&image), NOBODY);
    let backend = BackendOptions::new("drive").open(&ctx, node.clone()).unwrap();
    assert_eq!(locked_bytes(&image), DISK_LOCKS);
    assert_refused(&try_qemu_io(&["-f", "raw"], path), r#""write""#);
    drop(backend);
    assert_eq!(locked_bytes(&image), NOBODY);
    // And the other way round: who has opened it first has it.
    let theirs = Holder::start(&mut qemu_io(&["-f", "raw"], path), &image, 101);
    let error = BackendOptions::new("drive").open(&ctx, node.clone()).err().expect("refused");
    assert!(error.to_string().contains("is another process using it?"), "{error}");
    theirs.kill();
    BackendOptions::new("drive").open(&ctx, node).unwrap();
}

#[test]
fn an_image_is_handed_to_another_process_and_taken_back() {
    let (_dir, image) = image();
    let path = tools::text(&image);
    let (ctx, blockdevs) = (AioContext::for_test().unwrap(), Blockdevs::new(coblk::drivers()));
    let line = format!(
        "raw,node-name=disk,file.driver=file,file.node-name=image,file.locking=on,\
         file.filename={path}"
    );
    let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&line).unwrap()).unwrap();
    let device = BackendOptions::new("drive").allow_inactive(true);
    let backend = device.open(&ctx, node).unwrap();
    let write = |byte: u8| {
        let source = [byte; 512];
        backend.pwritev(&ctx, 0, &IoVector::from(&source[..]), WriteFlags::empty())
    };
    write(1).unwrap();
    assert_eq!(locked_bytes(&image), DISK_LOCKS);
    assert_refused(&try_qemu_io(&["-f", "raw"], path), r#""write""#);
    blockdevs.set_active(&ctx, None, false).unwrap();
    assert_eq!(locked_bytes(&image), NOBODY);
    assert_eq!(write(2).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let mut theirs = qemu_io(&["-f", "raw"], path);
    let commands = ["-c", "read -P 1 0 512", "-c", "write -P 3 0 512", "-c", "truncate 2M"];
    let output = tools::finish("qemu-io", theirs.args(commands));
    assert_let_in(&output);
    // As long as another process has it, it is not to be had.
    let holder = Holder::start(&mut qemu_io(&["-f", "raw"], path), &image, 101);
    let error = blockdevs.set_active(&ctx, Some(&["disk"]), true).unwrap_err();
    assert!(error.to_string().contains("is another process using it?"), "{error}");
    assert!(!blockdevs.node("disk").unwrap().is_active());
    assert!(!blockdevs.node("image").unwrap().is_active());
    holder.kill();
    blockdevs.set_active(&ctx, Some(&["disk"]), true).unwrap();
    assert_eq!(locked_bytes(&image), DISK_LOCKS);
    let mut sector = [0; 512];
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut sector[..])).unwrap();
    assert_eq!((sector, backend.length().unwrap()), ([3; 512], 2 << 20));
    write(4).unwrap();
}

#[test]
fn a_file_system_without_locks_is_an_error_or_a_warning() {
    let test = "a_file_system_without_locks_is_an_error_or_a_warning";
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    sandbox::with_faults(test, parent, &["fcntl:error=ENOLCK"], |dir| {
        let image = sparse_image(dir, "disk.img", 1 << 20);
        let strict = File::options().locking(Locking::On).open(&image).unwrap();
        let said = as_disk(&strict).unwrap_err().to_string();
        let expected = format!("cannot lock image '{}': No locks available", image.display());
        assert!(said.starts_with(&expected), "{said}");
        as_disk(&open(&image)).unwrap();
    });
}

#[test]
fn an_error_of_the_system_is_no_file_system_without_locks() {
    let test = "an_error_of_the_system_is_no_file_system_without_locks";
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    sandbox::with_faults(test, parent, &["fcntl:error=EIO"], |dir| {
        let image = sparse_image(dir, "disk.img", 1 << 20);
        let said = as_disk(&open(&image)).unwrap_err().to_string();
        assert!(said.starts_with("cannot lock image"), "{said}");
    });
}
