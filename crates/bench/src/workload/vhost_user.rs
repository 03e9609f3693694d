//! A vhost-user-blk front end: the driver of libblkio (crate virtio-driver), with a thread for each
//! queue.
//!
//! A thread sleeps on its queue's eventfd while nothing is done, as a guest does, and does not look
//! for completions by itself: at one request at a time the wake-ups are in what is measured.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coblk::virtio_blk::feature;
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SocketAddrUnix, getpeername};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use virtio_driver::{EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport};
use vm_memory::{FileOffset, MmapRegion};

use super::pace::Pace;
use super::pattern::{Kind, Offsets};
use super::stopwatch::Stopwatch;
use super::{Job, new_histogram};

/// Entries of a queue; a request takes three.
const QUEUE_SIZE: u16 = 128;
const SECTOR_BYTES: u64 = 512;
/// Of a log of dirty pages: a bit for each 4 KiB of what a process has. To the device the client's addresses are
/// those of a guest.
const LOG_BYTES: u64 = (1 << 47) / 4096 / 8;
/// A server that completes nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device, its queues, and the requests to make on them.
pub struct VhostUserClient {
    queues: Vec<Queue>,
    /// Holds the memory of the rings, so it goes after them.
    transport: Box<VirtioBlkTransport>,
    /// Where the data of requests is.
    _memory: MmapRegion,
}

impl VhostUserClient {
    /// Connects to the device at `socket`. Its queues are split, or packed. Each has `job.depth` requests in flight.
    ///
    /// # Errors
    /// If there is none, it has not as many queues, or it is too small for the job.
    pub fn connect(
        socket: &Path,
        queues: usize,
        packed: bool,
        job: &Job,
    ) -> io::Result<VhostUserClient> {
        let path = socket.to_str().ok_or_else(|| io::Error::other("the socket is not UTF-8"))?;
        let wanted = if packed { u64::MAX } else { !feature::RING_PACKED };
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, wanted)?);
        let rings = VirtioBlkQueue::setup_queues(&mut *transport, queues, QUEUE_SIZE)?;
        let queue_bytes = job.depth * job.block_bytes;
        let memory = shared_memory(&mut *transport, queues * queue_bytes)?;
        let capacity = transport.get_config()?.capacity.to_native() * SECTOR_BYTES;
        let range_bytes = job.range_bytes.min(capacity);
        let queue = |(index, mut ring): (usize, VirtioBlkQueue<'static, usize>)| {
            let seed = job.seed + index as u64;
            // The driver begins with interrupts off.
            ring.set_used_notif_enabled(true);
            Ok(Queue {
                ring,
                kick: transport.get_submission_notifier(index),
                call: transport.get_completion_fd(index),
                offsets: Offsets::new(job.pattern, range_bytes, job.block_bytes as u64, seed)?,
                buffers: Buffers(memory.as_ptr().wrapping_add(index * queue_bytes)),
                block_bytes: job.block_bytes,
                free: (0..job.depth).collect(),
                depth: job.depth,
                watch: Stopwatch::new(job.depth),
            })
        };
        let queues = rings.into_iter().enumerate().map(queue).collect::<io::Result<Vec<_>>>()?;
        Ok(VhostUserClient { queues, transport, _memory: memory })
    }

    /// Has the device mark in a log what it writes to memory, as if that were to move.
    ///
    /// # Errors
    /// If it cannot, or this is not the one client of `socket`.
    pub fn give_log(&mut self, socket: &Path) -> io::Result<()> {
        // The driver has no message for it, so it is sent beside the driver, which sends none now.
        let mut front = Frontend::from_stream(connection(socket)?, self.queues.len() as u64);
        let failed = io::Error::other::<vhost::Error>;
        let offered = front.get_features().map_err(failed)?;
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        if offered & log_all == 0 {
            return Err(io::Error::other("the device cannot log"));
        }
        front.set_features(self.transport.get_features() | log_all).map_err(failed)?;
        let wanted = VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK;
        let offered = front.get_protocol_features().map_err(io::Error::other)?;
        front.set_protocol_features(offered & wanted).map_err(io::Error::other)?;
        let log = File::from(memfd_create("log", MemfdFlags::CLOEXEC)?);
        log.set_len(LOG_BYTES)?;
        let region = VhostUserDirtyLogRegion {
            mmap_size: LOG_BYTES,
            mmap_offset: 0,
            mmap_handle: log.as_raw_fd(),
        };
        front.set_log_base(0, Some(region)).map_err(failed)
    }

    /// Makes `ops` requests, or as many more as make it the same number for each queue.
    ///
    /// # Errors
    /// If the device fails one, or completes nothing for ten seconds.
    pub fn run(&mut self, ops: u64) -> io::Result<u64> {
        let each = ops.div_ceil(self.queues.len() as u64);
        if let [queue] = &mut self.queues[..] {
            return queue.run(each).map(|()| each);
        }
        thread::scope(|scope| {
            let queues = self.queues.iter_mut();
            let threads: Vec<_> =
                queues.map(|queue| scope.spawn(move || queue.run(each))).collect();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            // All are waited for before the first error counts.
            ended.collect::<Vec<_>>().into_iter().collect::<io::Result<Vec<()>>>()
        })?;
        Ok(each * self.queues.len() as u64)
    }

    /// Makes `per_s` requests a second on the first queue for `time`, whether those before are done
    /// or not, and looks for completions all the time: what it measures has no wake-up of this
    /// client in it. How many it has made: fewer, if no place was free.
    ///
    /// # Errors
    /// As [`run`](VhostUserClient::run).
    pub fn run_at_rate(&mut self, per_s: u64, time: Duration) -> io::Result<u64> {
        if per_s == 0 {
            thread::sleep(time);
            return Ok(0);
        }
        self.queues[0].paced(per_s, time)
    }

    /// How long the requests since the last call took, in nanoseconds.
    ///
    /// # Errors
    /// None that is known of.
    pub fn take_latencies(&mut self) -> io::Result<Histogram<u64>> {
        let mut all = new_histogram();
        for queue in &mut self.queues {
            all.add(queue.watch.take()).map_err(io::Error::other)?;
        }
        Ok(all)
    }
}

