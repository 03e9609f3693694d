//! A guest moves forth and back between two daemons while it reads and writes: what a virtual machine monitor
//! does, with a guest whose every request is known. Its memory is copied while daemon and guest write to it, by
//! their logs of pages; once it has moved, the copy has to be the memory, byte by byte. Each read has to find
//! what was written last.
//!
//! `COBLK_MOVES` sets how often it moves (default 20).

mod util;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use coblk_block::{BlockNode, drivers};
use coblk_tests::random::{Random, option};
use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use rustix::fs::{MemfdFlags, memfd_create};
use util::guest::{
    BLOCK, DEPTH, Guest, INFLIGHT_BIT, MEMORY_BYTES, READ, RING_PACKED, SIZE, SKIP_DRAIN_BIT,
    WRITE, negotiate_more, stop_without_drain,
};
use util::pages::{PAGE, Pages};
use util::{DISK_BYTES, Server, wait_until};
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

const LOG_ALL: u64 = 1 << 26;
const QUEUES: usize = 2;
/// Pages for the data of a request, any of which it may use; they follow the memory of the rings.
const SLOT_PAGES: u64 = 48;
const QUEUE_BYTES: usize = MEMORY_BYTES.next_multiple_of(4096) + DEPTH * SLOT_PAGES as usize * 4096;
/// From one queue's memory to the next one's.
const STRIDE: u64 = 8 << 20;
const END: u64 = STRIDE * QUEUES as u64;
/// Each queue has its part of the disk.
const BLOCKS: u64 = DISK_BYTES / BLOCK as u64 / QUEUES as u64;
/// Requests that the guest makes between two copies.
const BETWEEN: u64 = 300;

/// One processor of the guest, with a queue of its own.
struct Processor {
    guest: Guest,
    random: Random,
    /// What was written last to each block, and whether a request for it is in flight.
    blocks: Vec<(u8, bool)>,
    /// For each slot: kind, block, place in the queue's memory.
    pending: [Option<(u32, u64, usize)>; DEPTH],
    verified: u64,
}

impl Processor {
    fn new(queue: usize, packed: bool) -> Processor {
        let mut guest = Guest::with_memory(QUEUE_BYTES).ringed(packed);
        (guest.queue, guest.origin) = (queue, queue as u64 * STRIDE);
        guest.written = Some(Arc::new(Pages::new(END)));
        let blocks = vec![(0, false); BLOCKS as usize];
        let random = Random::new(queue as u64);
        Processor { guest, random, blocks, pending: [None; DEPTH], verified: 0 }
    }

    /// Runs until it is stopped, with requests in flight.
    fn run(mut self, stopped: &AtomicBool, done: &AtomicU64) -> Processor {
        loop {
            done.fetch_add(self.reap() as u64, Ordering::SeqCst);
            for slot in 0..DEPTH {
                if self.pending[slot].is_none() {
                    self.submit(slot);
                }
            }
            self.guest.make_available();
            self.guest.kick.write(1).unwrap();
            if stopped.load(Ordering::SeqCst) {
                return self;
            }
            std::thread::yield_now();
        }
    }

    fn submit(&mut self, slot: usize) {
        let block = loop {
            let block = self.random.below(BLOCKS);
            if !self.blocks[block as usize].1 {
                break block;
            }
        };
        let page = slot as u64 * SLOT_PAGES + self.random.below(SLOT_PAGES);
        let place = MEMORY_BYTES.next_multiple_of(4096) + (page * PAGE) as usize;
        let kind = if self.random.below(2) == 0 { READ } else { WRITE };
        if kind == WRITE {
            let value = self.random.below(255) as u8 + 1;
            self.guest.store(place, &[value; BLOCK]);
            self.blocks[block as usize].0 = value;
        }
        self.blocks[block as usize].1 = true;
        self.pending[slot] = Some((kind, block, place));
        let sector = (self.guest.queue as u64 * BLOCKS + block) * (BLOCK as u64 / 512);
        self.guest.prepare_at(slot, kind, sector, self.guest.origin + place as u64, BLOCK);
    }

    fn reap(&mut self) -> usize {
        let answers = self.guest.reap();
        for &(slot, status) in &answers {
            let (kind, block, place) = self.pending[slot].take().expect("it is answered twice");
            assert_eq!(status, 0, "block {block}");
            let (value, in_flight) = &mut self.blocks[block as usize];
            assert!(std::mem::take(in_flight));
            if kind == READ {
                let mut data = [0; BLOCK];
                self.guest.load_bytes(place, &mut data);
                assert!(data == [*value; BLOCK], "block {block} is {}, not {value}", data[0]);
                self.verified += 1;
            }
        }
        answers.len()
    }
}

/// Processors that run.
struct Running {
    memory: Memory,
    /// Pages that each has written.
    written: Vec<Arc<Pages>>,
    stopped: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Processor>>,
}

