//! What clients of the NBD server can make it hold. A program of its own: it measures itself.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coblk_tests::nbd::{MAGIC, Served, choose, hogs, request};

/// Reads `len` bytes of the export, and takes the reply.
fn read(client: &mut UnixStream, len: u32) -> Vec<u8> {
    client.write_all(&request(MAGIC, 0, 0, 0, len)).unwrap();
    let mut reply = vec![1; 16 + len as usize];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    reply.split_off(16)
}

/// The most memory this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Writes `len` times `byte` to the beginning of the export.
fn write(client: &mut UnixStream, byte: u8, len: usize) {
    client.write_all(&request(MAGIC, 0, 1, 0, len as u32)).unwrap();
    client.write_all(&vec![byte; len]).unwrap();
    let mut reply = [1; 16];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

#[test]
fn clients_that_never_read_cost_little_and_keep_nobody_waiting() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    // Two that go on, by a byte now and then: one sends, one takes.
    let mut sender = choose(&served.socket());
    sender.write_all(&request(MAGIC, 0, 1, 1 << 20, 32 << 20)).unwrap();
    sender.write_all(&[1; 512]).unwrap();
    // Once the one after it is answered it has its memory.
    let mut taker = hogs(&served, 1, 0).remove(0);
    let mut fifty = hogs(&served, 50, 0);
    let mut honest = choose(&served.socket());
    // A client that had to wait for the others would wait longer than that for its first reply.
    honest.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    for round in 1..=8 {
        write(&mut honest, round, 32 << 20);
        for len in [4096, 1 << 20, 32 << 20] {
            assert!(read(&mut honest, len).iter().all(|byte| *byte == round));
        }
    }
    let peak = peak_kib();
    assert!(peak < 256 << 10, "50 clients made the server hold {peak} KiB");
    assert!(peak > 64 << 10, "nobody held anything: {peak} KiB");

    // Who keeps memory that others did not get is disconnected, in time.
    let holder = &mut fifty[0];
    let mut gone = [false; 3];
    for _ in 0..400 {
        std::thread::sleep(Duration::from_millis(100));
        gone[0] |= holder.write_all(&[0]).is_err();
        gone[1] |= sender.write_all(&[1]).is_err();
        gone[2] |= taker.read_exact(&mut [0]).and_then(|()| taker.write_all(&[0])).is_err();
        if gone == [true; 3] {
            return;
        }
        // Without one that gets none, no client is asked to hurry.
        write(&mut honest, 9, 32 << 20);
    }
    panic!(
        "not disconnected: one that does nothing, one that sends a little, one that takes a little: {gone:?}"
    );
}
