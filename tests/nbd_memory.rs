//! What clients of the NBD server can make it hold. A program of its own: it measures itself.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coblk::drivers::File;
use coblk::{BlockNode, nbd::NbdOptions};
use coblk_tests::nbd::{MAGIC, SIZE, Served, Session, choose, hogs, request};
use coblk_tests::storage_daemon::eventually;

/// One test measures at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Reads `len` bytes of the export, and takes the reply.
fn read(client: &mut UnixStream, len: u32) -> Vec<u8> {
    client.write_all(&request(MAGIC, 0, 0, 0, len)).unwrap();
    let mut reply = vec![1; 16 + len as usize];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    reply.split_off(16)
}

/// Memory of this process in KiB: that which it has, `VmRSS`, or the most that it has had, `VmHWM`.
fn memory_kib(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().unwrap()
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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
    let peak = memory_kib("VmHWM");
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

/// Of the clients of four contexts one in ten keeps to no rule; the others are served, and memory is
/// bounded.
#[test]
fn a_crowd_with_hostile_clients_is_served_and_its_memory_comes_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let count = std::env::var("COBLK_NBD_CLIENTS").map_or(150, |text| text.parse().unwrap());
    let options = NbdOptions::default().max_connections(0);
    let served = Served::on_contexts(env!("CARGO_TARGET_TMPDIR"), options, 4, |dir| {
        let image = dir.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        BlockNode::new("disk0", File::options().open(&image).unwrap())
    });
    let before = memory_kib("VmRSS");
    let (mut honest, mut hostile) = (Vec::new(), Vec::new());
    for number in 0..count {
        if number % 10 > 0 {
            honest.push(Session::open(&served.socket()));
            continue;
        }
        let mut client = choose(&served.socket());
        // Takes nothing; sends no more of a write; half a header; no request; nothing.
        let nonsense = match number / 10 % 5 {
            0 => request(MAGIC, 0, 0, 0, 32 << 20).repeat(2),
            1 => [request(MAGIC, 0, 1, 32 << 20, 8 << 20), vec![1; 5000]].concat(),
            2 => request(MAGIC, 0, 0, 0, 512)[..20].to_vec(),
            3 => vec![0xff; 64],
            _ => Vec::new(),
        };
        client.write_all(&nonsense).unwrap();
        hostile.push(client);
    }
    let mut most = 0;
    for round in 0..3u8 {
        for (number, session) in honest.iter_mut().enumerate() {
            let (data, at) = ([round ^ number as u8; 512], (number * 512) as u64);
            session.write(at, &data).unwrap();
            assert_eq!(session.read(at, 512).unwrap(), data, "client {number}");
        }
        most = most.max(memory_kib("VmRSS"));
    }
    // All payloads, and what each client has besides.
    let each = 128 * count as u64;
    assert!(most < before + (160 << 10) + each, "the server has held {most} KiB of {before}");
    drop((honest, hostile));
    eventually("all to go", || served.connections() == 0);
    let after = memory_kib("VmRSS");
    assert!(after < before + (16 << 10) + each / 4, "the server keeps {after} KiB of {before}");
}