impl Running {
    fn start(processors: Vec<Processor>) -> Running {
        let (stopped, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let memory =
            Memory(processors.iter().map(|it| it.guest.file.try_clone().unwrap()).collect());
        let written = processors.iter().filter_map(|it| it.guest.written.clone()).collect();
        let start = |processor: Processor| {
            let (stopped, done) = (Arc::clone(&stopped), Arc::clone(&done));
            std::thread::spawn(move || processor.run(&stopped, &done))
        };
        let threads = processors.into_iter().map(start).collect();
        Running { memory, written, stopped, done, threads }
    }

    /// Waits until they have made some requests more.
    fn go_on(&self) {
        let begin = self.done.load(Ordering::SeqCst);
        wait_until("requests are answered", || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "the guest has died");
            self.done.load(Ordering::SeqCst) >= begin + BETWEEN
        });
    }

    fn stop(self) -> Vec<Processor> {
        self.stopped.store(true, Ordering::SeqCst);
        let join = |thread: JoinHandle<Processor>| thread.join().expect("the guest has died");
        self.threads.into_iter().map(join).collect()
    }
}

/// A guest's memory: a file a queue.
#[derive(Clone)]
struct Memory(Arc<[File]>);

impl Memory {
    /// Copies pages. There are none between the memory of one queue and that of the next.
    fn copy(&self, to: &Memory, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            let (queue, offset) = ((page * PAGE / STRIDE) as usize, page * PAGE % STRIDE);
            assert!(offset < QUEUE_BYTES as u64, "page {page} is marked, where there is no memory");
            let mut bytes = [0; PAGE as usize];
            self.0[queue].read_exact_at(&mut bytes, offset).unwrap();
            to.0[queue].write_all_at(&bytes, offset).unwrap();
        }
    }

    fn all_pages() -> impl Iterator<Item = u64> {
        let pages =
            |queue| (0..QUEUE_BYTES as u64 / PAGE).map(move |it| queue * STRIDE / PAGE + it);
        (0..QUEUES as u64).flat_map(pages)
    }

    fn expect_equal(&self, copy: &Memory) {
        let mut bytes = [vec![0; QUEUE_BYTES], vec![0; QUEUE_BYTES]];
        for (queue, files) in self.0.iter().zip(copy.0.iter()).enumerate() {
            files.0.read_exact_at(&mut bytes[0], 0).unwrap();
            files.1.read_exact_at(&mut bytes[1], 0).unwrap();
            let pages = bytes[0].chunks(4096).zip(bytes[1].chunks(4096));
            let different: Vec<usize> =
                pages.enumerate().filter(|(_, (one, other))| one != other).map(|it| it.0).collect();
            assert!(different.is_empty(), "pages {different:?} of queue {queue} are not as copied");
        }
    }
}

/// The front end's end of a daemon.
struct Link {
    stream: UnixStream,
    front: Frontend,
    features: u64,
    bits: u64,
    /// Of requests in flight.
    inflight: (VhostUserInflight, File),
}

impl Link {
    fn connect(server: &Server, packed: bool, bits: u64, before: Option<&Link>) -> Link {
        let stream = UnixStream::connect(&server.socket).unwrap();
        let mut front = negotiate_more(stream.try_clone().unwrap(), bits, packed);
        let without = LOG_ALL | if packed { 0 } else { RING_PACKED };
        let features = front.get_features().unwrap() & !without;
        front.set_features(features).unwrap();
        let new = VhostUserInflight::new(0, 0, QUEUES as u16, SIZE as u16);
        let (layout, log) = match before.map(|it| &it.inflight) {
            Some((layout, log)) => {
                let mut bytes = vec![0; log.metadata().unwrap().len() as usize];
                log.read_exact_at(&mut bytes, 0).unwrap();
                let log = File::from(memfd_create("moved", MemfdFlags::CLOEXEC).unwrap());
                log.write_all_at(&bytes, 0).unwrap();
                (*layout, log)
            }
            None => front.get_inflight_fd(&new).unwrap(),
        };
        front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
        Link { stream, front, features, bits, inflight: (layout, log) }
    }

    /// Has the daemon log from now on.
    fn log(&self, log: &Pages) {
        self.front.set_log_base(0, Some(log.region())).unwrap();
        self.front.set_features(self.features | LOG_ALL).unwrap();
        for queue in 0..QUEUES {
            let rings = rings_of(queue);
            let log_addr = Some(rings.used_ring_addr);
            self.front
                .set_vring_addr(queue, &VringConfigData { flags: 1, log_addr, ..rings })
                .unwrap();
        }
    }

    fn stop(&self, queue: usize) -> u16 {
        let base = match self.bits & SKIP_DRAIN_BIT {
            0 => self.front.get_vring_base(queue).unwrap(),
            _ => stop_without_drain(&self.stream, queue as u32).unwrap(),
        };
        base as u16
    }
}

