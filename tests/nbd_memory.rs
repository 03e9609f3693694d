//! What clients of the NBD server can make it hold. A program of its own: it measures itself.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coblk_tests::nbd::{MAGIC, Served, choose, request};

/// Reads `len` bytes of the export, and takes the reply.
fn read(client: &mut UnixStream, len: u32) {
    client.write_all(&request(MAGIC, 0, 0, 0, len)).unwrap();
    let mut reply = vec![1; 16 + len as usize];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

/// The most memory this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn hogs(served: &Served, count: usize) -> Vec<UnixStream> {
    let mut hogs: Vec<UnixStream> = (0..count).map(|_| choose(&served.socket())).collect();
    for hog in &mut hogs {
        for _ in 0..2 {
            hog.write_all(&request(MAGIC, 0, 0, 0, 32 << 20)).unwrap();
        }
    }
    hogs
}

#[test]
fn clients_that_never_read_cost_little_and_give_way() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let fifty = hogs(&served, 50);
    std::thread::sleep(Duration::from_secs(1));
    let mut honest = choose(&served.socket());
    let before = Instant::now();
    read(&mut honest, 4096);
    read(&mut honest, 1 << 20);
    assert!(before.elapsed() < Duration::from_secs(5), "waited {:?}", before.elapsed());
    let peak = peak_kib();
    assert!(peak < 256 << 10, "50 clients made the server hold {peak} KiB");
    assert!(peak > 64 << 10, "nobody held anything: {peak} KiB");
    drop(fifty);

    // One that keeps all the memory for long requests loses its connection to one that waits.
    let mut two = hogs(&served, 2);
    std::thread::sleep(Duration::from_millis(200));
    honest.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    read(&mut honest, 32 << 20);
    let mut taken = Vec::new();
    let ended = two[0].read_to_end(&mut taken);
    assert!(ended.is_err() || taken.len() < 64 << 20, "it was not disconnected");
}
