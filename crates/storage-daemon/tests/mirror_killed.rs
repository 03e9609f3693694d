//! The daemon is killed while a disk is mirrored into an image and clients write to it over NBD: what was answered as
//! durable is on the disk that the clients were on, and neither image is corrupt.
//!
//! `COBLK_KILL_ROUNDS` sets how often it is killed (default 12).

mod util;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use coblk_tests::nbd::{MAGIC, choose, request};
use coblk_tests::random::{Random, option};
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::{Place, connect, wait_until};

const ROUNDS: u64 = 12;
const CLIENTS: u64 = 2;
const SECTOR: u64 = 512;
/// Sectors of a client.
const SECTORS: u64 = 2048;
const LENGTH: u64 = CLIENTS * SECTORS * SECTOR;

/// What a client has written, by sectors: the last number that was answered, and one that may be there, too.
struct Written {
    first: u64,
    answered: Vec<u64>,
    begun: Option<(u64, u64)>,
}

impl Written {
    /// Writes numbers, each durable, until the daemon is gone.
    fn work(&mut self, mut stream: UnixStream, random: &mut Random, all: &AtomicU64) {
        for number in 1.. {
            let sector = random.below(SECTORS);
            self.begun = Some((sector, number));
            let mut data = [0; SECTOR as usize];
            data[..8].copy_from_slice(&number.to_le_bytes());
            let offset = (self.first + sector) * SECTOR;
            let bytes = [request(MAGIC, 1, 1, offset, SECTOR as u32), data.to_vec()].concat();
            let mut reply = [0; 16];
            if stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut reply)).is_err() {
                return;
            }
            assert_eq!(reply[4..8], [0; 4], "a request has failed");
            self.answered[sector as usize] = number;
            self.begun = None;
            all.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is wrong with the bytes of a disk.
    fn fault(&self, disk: &[u8]) -> Option<String> {
        (0..SECTORS).find_map(|sector| {
            let at = ((self.first + sector) * SECTOR) as usize;
            let found = u64::from_le_bytes(disk[at..at + 8].try_into().unwrap());
            let answered = self.answered[sector as usize];
            let is_right = found == answered || self.begun == Some((sector, found));
            (!is_right)
                .then(|| format!("sector {} has {found}, not {answered}", self.first + sector))
        })
    }
}

/// A monitor that may be gone at any moment, and what it was told.
struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// The job was told to turn the clients to the target.
    completes: bool,
    /// It has done so.
    has_completed: bool,
}

impl Monitor {
    fn tell(&mut self, command: &str, arguments: Value) -> Option<()> {
        let command = json!({"execute": command, "arguments": arguments});
        self.stream.write_all(command.to_string().as_bytes()).ok()
    }

    fn message(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).ok()?;
        let message: Value = serde_json::from_str(&line).ok()?;
        if message["event"] == "BLOCK_JOB_COMPLETED" && self.completes {
            assert!(message["data"].get("error").is_none(), "{message}");
            self.has_completed = true;
        }
        Some(message)
    }

    fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Option<()> {
        while !is_it(&self.message()?) {}
        Some(())
    }

    /// Mirrors the disk until the daemon is gone: gives it up now and then, and completes it once.
    fn work(&mut self, random: &mut Random, mode: &str) -> Option<()> {
        loop {
            let arguments = json!({
                "job-id": "j", "device": "source", "target": "target", "sync": "full",
                "copy-mode": mode, "on-target-error": "ignore",
            });
            self.tell("blockdev-mirror", arguments)?;
            self.until(|it| it["event"] == "BLOCK_JOB_READY")?;
            thread::sleep(std::time::Duration::from_millis(random.below(30)));
            self.completes = random.below(3) == 0;
            let command = if self.completes { "job-complete" } else { "job-cancel" };
            self.tell(command, json!({"id": "j"}))?;
            self.until(|it| it["data"]["status"] == "null")?;
            if self.completes {
                return self.until(|_| false);
            }
        }
    }
}

/// The bytes of a disk, as QEMU has them; its tables are whole.
fn content(place: &Place, name: &str, what: &str) -> Vec<u8> {
    let image = place.path(name);
    let format = if name.ends_with("qcow2") { "qcow2" } else { "raw" };
    if format == "qcow2" {
        let output = tools::output("qemu-img", ["check", "-f", "qcow2", tools::text(&image)]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{what}: {said}");
    }
    let raw = place.path("as.raw");
    let (from, to) = (tools::text(&image), tools::text(&raw));
    tools::run("qemu-img", ["convert", "-f", format, "-O", "raw", from, to]);
    std::fs::read(&raw).unwrap()
}

fn round(seed: u64) {
    let mut random = Random::new(seed);
    let place = Place::in_memory();
    std::fs::write(place.path("source.raw"), vec![0; LENGTH as usize]).unwrap();
    let (target, length) = (place.path("target.qcow2"), LENGTH.to_string());
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", tools::text(&target), &length]);
    let daemon = place.start(
        "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
         --blockdev file,node-name=source,filename=@/source.raw \
         --blockdev qcow2,node-name=target,file.driver=file,file.filename=@/target.qcow2 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=source,name=disk,writable=on",
    );
    let stream = connect(&place.path("qmp.sock"));
    let lines = BufReader::new(stream.try_clone().unwrap());
    let mut monitor = Monitor { stream, lines, completes: false, has_completed: false };
    monitor.message().expect("a greeting");
    monitor.tell("qmp_capabilities", json!({})).unwrap();
    let mode = ["background", "write-blocking"][(seed % 2) as usize];
    let all = AtomicU64::new(0);
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|client| Written {
            first: client * SECTORS,
            answered: vec![0; SECTORS as usize],
            begun: None,
        })
        .collect();
    let streams: Vec<_> = clients.iter().map(|_| choose(&place.socket())).collect();
    thread::scope(|scope| {
        for (client, stream) in clients.iter_mut().zip(streams) {
            let (all, mut random) = (&all, Random::new(seed * 10 + client.first));
            scope.spawn(move || client.work(stream, &mut random, all));
        }
        let (monitor, mut random_of_monitor) = (&mut monitor, Random::new(seed + 1));
        scope.spawn(move || monitor.work(&mut random_of_monitor, mode));
        let moment = 50 + random.below(3_000);
        wait_until("clients work", || all.load(Ordering::Relaxed) >= moment);
        daemon.signal(Signal::KILL);
    });
    drop(daemon);
    let what = format!("round {seed}, {mode}");
    let (source, target) =
        (content(&place, "source.raw", &what), content(&place, "target.qcow2", &what));
    let fault = |disk: &[u8]| clients.iter().find_map(|client| client.fault(disk));
    let found = match (monitor.completes, monitor.has_completed) {
        (false, _) => fault(&source),
        (true, true) => fault(&target),
        // It may have turned them, and not told that.
        (true, false) => fault(&source).and_then(|_| fault(&target)),
    };
    assert_eq!(found, None, "{what}");
}

#[test]
fn j144_a_killed_daemon_leaves_the_disk_of_its_clients_whole() {
    for seed in 0..option("COBLK_KILL_ROUNDS").unwrap_or(ROUNDS) {
        round(seed);
    }
}
