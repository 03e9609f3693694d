//! The NBD server with other people's clients, and with bytes that no client should send.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk::nbd::{NbdExport, NbdExportError, NbdOptions, NbdServer, RemoveMode, SocketAddress};
use coblk::{AioContext, BlockBackend, BlockNode};
use coblk_tests::nbd::{MAGIC, SIZE, Served, choose, option, request};
use coblk_tests::probe::Probe;
use coblk_tests::tools;

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(uri);
    tools::run("qemu-io", args)
}

#[test]
fn qemu_io_reads_and_writes() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let said = qemu_io(
        &served.uri("disk"),
        &[
            "write -P 1 0 1M",
            "write -f -P 2 1000 3000",
            "read -P 1 0 1000",
            "read -P 2 1000 3000",
            "write -z -u 64k 64k",
            "read -P 0 64k 64k",
            "discard 128k 64k",
            "aio_write -P 5 2M 1M",
            "aio_write -P 6 3M 1M",
            "aio_flush",
            "flush",
            "read -P 5 2M 1M",
            "read -P 6 3M 1M",
        ],
    );
    assert!(!said.contains("failed") && !said.contains("verification"), "{said}");
}

#[test]
fn qemu_img_converts_and_compares() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let source = served.dir.path().join("source.img");
    let bytes: Vec<u8> = (0..SIZE as usize).map(|at| (at / 777) as u8).collect();
    std::fs::write(&source, &bytes[..(SIZE / 2) as usize]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&source).unwrap().set_len(SIZE).unwrap();
    let (source, uri) = (tools::text(&source), served.uri("disk"));
    tools::run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", source, &uri]);
    let said = tools::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", source, &uri]);
    assert!(said.contains("identical"), "{said}");
    let map = tools::run("qemu-img", ["map", "-f", "raw", "--output=json", &uri]);
    assert!(map.contains("\"data\": true") && map.contains("\"zero\": true"), "{map}");
    tools::run("qemu-img", ["bench", "-f", "raw", "-c", "500", "-d", "32", "-w", &uri]);
}

#[test]
fn a_read_only_export_refuses_writes() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let uri = served.uri("ro");
    let output = tools::output("qemu-io", ["-f", "raw", "-c", "write 0 4k", &uri]);
    assert!(!output.status.success());
    let said = tools::run("qemu-io", ["-r", "-f", "raw", "-c", "read 0 4k", &uri]);
    assert!(said.contains("read 4096/4096"), "{said}");
}

#[test]
fn nbdcopy_fio_and_nbdinfo_are_served() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, back) = (served.dir.path().join("source"), served.dir.path().join("back"));
    let bytes: Vec<u8> = (0..SIZE as usize).map(|at| (at / 777) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    let uri = served.uri("disk");
    let said = tools::run("nbdinfo", ["--list", &uri]);
    assert!(said.contains("a test image") && said.contains("base:allocation"), "{said}");
    tools::run("nbdcopy", [tools::text(&source), &uri]);
    tools::run("nbdcopy", [&uri, tools::text(&back)]);
    assert!(std::fs::read(&back).unwrap() == bytes, "nbdcopy got back other bytes");
    let target = format!("--uri={uri}");
    let job = ["--name=verify", "--ioengine=nbd", &target, "--rw=randrw", "--bs=4k"];
    let size = ["--iodepth=32", "--size=16M", "--verify=crc32c", "--verify_state_save=0"];
    tools::run("fio", job.iter().chain(&size));
}

/// Sends client flags and `bytes`, ends its side, and returns all that the server says.
fn say(served: &Served, bytes: &[u8]) -> Vec<u8> {
    let mut stream = served.connect();
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    // The server may hang up before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the server keeps a client that is gone, after {bytes:?}")
        }
        _ => said,
    }
}

#[test]
fn hostile_handshakes_do_no_harm() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let go = [&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat();
    let hidden = option(7, &[&go[..], &option(2, b"")].concat());
    let said = say(&served, &hidden);
    assert_eq!(said[26..38], [0, 0, 0, 7, 0x80, 0, 0, 3, 0, 0, 0, 40], "{said:?}");
    // Too long to be read at once: what is said then depends on the option.
    for (kind, error) in [(3, 3), (6, 9), (7, 9), (8, 3), (9, 9), (10, 9), (11, 3), (99, 1)] {
        let said = say(&served, &[option(kind, &[0; 40_000]), option(3, b"")].concat());
        assert_eq!(said[26..34], [0, 0, 0, kind as u8, 0x80, 0, 0, error], "{said:?}");
        assert!(said.ends_with(&[0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0]), "it ended there: {said:?}");
    }
    let cases = [
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        option(7, &[0xff; 8]),
        option(7, &[&[0, 0, 0, 4][..], b"dis\xff", &[0, 0]].concat()),
        option(7, &[&[0, 0, 0, 4][..], b"disk", &[0xff, 0xff]].concat()),
        option(10, &[&[0, 0, 0, 4][..], b"disk", &[0xff; 4]].concat()),
        option(3, b"trailing"),
        option(8, b"trailing"),
        option(1, &[b'x'; 5000]),
        option(99, &vec![0; 100_000]),
        [b"IHAVEOPT".as_slice(), &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]].concat(),
    ];
    for case in &cases {
        say(&served, case);
        served.check();
    }
}

