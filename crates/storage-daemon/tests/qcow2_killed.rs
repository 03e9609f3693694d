//! The daemon is killed while clients change a qcow2 overlay over NBD, and a monitor makes and deletes
//! snapshots and changes the length: what was flushed is there, and nothing is corrupt.
//!
//! `COBLK_KILL_ROUNDS` sets how often it is killed (default 20).

mod util;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use coblk_tests::nbd::{MAGIC, choose, request};
use coblk_tests::random::{Random, option};
use coblk_tests::recorded::SECTOR;
use coblk_tests::register::{Print, Registers, print_of, zero_print};
use coblk_tests::{sectors, tools};
use rustix::process::Signal;
use serde_json::{Value, json};
use util::{Place, connect, wait_until};

const ROUNDS: u64 = 20;
const CLIENTS: u64 = 3;
/// Sectors that clients change. The disk is longer.
const SECTORS: u64 = 4096;
const DISK_BYTES: u64 = 3 << 20;
/// Sectors of a cluster.
const CLUSTER: u64 = 8;
/// Clusters that may leak in all: as many as all rounds have touched.
const MAX_LEAKS: u64 = 4000;

/// What a monitor does beside the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nothing,
    Snapshots,
    Lengths,
}

/// What clients have asked for, and what they were told.
struct Disk {
    registers: Registers,
    now: u64,
}

impl Disk {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

struct Round {
    seed: u64,
    disk: Mutex<Disk>,
    acknowledged: AtomicU64,
    discards: bool,
}

/// Sends a request and waits for its answer. `None`: the daemon is gone.
fn ask(stream: &mut UnixStream, request: &[u8]) -> Option<()> {
    let mut reply = [0; 16];
    stream.write_all(request).and_then(|()| stream.read_exact(&mut reply)).ok()?;
    assert_eq!(reply[4..8], [0; 4], "a request has failed");
    Some(())
}

impl Round {
    /// What NBD calls a request that is drawn: its command and flags, or none for a flush.
    fn draw(&self, random: &mut Random) -> Option<(u16, u16)> {
        const WRITE: (u16, u16) = (1, 0);
        const DURABLE: (u16, u16) = (1, 1);
        const TRIM: (u16, u16) = (4, 0);
        const ZEROES: (u16, u16) = (6, 0);
        const ZEROES_IN_PLACE: (u16, u16) = (6, 2);
        let all = match self.discards {
            false => [WRITE, WRITE, WRITE, WRITE, DURABLE, TRIM, ZEROES, ZEROES_IN_PLACE],
            true => [WRITE, WRITE, TRIM, TRIM, TRIM, TRIM, ZEROES, ZEROES_IN_PLACE],
        };
        all.get(random.below(all.len() as u64 + 1) as usize).copied()
    }

    /// One request; `None` if the daemon is gone.
    fn request(&self, stream: &mut UnixStream, random: &mut Random) -> Option<()> {
        let Some((command, flags)) = self.draw(random) else {
            let begun = self.disk.lock().unwrap().tick();
            ask(stream, &request(MAGIC, 0, 3, 0, 0))?;
            let mut disk = self.disk.lock().unwrap();
            let ended = disk.tick();
            disk.registers.flushed(begun, ended);
            return Some(());
        };
        let (mut first, mut count) = (random.below(SECTORS), 1 + random.below(3 * CLUSTER));
        if random.below(3) == 0 {
            (first, count) = (first - first % CLUSTER, count.next_multiple_of(CLUSTER));
        }
        let count = count.min(SECTORS - first);
        let (change, bytes) = {
            let mut disk = self.disk.lock().unwrap();
            let begun = disk.tick();
            let mut data = vec![0; if command == 1 { count as usize * SECTOR } else { 0 }];
            sectors::fill(&mut data, self.seed, first, begun);
            let prints: Vec<Print> = match command {
                1 => data.chunks(SECTOR).map(print_of).collect(),
                _ => vec![zero_print(); count as usize],
            };
            let change = disk.registers.begin(first as usize, &prints, begun, command == 4);
            let (offset, bytes) = (first * SECTOR as u64, (count * SECTOR as u64) as u32);
            (change, [request(MAGIC, flags, command, offset, bytes), data].concat())
        };
        ask(stream, &bytes)?;
        let mut disk = self.disk.lock().unwrap();
        let ended = disk.tick();
        disk.registers.end(&change, ended, flags & 1 != 0, false);
        Some(())
    }

