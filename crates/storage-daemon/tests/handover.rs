//! An image goes from one process to another and back under load, by `blockdev-set-active`: no write that
//! was acknowledged is lost, and none is torn.

mod util;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coblk_tests::nbd::Session;
use coblk_tests::random::Random;
use coblk_tests::sectors::{SECTOR_BYTES, fill, verify};
use coblk_tests::tools;
use serde_json::json;
use util::Place;
use util::qmp::Client;

const WRITERS: u64 = 4;
/// Of each writer.
const BLOCKS: u64 = 32;
const BLOCK_BYTES: usize = 4096;
const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;
/// In flight, of one writer.
const DEPTH: usize = 4;
const RUN: u64 = 29;
/// In the words of NBD.
const EPERM: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with the image; inactive until it is told.
struct Side {
    process: Child,
    qmp: Client,
    nbd: PathBuf,
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Side {
    /// Exports let others write: what keeps a second daemon out is a node in between. The peer's would do
    /// so while it is inactive, too; one of two is enough.
    fn start(place: &Place, program: &str, name: &str, more: &str) -> Side {
        let node = match program == OURS {
            true => "blkdebug,image=file,unshare-child-perms.0=write",
            false => "raw,file=file",
        };
        let line = format!(
            "--chardev socket,id=c0,path=@/{name}.qmp,server=on,wait=off --monitor chardev=c0 \
             --blockdev file,node-name=file,filename=@/disk.img,locking=on,active=off{more} \
             --blockdev {node},node-name=disk,active=off \
             --nbd-server addr.type=unix,addr.path=@/{name}.nbd \
             --export nbd,id=e0,node-name=disk,name=disk,writable=on,allow-inactive=on"
        );
        let mut command: Command = tools::command(program);
        command.args(line.split_whitespace().map(|it| place.fill_in(it)));
        let process = command.env_remove("RUST_LOG").spawn().unwrap();
        let qmp = Client::of_peer(&place.path(&format!("{name}.qmp")));
        Side { process, qmp, nbd: place.path(&format!("{name}.nbd")) }
    }

    fn set_active(&mut self, active: bool) {
        self.qmp.run("blockdev-set-active", json!({"node-name": "disk", "active": active}));
    }

    fn is_active(&mut self) -> bool {
        let nodes = self.qmp.run("query-named-block-nodes", json!({}));
        let mut nodes = nodes.as_array().unwrap().iter();
        nodes.find(|node| node["node-name"] == "disk").unwrap()["active"].as_bool().unwrap()
    }
}

/// Writes blocks of its own, a few at once, by whichever daemon takes them, until it is told to stop.
/// Returns the versions that were acknowledged.
fn write(number: u64, sockets: [PathBuf; 2], done: &AtomicU64, stop: &AtomicBool) -> Vec<u64> {
    // One a request in flight: answers name no request.
    let mut sides = sockets.map(|socket| [(); DEPTH].map(|()| Session::open(&socket)));
    let (mut random, mut acknowledged) = (Random::new(number), vec![0; BLOCKS as usize]);
    let (mut side, mut version) = (0, 0);
    let place = |block: u64| (number * BLOCKS + block) * BLOCK_BYTES as u64;
    let data = |block: u64, version: u64| {
        let mut data = vec![0; BLOCK_BYTES];
        fill(&mut data, RUN, place(block) / SECTOR_BYTES as u64, version);
        data
    };
    while !stop.load(Ordering::SeqCst) {
        version += 1;
        let first = random.below(BLOCKS);
        let mut left: Vec<u64> = (0..DEPTH as u64).map(|it| (first + it) % BLOCKS).collect();
        let end = Instant::now() + PATIENCE;
        while !left.is_empty() {
            assert!(Instant::now() < end, "neither daemon takes a write");
            let clients = &mut sides[side];
            for (client, block) in clients.iter_mut().zip(&left) {
                client.send(1, place(*block), BLOCK_BYTES as u32, &data(*block, version));
            }
            let mut clients = clients.iter_mut();
            left.retain(|block| match clients.next().unwrap().answer() {
                Ok(()) => {
                    acknowledged[*block as usize] = version;
                    false
                }
                Err(error) => {
                    assert_eq!(error, EPERM);
                    true
                }
            });
            if !left.is_empty() {
                side = 1 - side;
            }
        }
        done.fetch_add(1, Ordering::SeqCst);
        let block = random.below(BLOCKS);
        if let Ok(read) = sides[side][0].read(place(block), BLOCK_BYTES) {
            let wanted = acknowledged[block as usize];
            let is = if wanted == 0 { vec![0; BLOCK_BYTES] } else { data(block, wanted) };
            assert!(read == is, "writer {number}: block {block} is not as it was written");
        }
    }
    acknowledged
}

/// Between two daemons, each a program and more options of its image.
fn hand_over(programs: [(&str, &str); 2], rounds: usize) {
    let place = Place::new();
    let mut sides: [Side; 2] = [0, 1].map(|number| {
        let (program, more) = programs[number];
        Side::start(&place, program, ["a", "b"][number], more)
    });
    assert!(sides.iter_mut().all(|side| !side.is_active()));
    let sockets = || [sides[0].nbd.clone(), sides[1].nbd.clone()];
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (sockets, stop, done) = (sockets(), Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || write(number, sockets, &done, &stop))
        })
        .collect();
    sides[0].set_active(true);
    for round in 0..rounds {
        let (owner, other) = (round % 2, 1 - round % 2);
        let before = done.load(Ordering::SeqCst);
        util::wait_until("writes", || {
            writers.iter().any(|writer| writer.is_finished())
                || done.load(Ordering::SeqCst) >= before + 2 * WRITERS
        });
        let arguments = json!({"node-name": "disk", "active": true});
        let refused = sides[other].qmp.refused("blockdev-set-active", arguments);
        assert!(refused.contains("\"write\" lock"), "{refused}");
        assert!(sides[owner].is_active() && !sides[other].is_active());
        sides[owner].set_active(false);
        assert!(!sides[owner].is_active());
        sides[other].set_active(true);
        assert!(sides[other].is_active());
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged: Vec<u64> =
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    for side in &mut sides {
        side.set_active(false);
    }
    let required: Vec<u64> = acknowledged.iter().flat_map(|it| [*it; SECTORS]).collect();
    let image = fs::read(place.image()).unwrap();
    let written = &image[..required.len() * SECTOR_BYTES];
    verify(written, RUN, &required).unwrap();
    assert!(image[written.len()..].iter().all(|byte| *byte == 0), "written elsewhere");
}

const OURS: &str = env!("CARGO_BIN_EXE_coblk-storage-daemon");
const PEER: &str = "qemu-storage-daemon";

#[test]
fn an_image_goes_to_another_daemon_and_back() {
    hand_over([(OURS, ""), (OURS, ",aio=io_uring")], 24);
    hand_over([(OURS, ",cache.direct=on,aio=native"), (OURS, ",cache.direct=on")], 12);
}

#[test]
fn an_image_goes_to_the_peer_and_back() {
    if tools::qemu_major() < 10 {
        return util::expect_no_inactive_nodes();
    }
    hand_over([(OURS, ""), (PEER, "")], 24);
    hand_over([(PEER, ",cache.direct=on"), (OURS, ",cache.direct=on")], 12);
}