#[test]
fn hostile_requests_do_no_harm() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let go = option(7, &[&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat());
    // Each with the error it is answered with, or none if it ends the connection.
    let cases = [
        (request(0xdead_beef, 0, 0, 0, 512), None),
        (request(MAGIC, 0, 99, 0, 512), Some(22)),
        (request(MAGIC, 0, 0, u64::MAX, 512), Some(22)),
        (request(MAGIC, 0, 0, 0, u32::MAX), Some(22)),
        (request(MAGIC, 0xff00, 0, 0, 512), Some(22)),
        (request(MAGIC, 0, 3, 1, 1), Some(22)),
        (request(MAGIC, 0, 7, 0, 512), Some(22)),
        ([request(MAGIC, 0, 1, SIZE, 4), vec![1; 4]].concat(), Some(28)),
        (request(MAGIC, 0, 6, SIZE, 4), Some(28)),
        (request(MAGIC, 0, 1, 0, 4096), None),
    ];
    for (case, error) in &cases {
        let said = say(&served, &[&go[..], case, &request(MAGIC, 0, 0, 0, 512)].concat());
        let end = said.len();
        if let Some(error) = *error {
            // The error, and then the answer to the honest request behind it.
            let reply = &said[end - 544..];
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, error], "{case:?}");
            assert_eq!(reply[16..24], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "{case:?}");
        }
        served.check();
    }
}

#[test]
fn hundreds_of_clients_are_served() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let mut clients: Vec<UnixStream> = (0..1000).map(|_| served.connect()).collect();
    for client in &mut clients {
        let mut greeting = [0; 18];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    }
    served.check();
}

#[test]
fn a_failed_request_leaves_the_connection() {
    let probe = Probe::new(1 << 20);
    let node = BlockNode::new("disk0", probe.clone());
    let served = Served::with_node(env!("CARGO_TARGET_TMPDIR"), |_| node);
    let exact = |stream: &mut UnixStream, len| {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let mut simple = choose(&served.socket());
    for (errno, code) in
        [(libc::EIO, 5), (libc::ENOSPC, 28), (libc::EXDEV, 22), (libc::ETIMEDOUT, 5)]
    {
        probe.next_results(&[errno]);
        simple.write_all(&[request(MAGIC, 0, 1, 0, 4), vec![9; 4]].concat()).unwrap();
        let reply = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, code][..], &[0, 0, 0, 0, 0, 0, 0, 7]];
        assert_eq!(exact(&mut simple, 16), reply.concat());
    }
    probe.set_panics(true);
    simple.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    assert_eq!(exact(&mut simple, 16)[4..8], [0, 0, 0, 5]);
    probe.set_panics(false);
    simple.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    assert_eq!(exact(&mut simple, 16 + 512)[4..8], [0, 0, 0, 0]);

    let mut structured = served.connect();
    let start = [&[0, 0, 0, 3][..], &option(8, b""), &option(1, b"disk")].concat();
    structured.write_all(&start).unwrap();
    exact(&mut structured, 18 + 20 + 10);
    probe.next_results(&[libc::EIO]);
    structured.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    let error = exact(&mut structured, 26);
    // The only chunk, of the kind "error".
    assert_eq!(error[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1]);
    assert_eq!(error[16..], [0, 0, 0, 6, 0, 0, 0, 5, 0, 0]);
    structured.write_all(&request(MAGIC, 4, 0, 0, 512)).unwrap();
    let data = exact(&mut structured, 20 + 8 + 512);
    assert_eq!(data[4..8], [0, 1, 0, 1]);
}

#[test]
fn a_context_may_end_before_its_server_and_clients() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("nbd.sock");
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk0", coblk::drivers::Null::new(SIZE));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let address = SocketAddress::unix(path.clone());
    let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
    server.add_export(NbdExport::new("disk", backend)).unwrap();
    let mut client = poll_until_done(&ctx, move || choose(&path));
    assert_eq!(server.connections(), 1);
    drop(ctx);
    assert_eq!(server.connections(), 0);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
}

/// Polls until a client on another thread has done something.
fn poll_until_done<T: Send + 'static>(
    ctx: &AioContext,
    client: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (handle, done) = (ctx.handle(), Arc::new(AtomicBool::new(false)));
    let tell = Arc::clone(&done);
    let client = std::thread::spawn(move || {
        let result = client();
        tell.store(true, Ordering::Release);
        handle.schedule(|_| ());
        result
    });
    ctx.run_until(|| done.load(Ordering::Acquire));
    client.join().unwrap()
}

#[test]
fn c86_an_export_in_use_is_removed_only_in_mode_hard() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("nbd.sock");
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk0", coblk::drivers::Null::new(SIZE));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let address = SocketAddress::unix(path.clone());
    let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
    server.add_export(NbdExport::new("disk", backend.clone())).unwrap();
    let again = server.add_export(NbdExport::new("disk", backend));
    assert_eq!(again, Err(NbdExportError::NameTaken("disk".into())));
    let mut client = poll_until_done(&ctx, move || choose(&path));
    let in_use = NbdExportError::InUse { name: "disk".into(), connections: 1 };
    assert_eq!(server.remove_export("disk", RemoveMode::Safe), Err(in_use));
    assert_eq!(server.connections(), 1);
    assert_eq!(server.remove_export("disk", RemoveMode::Hard), Ok(()));
    let ended = poll_until_done(&ctx, move || client.read(&mut [0; 1]).unwrap());
    assert_eq!(ended, 0);
    let gone = NbdExportError::NotFound("disk".into());
    assert_eq!(server.remove_export("disk", RemoveMode::Safe), Err(gone));
}