    /// Makes requests until the daemon is gone.
    fn work(&self, mut stream: UnixStream, client: u64) {
        let mut random = Random::new(self.seed * 100 + client);
        while self.request(&mut stream, &mut random).is_some() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A monitor that may be gone at any moment.
struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn new(socket: &Path) -> Monitor {
        let stream = connect(socket);
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut monitor = Monitor { stream, lines };
        monitor.line().expect("a greeting");
        monitor.ask("qmp_capabilities", json!({})).expect("an answer");
        monitor
    }

    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Whether the command has succeeded; `None` if it was not answered.
    fn ask(&mut self, command: &str, arguments: Value) -> Option<()> {
        let command = json!({"execute": command, "arguments": arguments});
        self.stream.write_all(command.to_string().as_bytes()).ok()?;
        loop {
            let answer = self.line()?;
            if answer.get("event").is_none() {
                assert!(answer.get("return").is_some(), "{command}: {answer}");
                return Some(());
            }
        }
    }
}

/// Names of snapshots: those that there are, and one that is being made or deleted.
#[derive(Default)]
struct Snapshots {
    there: Vec<String>,
    perhaps: Option<String>,
}

/// Makes and deletes snapshots until the daemon is gone.
fn change_snapshots(mut monitor: Monitor, snapshots: &mut Snapshots, random: &mut Random) {
    for number in 0.. {
        let is_new = snapshots.there.len() < 3 && random.below(3) > 0 || snapshots.there.is_empty();
        let name = match is_new {
            true => format!("{}-{number}", random.number()),
            false => {
                snapshots.there.swap_remove(random.below(snapshots.there.len() as u64) as usize)
            }
        };
        let command = match is_new {
            true => "blockdev-snapshot-internal-sync",
            false => "blockdev-snapshot-delete-internal-sync",
        };
        snapshots.perhaps = Some(name.clone());
        if monitor.ask(command, json!({"device": "disk", "name": name})).is_none() {
            return;
        }
        snapshots.there.extend(snapshots.perhaps.take().filter(|_| is_new));
    }
}

/// Changes the length of the disk, behind what clients change, until the daemon is gone.
fn change_length(mut monitor: Monitor, random: &mut Random) {
    loop {
        let size = SECTORS * SECTOR as u64 + random.below(2000) * SECTOR as u64;
        if monitor.ask("block_resize", json!({"node-name": "disk", "size": size})).is_none() {
            return;
        }
    }
}

/// An image in a directory, over many lives of the daemon.
struct Image {
    place: Place,
    path: PathBuf,
    snapshots: Snapshots,
}

impl Image {
    fn new() -> Image {
        let place = Place::in_memory();
        let [raw, base, path] = ["base.raw", "base.qcow2", "top.qcow2"].map(|it| place.path(it));
        let mut content = vec![0; DISK_BYTES as usize / 2];
        Random::new(7).fill(&mut content);
        std::fs::write(&raw, content).unwrap();
        let [raw, base, top] = [&raw, &base, &path].map(|it| tools::text(it).to_owned());
        tools::run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &raw, &base]);
        let options = "cluster_size=4k,backing_file=base.qcow2,backing_fmt=qcow2";
        let size = DISK_BYTES.to_string();
        tools::run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, &top, &size]);
        Image { place, path, snapshots: Snapshots::default() }
    }

    /// What a guest reads of what clients change, as QEMU has it.
    fn content(&self) -> Vec<u8> {
        let raw = self.place.path("as.raw");
        let [image, to] = [&self.path, &raw].map(|it| tools::text(it));
        tools::run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", image, to]);
        let mut content = std::fs::read(&raw).unwrap();
        content.truncate(SECTORS as usize * SECTOR);
        content
    }

    /// `qemu-img check`: its exit code, and what it says.
    fn check(&self, more: &[&str]) -> (i32, String) {
        let image = tools::text(&self.path);
        let args = [&["check", "-f", "qcow2"], more, &[image]].concat();
        let output = tools::output("qemu-img", args);
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Nothing is corrupt, but in an image that says it is to be repaired. Such a one is repaired.
    fn expect_good(&self, what: &str) {
        let is_dirty = std::fs::read(&self.path).unwrap()[79] & 1 != 0;
        let (code, said) = match is_dirty {
            true => self.check(&["-r", "all"]),
            false => self.check(&[]),
        };
        assert!(code == 0 || code == 3, "{what}: {said}");
        let leaks = said.lines().filter(|line| line.starts_with("Leaked cluster")).count();
        assert!(leaks as u64 <= MAX_LEAKS, "{what}: {leaks} clusters leak");
    }

    /// The snapshots that were made and not deleted are there, and no others.
    fn expect_snapshots(&mut self, what: &str) {
        let image = tools::text(&self.path);
        let info = tools::run("qemu-img", ["info", "-f", "qcow2", "--output=json", image]);
        let info: Value = serde_json::from_str(&info).unwrap();
        let listed = info["snapshots"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> =
            listed.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
        let Snapshots { there, perhaps } = &mut self.snapshots;
        names.sort();
        there.sort();
        let known: Vec<String> =
            names.iter().filter(|it| Some(*it) != perhaps.as_ref()).cloned().collect();
        assert_eq!(known, *there, "{what}: perhaps {perhaps:?}");
        self.snapshots = Snapshots { there: names, perhaps: None };
    }

    /// One life of the daemon, which ends at any moment.
    fn round(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        let beside = [Beside::Nothing, Beside::Snapshots, Beside::Lengths][(seed % 3) as usize];
        let mut content = self.content();
        content.resize(SECTORS as usize * SECTOR, 0);
        let round = Round {
            seed,
            disk: Mutex::new(Disk { registers: Registers::new(&content), now: 1 }),
            acknowledged: AtomicU64::new(0),
            discards: seed % 4 == 1,
        };
        for name in ["nbd.sock", "qmp.sock", "pid"] {
            let _ = std::fs::remove_file(self.place.path(name));
        }
        let daemon = self.place.start(
            "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
             --blockdev qcow2,node-name=disk,discard=unmap,file.driver=file,\
             file.filename=@/top.qcow2,file.discard=unmap \
             --nbd-server addr.type=unix,addr.path=@/nbd.sock \
             --export nbd,id=e0,node-name=disk,name=disk,writable=on",
        );
        // All are connected before the first of them works.
        let monitor = Monitor::new(&self.place.path("qmp.sock"));
        let streams: Vec<_> = (0..CLIENTS).map(|it| (it, choose(&self.place.socket()))).collect();
        let snapshots = &mut self.snapshots;
        thread::scope(|scope| {
            for (client, stream) in streams {
                let round = &round;
                scope.spawn(move || round.work(stream, client));
            }
            let moment = 20 + random.below(600);
            match beside {
                Beside::Nothing => drop(monitor),
                Beside::Snapshots => {
                    scope.spawn(|| change_snapshots(monitor, snapshots, &mut random));
                }
                Beside::Lengths => {
                    scope.spawn(|| change_length(monitor, &mut random));
                }
            }
            wait_until("clients work", || round.acknowledged.load(Ordering::Relaxed) >= moment);
            daemon.signal(Signal::KILL);
        });
        drop(daemon);
        let what = format!("round {seed}, {beside:?}");
        self.expect_good(&what);
        self.expect_snapshots(&what);
        let mut disk = round.disk.lock().unwrap();
        let now = disk.tick();
        for (at, sector) in self.content().chunks(SECTOR).enumerate() {
            let verdict = disk.registers.check_crash(at, print_of(sector), now);
            verdict.unwrap_or_else(|fault| panic!("{what}: {fault}"));
        }
    }
}

#[test]
fn q223_what_was_flushed_outlives_a_killed_daemon() {
    let mut image = Image::new();
    // The disk as long as what clients change.
    let (path, size) =
        (tools::text(&image.path), (SECTORS * SECTOR as u64 + (1 << 20)).to_string());
    tools::run("qemu-img", ["resize", "-q", "-f", "qcow2", path, &size]);
    for seed in 0..option("COBLK_KILL_ROUNDS").unwrap_or(ROUNDS) {
        image.round(seed);
    }
    // All that leaks is found.
    let before = image.content();
    let (code, said) = image.check(&["-r", "leaks"]);
    assert_eq!(code, 0, "{said}");
    assert!(image.content() == before, "a repair has changed what the guest reads");
}