/// This process's connection to `socket`, once more.
fn connection(socket: &Path) -> io::Result<UnixStream> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|it| it.parse().ok()) else { continue };
        // SAFETY: the descriptor is borrowed for the next two calls, and what has it open does so for longer:
        // the driver, or, as for that of the directory, this function. Should another thread close one of its
        // own meanwhile, the call fails, or looks at another socket.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let peer = getpeername(fd).ok().flatten().and_then(|it| SocketAddrUnix::try_from(it).ok());
        if peer.is_some_and(|it| it.path_bytes() == Some(socket.as_os_str().as_bytes())) {
            return Ok(UnixStream::from(fd.try_clone_to_owned()?));
        }
    }
    Err(io::Error::other("there is no connection to the device"))
}

/// Memory that the device sees too.
fn shared_memory(transport: &mut VirtioBlkTransport, len: usize) -> io::Result<MmapRegion> {
    let file = File::from(memfd_create("buffers", MemfdFlags::CLOEXEC)?);
    file.set_len(len as u64)?;
    let shared = FileOffset::new(file.try_clone()?, 0);
    let memory = MmapRegion::from_file(shared, len).map_err(io::Error::other)?;
    transport.map_mem_region(memory.as_ptr() as usize, len, file.as_raw_fd(), 0)?;
    Ok(memory)
}

/// Where a queue's buffers begin.
struct Buffers(*mut u8);

// SAFETY: no thread follows the pointer; it is handed to the device as a number.
unsafe impl Send for Buffers {}

/// One queue, on one thread at a time.
struct Queue {
    /// Its requests carry the place of their buffer.
    ring: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    offsets: Offsets,
    buffers: Buffers,
    block_bytes: usize,
    /// Places whose buffers no request uses.
    free: Vec<usize>,
    depth: usize,
    watch: Stopwatch,
}

impl Queue {
    fn run(&mut self, ops: u64) -> io::Result<()> {
        let mut left = ops;
        self.watch.look();
        loop {
            while left > 0
                && let Some(place) = self.free.pop()
            {
                left -= 1;
                self.watch.begin(place);
                self.submit(place)?;
            }
            if self.ring.avail_notif_needed() {
                self.kick.notify()?;
            }
            let done = self.reap()?;
            if left == 0 && self.free.len() == self.depth {
                return Ok(());
            }
            if done == 0 {
                self.wait()?;
            }
        }
    }

    fn paced(&mut self, per_s: u64, time: Duration) -> io::Result<u64> {
        let mut heard_ns = self.watch.look();
        let mut pace = Pace::new(heard_ns, per_s, time);
        loop {
            let now_ns = self.watch.look();
            while let Some(due_ns) = pace.due(now_ns).filter(|_| !pace.is_over(now_ns))
                && let Some(place) = self.free.pop()
            {
                self.watch.begin_due(place, due_ns);
                pace.advance();
                self.submit(place)?;
            }
            if self.ring.avail_notif_needed() {
                self.kick.notify()?;
            }
            let is_idle = self.free.len() == self.depth;
            if is_idle && pace.is_over(now_ns) {
                break;
            }
            if self.reap()? > 0 || is_idle {
                heard_ns = now_ns;
            } else if Duration::from_nanos(now_ns - heard_ns) > PATIENCE {
                return Err(too_late());
            }
        }
        let made = pace.made();
        // They have waited at least so long.
        pace.missed().for_each(|due_ns| self.watch.record_since(due_ns));
        Ok(made)
    }

    fn submit(&mut self, place: usize) -> io::Result<()> {
        let (kind, offset) = self.offsets.next();
        let len = self.block_bytes;
        let data = self.buffers.0.wrapping_add(place * len);
        match kind {
            // SAFETY: the range is inside the shared mapping, which lives longer than the ring, and
            // this process does not touch what is in it.
            Kind::Read => unsafe { self.ring.read_raw(offset, data, len, place) },
            // SAFETY: as above.
            Kind::Write => unsafe { self.ring.write_raw(offset, data, len, place) },
        }
    }

    /// Takes what is done; how many there were.
    fn reap(&mut self) -> io::Result<usize> {
        let before = self.free.len();
        self.watch.look();
        for completion in self.ring.completions() {
            if completion.ret != 0 {
                return Err(io::Error::from_raw_os_error(-completion.ret));
            }
            self.watch.end(completion.context);
            self.free.push(completion.context);
        }
        Ok(self.free.len() - before)
    }

    fn wait(&self) -> io::Result<()> {
        // The eventfd blocks for good when its device is gone.
        let mut fds = [PollFd::new(&*self.call, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        if poll(&mut fds, Some(&patience))? == 0 {
            return Err(too_late());
        }
        self.call.read().map(|_| ())
    }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no request completes")
}
