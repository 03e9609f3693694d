//! The daemon is killed while a job works on a disk, and clients write to it over NBD: what was answered as durable
//! is on the disk that the clients were on, and no image is corrupt. Images of a chain are read as their headers
//! say then.
//!
//! `COBLK_KILL_ROUNDS` sets how often it is killed (default 12 with mirrors, and 4 with each of the other jobs).

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
const OTHER_ROUNDS: u64 = 4;
const CLIENTS: u64 = 2;
const SECTOR: u64 = 512;
/// Sectors of a client.
const SECTORS: u64 = 2048;
const LENGTH: u64 = CLIENTS * SECTORS * SECTOR;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mirror(&'static str),
    Backup,
    Stream,
    Commit,
    ActiveCommit,
}

impl Kind {
    fn is_of_chain(self) -> bool {
        matches!(self, Kind::Stream | Kind::Commit | Kind::ActiveCommit)
    }

    /// The image that clients are on, and that which they turn to.
    fn images(self) -> [&'static str; 2] {
        match self {
            Kind::Mirror(_) => ["source.raw", "target.qcow2"],
            Kind::Backup => ["source.raw", "source.raw"],
            Kind::Stream | Kind::Commit => ["top.qcow2", "top.qcow2"],
            Kind::ActiveCommit => ["top.qcow2", "base.qcow2"],
        }
    }

    /// The command that starts the job. Those that end by themselves are slow.
    fn command(self, seed: u64) -> (&'static str, Value) {
        let mut arguments = match self {
            Kind::Mirror(mode) => json!({
                "device": "source", "target": "target", "sync": "full", "copy-mode": mode,
                "on-target-error": "ignore",
            }),
            Kind::Backup => json!({
                "device": "source", "target": "target", "sync": "full", "speed": 4 << 20,
            }),
            Kind::Stream => json!({ "device": "top", "speed": 4 << 20 }),
            Kind::Commit => json!({
                "device": "top", "top-node": "mid", "base-node": "base", "speed": 4 << 20,
            }),
            Kind::ActiveCommit => json!({ "device": "top", "base-node": "base" }),
        };
        arguments["job-id"] = json!("j");
        if self == Kind::Stream && seed.is_multiple_of(2) {
            arguments["base-node"] = json!("base");
        }
        let command = match self {
            Kind::Mirror(_) => "blockdev-mirror",
            Kind::Backup => "blockdev-backup",
            Kind::Stream => "block-stream",
            Kind::Commit | Kind::ActiveCommit => "block-commit",
        };
        (command, arguments)
    }