fn rings_of(queue: usize) -> VringConfigData {
    Guest::rings_at(queue as u64 * STRIDE)
}

/// Two daemons of one image; the first has a context for each queue.
fn daemons() -> [Server; 2] {
    let config = || VirtioBlkConfig::default().num_queues(QUEUES as u16);
    let first = Server::start(VhostUserBlkOptions::new(config()), QUEUES);
    let image = first.image.clone();
    let second = Server::start_on(VhostUserBlkOptions::new(config()), 0, |_| {
        BlockNode::new("disk", drivers::File::options().open(image).unwrap())
    });
    [first, second]
}

/// Pages that daemon or guest have written since this was last asked.
fn written(log: &Pages, running: &[Arc<Pages>]) -> BTreeSet<u64> {
    let all = running.iter().map(AsRef::as_ref).chain([log]);
    all.flat_map(Pages::take).collect()
}

/// Moves the guest to the daemon that `connect` leads to. Also returns how many pages were copied again while it
/// ran, and how many while it stood still.
fn move_guest(
    from: Link,
    running: Running,
    connect: impl FnOnce(&Link) -> Link,
) -> (Link, Running, [usize; 2]) {
    let fresh: Vec<Guest> = (0..QUEUES).map(|_| Guest::with_memory(QUEUE_BYTES)).collect();
    let copy = Memory(fresh.iter().map(|it| it.file.try_clone().unwrap()).collect());
    let (memory, by_guest) = (running.memory.clone(), running.written.clone());
    let log = Pages::new(END);
    from.log(&log);
    written(&log, &by_guest);
    memory.copy(&copy, Memory::all_pages());
    let mut again = 0;
    for _ in 0..3 {
        running.go_on();
        let pages = written(&log, &by_guest);
        again += pages.len();
        memory.copy(&copy, pages);
    }

    let mut processors = running.stop();
    let bases: Vec<u16> = (0..QUEUES).map(|queue| from.stop(queue)).collect();
    let pages = written(&log, &by_guest);
    let last = pages.len();
    memory.copy(&copy, pages);
    memory.expect_equal(&copy);

    // A daemon that looked at the memory that is left behind would do what it says now.
    memory.0.iter().for_each(|file| file.write_all_at(&vec![0xdd; QUEUE_BYTES], 0).unwrap());
    let mut to = connect(&from);
    for ((processor, fresh), base) in processors.iter_mut().zip(fresh).zip(bases) {
        (processor.guest.file, processor.guest.memory) = (fresh.file, fresh.memory);
        processor.guest.start_at(&mut to.front, base);
    }
    drop(from);
    (to, Running::start(processors), [again, last])
}

#[test]
fn a_guest_moves_forth_and_back_under_load() {
    move_forth_and_back(false);
}

#[test]
fn a_guest_with_packed_queues_moves_forth_and_back_under_load() {
    move_forth_and_back(true);
}

fn move_forth_and_back(packed: bool) {
    let moves = option("COBLK_MOVES").unwrap_or(20);
    let servers = daemons();
    let processors: Vec<Processor> = (0..QUEUES).map(|it| Processor::new(it, packed)).collect();
    let mut link = Link::connect(&servers[0], packed, 0, None);
    processors.iter().for_each(|it| it.guest.start(&mut link.front));
    let mut running = Running::start(processors);
    let (mut again, mut last) = (0, 0);
    for at in 0..moves {
        running.go_on();
        // The front end waits for requests in flight, or leaves them in the log, by one message or the other.
        let bits = [0, INFLIGHT_BIT, INFLIGHT_BIT | SKIP_DRAIN_BIT][at as usize % 3];
        let to = &servers[(at as usize + 1) % 2];
        let copied;
        (link, running, copied) =
            move_guest(link, running, |from| Link::connect(to, packed, bits, Some(from)));
        again += copied[0];
        last += copied[1];
    }
    running.go_on();
    let mut processors = running.stop();
    for processor in &mut processors {
        wait_until("all is answered", || {
            processor.reap();
            processor.pending.iter().all(Option::is_none)
        });
    }
    let image = std::fs::read(&servers[0].image).unwrap();
    let values = processors.iter().flat_map(|it| it.blocks.iter().map(|(value, _)| *value));
    for (block, (value, data)) in values.zip(image.chunks(BLOCK)).enumerate() {
        assert!(data.iter().all(|byte| *byte == value), "block {block} is not {value}");
    }
    let verified: u64 = processors.iter().map(|it| it.verified).sum();
    assert!(verified > moves * BETWEEN, "{verified} reads were verified");
    println!(
        "{moves} moves, {verified} reads verified, {again} pages copied again while the guest ran, {last} when it \
         stood still"
    );
}
