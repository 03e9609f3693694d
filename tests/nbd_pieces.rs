//! Reads of the NBD server that are not one message: requests in pieces while other clients keep the
//! memory, and holes.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coblk::block::RequestKind;
use coblk::block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk::drivers::File;
use coblk::nbd::NbdOptions;
use coblk::{BlockNode, drivers::Null};
use coblk_tests::nbd::{
    MAGIC, SIZE, Served, choose, choose_structured, hogs, read_structured, request,
};
use coblk_tests::tools;

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");
const MIB: usize = 1 << 20;
/// Reads ask for one chunk.
const DF: u16 = 4;

/// A server on a file whose third MiB can be neither read nor written.
fn served_with_faults() -> Served {
    let rules = Rules::new(1);
    for kind in [RequestKind::Read, RequestKind::Write] {
        rules.add(Rule::fail(libc::EIO).on(kind).within(2 << 20..3 << 20));
    }
    Served::with_node(PARENT, |dir| {
        let image = dir.join("disk.img");
        let bytes: Vec<u8> = (0..SIZE as usize).map(|at| (at / 777) as u8).collect();
        std::fs::write(&image, bytes).unwrap();
        let file = BlockNode::new("file0", File::options().open(&image).unwrap());
        BlockNode::new("disk0", BlkDebug::new(file, rules))
    })
}

#[test]
fn a_request_in_pieces_fails_as_others_do() {
    let served = served_with_faults();
    let _hogs = hogs(&served, 6, 16 << 20);

    let mut structured = choose_structured(&served.socket());
    structured.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let whole = read_structured(&mut structured, 0, 3 << 20, 32 << 20);
    assert!(whole.chunks > 1, "it did not come in pieces");
    let expected = |at: usize| (at / 777) as u8;
    assert!(whole.data.iter().enumerate().all(|(at, byte)| *byte == expected(3 * MIB + at)));
    let one = read_structured(&mut structured, DF, 3 << 20, 32 << 20);
    assert!(one.chunks == 1 && one.data == whole.data);
    let broken = read_structured(&mut structured, 0, 0, 32 << 20);
    assert_eq!(broken.error, Some(5));
    assert_eq!(read_structured(&mut structured, 0, 0, 4096).error, None);

    // All of the data is taken, whatever becomes of it.
    structured.write_all(&request(MAGIC, 0, 1, 1 << 20, 32 << 20)).unwrap();
    structured.write_all(&vec![9; 32 * MIB]).unwrap();
    let mut reply = [0; 26];
    structured.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1]);
    assert_eq!(read_structured(&mut structured, 0, 1 << 20, 4096).data, [9; 4096]);

    // A simple reply that has begun cannot tell of an error: the connection ends.
    let mut simple = choose(&served.socket());
    simple.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    simple.write_all(&request(MAGIC, 0, 0, 0, 32 << 20)).unwrap();
    let mut said = Vec::new();
    match simple.read_to_end(&mut said) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        Ok(_) => assert!(said.len() < 32 * MIB, "{} bytes came", said.len()),
    }
    served.check();
}

#[test]
fn zeroes_come_as_holes_unless_one_chunk_is_asked_for() {
    let served = Served::new(PARENT);
    let mut client = choose_structured(&served.socket());
    client.write_all(&request(MAGIC, 0, 1, 256 << 10, 64 << 10)).unwrap();
    client.write_all(&[7; 64 << 10]).unwrap();
    client.read_exact(&mut [0; 16]).unwrap();
    let mut expected = vec![0; MIB];
    expected[256 << 10..320 << 10].fill(7);

    let reply = read_structured(&mut client, 0, 0, 1 << 20);
    assert_eq!((reply.chunks, reply.holes), (3, MIB - (64 << 10)));
    assert!(reply.data == expected);
    let reply = read_structured(&mut client, DF, 0, 1 << 20);
    assert_eq!((reply.chunks, reply.holes), (1, 0));
    assert!(reply.data == expected);
    // Not aligned to anything.
    let reply = read_structured(&mut client, 0, (256 << 10) - 5, 100_000);
    assert!(reply.data == expected[(256 << 10) - 5..][..100_000]);
    assert!(reply.holes > 0 && reply.chunks == 2);
    for len in [0, 1, 512, 4096] {
        let reply = read_structured(&mut client, 0, 0, len);
        assert_eq!((reply.chunks, reply.holes), (1, len as usize));
    }
}

#[test]
fn sparse_images_are_copied_by_other_peoples_clients() {
    let served = Served::new(PARENT);
    let uri = served.uri("disk");
    let source = served.dir.path().join("source");
    let mut bytes = vec![0; SIZE as usize];
    // Runs of data and of zeroes of many lengths, with ends that are not aligned.
    for (round, at) in (0..bytes.len()).step_by(3 * MIB / 2).enumerate() {
        let len = (1 << (round % 20)) + round;
        let end = (at + len).min(bytes.len());
        bytes[at..end].fill(round as u8 + 1);
    }
    std::fs::write(&source, &bytes).unwrap();
    tools::run("nbdcopy", [tools::text(&source), &uri]);
    for (client, args) in [
        ("nbdcopy", &["--request-size=1048576"][..]),
        ("nbdcopy", &["--allocated", "--no-extents"]),
        ("qemu-img", &["convert", "-f", "raw", "-O", "raw"]),
        ("qemu-img", &["convert", "-S", "0", "-f", "raw", "-O", "raw"]),
    ] {
        let back = served.dir.path().join("back");
        tools::run(client, args.iter().copied().chain([uri.as_str(), tools::text(&back)]));
        assert!(std::fs::read(&back).unwrap() == bytes, "{client} {args:?}");
        std::fs::remove_file(&back).unwrap();
    }
}

/// A client that is always busy is not the only one that is served.
#[test]
fn a_busy_client_lets_others_have_their_turn() {
    let null = |_: &Path| -> Arc<BlockNode> { BlockNode::new("disk0", Null::new(SIZE)) };
    let served = Served::with_options(PARENT, NbdOptions::default(), None, null);
    let mut busy = choose(&served.socket());
    let writer = std::thread::spawn(move || {
        let flushes: Vec<u8> = (0..4096).flat_map(|_| request(MAGIC, 0, 3, 0, 0)).collect();
        let mut replies = vec![0; 4096 * 16];
        let mut sent = 0usize;
        // Ends when the other one is done: it closes the connection of both.
        while busy.write_all(&flushes).and_then(|()| busy.read_exact(&mut replies)).is_ok() {
            sent += 4096;
        }
        sent
    });
    let mut other = choose(&served.socket());
    for _ in 0..1000 {
        other.write_all(&request(MAGIC, 0, 3, 0, 0)).unwrap();
        other.read_exact(&mut [0; 16]).unwrap();
    }
    drop(served);
    assert!(writer.join().unwrap() > 0, "nobody was busy");
}