    /// Whether it ends by a command.
    fn becomes_ready(self) -> bool {
        matches!(self, Kind::Mirror(_) | Kind::ActiveCommit)
    }
}

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

    /// Has the job work until the daemon is gone: gives it up now and then, and completes it once.
    fn work(&mut self, random: &mut Random, kind: Kind) -> Option<()> {
        loop {
            let (command, arguments) = kind.command(random.below(2));
            self.tell(command, arguments)?;
            if kind.becomes_ready() {
                self.until(|it| it["event"] == "BLOCK_JOB_READY")?;
            }
            thread::sleep(std::time::Duration::from_millis(random.below(30)));
            self.completes = random.below(3) == 0;
            match (self.completes, kind.becomes_ready()) {
                (true, true) => self.tell("job-complete", json!({"id": "j"}))?,
                (true, false) => {}
                (false, _) => self.tell("job-cancel", json!({"id": "j"}))?,
            }
            self.until(|it| it["data"]["status"] == "null")?;
            // A chain that is shorter now is not made so again.
            if self.completes && kind != Kind::Backup {
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

/// What is in the images of a chain at first, by their names: bytes that are all the same, and their range.
const LAYERS: [(&str, u8, u64, u64); 3] = [
    ("base", 0x11, 0, LENGTH),
    ("mid", 0x22, LENGTH / 4, LENGTH / 2),
    ("top", 0x33, LENGTH / 2 + 4096, LENGTH / 8),
];

/// Makes the images, and returns the options that open them.
fn make_images(place: &Place, kind: Kind) -> String {
    let length = LENGTH.to_string();
    let create = |image: &str, backing: Option<&str>| {
        let path = place.path(image);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        arguments.extend(backing.into_iter().flat_map(|it| ["-F", "qcow2", "-b", it]));
        arguments.extend([tools::text(&path), &length]);
        tools::run("qemu-img", arguments);
    };
    if !kind.is_of_chain() {
        std::fs::write(place.path("source.raw"), vec![0; LENGTH as usize]).unwrap();
        create("target.qcow2", None);
        return "--blockdev file,node-name=source,filename=@/source.raw \
                --blockdev qcow2,node-name=target,file.driver=file,file.filename=@/target.qcow2"
            .to_owned();
    }
    let (mut options, mut below) = (String::new(), None::<String>);
    for (name, byte, offset, bytes) in LAYERS {
        let image = format!("{name}.qcow2");
        create(&image, below.as_ref().map(|name| format!("{name}.qcow2")).as_deref());
        let write = format!("write -q -P {byte} {offset} {bytes}");
        let path = place.path(&image);
        tools::run("qemu-io", ["-f", "qcow2", "-c", &write, tools::text(&path)]);
        let backing = below.map_or(String::new(), |name| format!(",backing={name}"));
        options += &format!(
            "--blockdev qcow2,node-name={name},file.driver=file,file.filename=@/{image}{backing} "
        );
        below = Some(name.to_owned());
    }
    options
}

/// The clients, and what is on their parts of the disk at first.
fn clients(kind: Kind) -> Vec<Written> {
    let at_first = |sector: u64| {
        let at = sector * SECTOR;
        let is_there =
            |(.., offset, bytes): &&(_, _, u64, u64)| (*offset..offset + bytes).contains(&at);
        let layer = LAYERS.iter().rev().filter(|_| kind.is_of_chain()).find(is_there);
        layer.map_or(0, |(_, byte, ..)| u64::from_le_bytes([*byte; 8]))
    };
    let client = |client: u64| {
        let first = client * SECTORS;
        let answered = (first..first + SECTORS).map(at_first).collect();
        Written { first, answered, begun: None }
    };
    (0..CLIENTS).map(client).collect()
}

fn round(seed: u64, kind: Kind) {
    let mut random = Random::new(seed);
    let place = Place::in_memory();
    let images = make_images(&place, kind);
    let disk = if kind.is_of_chain() { "top" } else { "source" };
    let daemon = place.start(&format!(
        "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 {images} \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name={disk},name=disk,writable=on",
    ));
    let stream = connect(&place.path("qmp.sock"));
    let lines = BufReader::new(stream.try_clone().unwrap());
    let mut monitor = Monitor { stream, lines, completes: false, has_completed: false };
    monitor.message().expect("a greeting");
    monitor.tell("qmp_capabilities", json!({})).unwrap();
    let all = AtomicU64::new(0);
    let mut clients = clients(kind);
    let streams: Vec<_> = clients.iter().map(|_| choose(&place.socket())).collect();
    thread::scope(|scope| {
        for (client, stream) in clients.iter_mut().zip(streams) {
            let (all, mut random) = (&all, Random::new(seed * 10 + client.first));
            scope.spawn(move || client.work(stream, &mut random, all));
        }
        let (monitor, mut random_of_monitor) = (&mut monitor, Random::new(seed + 1));
        scope.spawn(move || monitor.work(&mut random_of_monitor, kind));
        let moment = 50 + random.below(3_000);
        wait_until("clients work", || all.load(Ordering::Relaxed) >= moment);
        daemon.signal(Signal::KILL);
    });
    drop(daemon);
    let what = format!("round {seed}, {kind:?}");
    let [before, after] = kind.images().map(|image| content(&place, image, &what));
    let fault = |disk: &[u8]| clients.iter().find_map(|client| client.fault(disk));
    let found = match (monitor.completes, monitor.has_completed) {
        (false, _) => fault(&before),
        (true, true) => fault(&after),
        // It may have turned them, and not told that.
        (true, false) => fault(&before).and_then(|_| fault(&after)),
    };
    assert_eq!(found, None, "{what}");
    if kind == Kind::Backup {
        content(&place, "target.qcow2", &what);
    }
}

fn rounds(default: u64) -> u64 {
    option("COBLK_KILL_ROUNDS").unwrap_or(default)
}

#[test]
fn j144_a_daemon_that_is_killed_in_a_mirror_leaves_the_disk_of_its_clients_whole() {
    for seed in 0..rounds(ROUNDS) {
        round(seed, Kind::Mirror(["background", "write-blocking"][(seed % 2) as usize]));
    }
}

#[test]
fn j144_a_daemon_that_is_killed_in_a_backup_leaves_the_disk_of_its_clients_whole() {
    (0..rounds(OTHER_ROUNDS)).for_each(|seed| round(seed, Kind::Backup));
}

#[test]
fn j144_a_daemon_that_is_killed_in_a_stream_leaves_the_disk_of_its_clients_whole() {
    (0..rounds(OTHER_ROUNDS)).for_each(|seed| round(seed, Kind::Stream));
}

#[test]
fn j144_a_daemon_that_is_killed_in_a_commit_leaves_the_disk_of_its_clients_whole() {
    for seed in 0..rounds(OTHER_ROUNDS) {
        round(seed, [Kind::Commit, Kind::ActiveCommit][(seed % 2) as usize]);
    }
}
