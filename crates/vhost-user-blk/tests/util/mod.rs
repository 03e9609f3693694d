//! An export in a thread of its own, and the virtio-blk driver of libblkio as its client.
// Not every test program uses all of it.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod daemon;
pub mod early;
pub mod guest;
pub mod late;
pub mod pages;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coblk_aio::{AioContext, AioHandle, IoThread};
use coblk_block::{BlockNode, drivers};
use coblk_vhost_user_blk::{RemoveMode, VhostUserBlk, VhostUserBlkOptions};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport};
use vm_memory::{FileOffset, MmapRegion};

pub const DISK_BYTES: u64 = 16 << 20;
pub const BUFFER_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A directory on the build's file system.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

type Command = Box<dyn FnOnce(&AioContext, &VhostUserBlk) + Send>;

/// An export of a new image, served by its own thread until it is dropped.
pub struct Server {
    pub socket: PathBuf,
    pub image: PathBuf,
    pub node: Arc<BlockNode>,
    handle: AioHandle,
    /// Dropped to end it.
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Server {
    /// `io_threads` contexts for the queues; 0 means the thread that listens.
    pub fn start(options: VhostUserBlkOptions, io_threads: usize) -> Server {
        Self::start_on(options, io_threads, |image| image)
    }

    /// [`start`](Self::start), with what `stack` puts on the image.
    pub fn start_on(
        mut options: VhostUserBlkOptions,
        io_threads: usize,
        stack: impl FnOnce(Arc<BlockNode>) -> Arc<BlockNode>,
    ) -> Server {
        let directory = directory();
        let (socket, image) = (directory.path().join("vhost.sock"), directory.path().join("disk"));
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        let file = drivers::File::options().open(&image).unwrap();
        let node = stack(BlockNode::new("disk", file));
        let (commands, orders) = mpsc::channel::<Command>();
        let (sender, receiver) = mpsc::channel();
        let (at, on) = (socket.clone(), Arc::clone(&node));
        let thread = std::thread::spawn(move || {
            let threads: Vec<IoThread> = (0..io_threads)
                .map(|index| IoThread::new(&format!("io{index}")).unwrap())
                .collect();
            options.contexts = threads.iter().map(|thread| thread.handle().clone()).collect();
            let ctx = AioContext::for_test().unwrap();
            let export = VhostUserBlk::listen(&ctx, at, &on, options).unwrap();
            sender.send(ctx.handle()).unwrap();
            ctx.run_until(|| {
                loop {
                    match orders.try_recv() {
                        Ok(command) => command(&ctx, &export),
                        Err(mpsc::TryRecvError::Empty) => return false,
                        Err(mpsc::TryRecvError::Disconnected) => return true,
                    }
                }
            });
            ctx.run(|co| export.co_remove(co, RemoveMode::Hard)).unwrap();
        });
        let handle = receiver.recv().unwrap();
        let (commands, thread) = (Some(commands), Some(thread));
        Server { socket, image, node, handle, commands, thread, _directory: directory }
    }

    /// Has the thread do something with the export, and waits for what comes of it.
    pub fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&AioContext, &VhostUserBlk) -> R + Send + 'static,
    ) -> R {
        let (reply, answer) = mpsc::channel();
        let command: Command = Box::new(move |ctx, export| {
            reply.send(command(ctx, export)).unwrap();
        });
        self.commands.as_ref().unwrap().send(command).unwrap();
        self.handle.notify();
        answer.recv().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.commands = None;
        self.handle.notify();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the daemon lives");
        }
    }
}

/// What a client does to its disk.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// The driver with one buffer of shared memory.
pub struct Client {
    pub transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    calls: Vec<Arc<EventFd>>,
    kicks: Vec<Box<dyn QueueNotifier>>,
    pub memory: MmapRegion,
    pub memory_file: File,
}

impl Client {
    pub fn connect(socket: &Path, num_queues: usize) -> Client {
        Self::connect_rings(socket, num_queues, false)
    }

    /// With packed rings, perhaps.
    pub fn connect_rings(socket: &Path, num_queues: usize, packed: bool) -> Client {
        let without = if packed { 0 } else { guest::RING_PACKED };
        let transport = VhostUser::new(socket.to_str().unwrap(), !without).unwrap();
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, num_queues, 64).unwrap();
        let memory_file = File::from(memfd_create("buffers", MemfdFlags::CLOEXEC).unwrap());
        memory_file.set_len(BUFFER_BYTES as u64).unwrap();
        let shared = FileOffset::new(memory_file.try_clone().unwrap(), 0);
        let memory: MmapRegion = MmapRegion::from_file(shared, BUFFER_BYTES).unwrap();
        let at = memory.as_ptr() as usize;
        transport.map_mem_region(at, BUFFER_BYTES, memory_file.as_raw_fd(), 0).unwrap();
        let calls = (0..num_queues).map(|queue| transport.get_completion_fd(queue)).collect();
        let kicks = (0..num_queues).map(|queue| transport.get_submission_notifier(queue)).collect();
        Client { transport, queues, calls, kicks, memory, memory_file }
    }

    /// Puts a request of `len` bytes on a queue; its data is at `buffer` in the memory.
    pub fn submit(
        &mut self,
        queue: usize,
        op: Op,
        offset: u64,
        len: usize,
        buffer: usize,
        tag: usize,
    ) {
        assert!(buffer + len <= BUFFER_BYTES || matches!(op, Op::Discard | Op::WriteZeroes));
        let data = self.memory.as_ptr().wrapping_add(buffer);
        let queue = &mut self.queues[queue];
        match op {
            // SAFETY: the range is inside the mapping, which lives as long as the queue; this
            // process accesses it through volatile slices only.
            Op::Read => unsafe { queue.read_raw(offset, data, len, tag) },
            // SAFETY: as above.
            Op::Write => unsafe { queue.write_raw(offset, data, len, tag) },
            Op::Flush => queue.flush(tag),
            Op::Discard => queue.discard(offset, len as u64, tag),
            Op::WriteZeroes => queue.write_zeroes(offset, len as u64, true, tag),
        }
        .unwrap();
    }

    /// Kicks, and waits for `count` completions: tags and results.
    pub fn complete(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        self.kicks[queue].notify().unwrap();
        let (mut done, end) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let new = self.queues[queue].completions().map(|it| (it.context, it.ret));
            done.extend(new);
            if done.len() >= count {
                return done;
            }
            assert!(Instant::now() < end, "{} of {count} completions came", done.len());
            if self.calls[queue].read().is_err() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// One request, from start to end.
    pub fn one(&mut self, queue: usize, op: Op, offset: u64, len: usize) -> i32 {
        self.submit(queue, op, offset, len, 0, 1);
        self.complete(queue, 1)[0].1
    }

    /// Fills the buffer, writes it, clears it, reads it back, and compares.
    pub fn check(&mut self, queue: usize, offset: u64, len: usize, seed: u8) {
        use vm_memory::{Bytes, VolatileMemory};
        let data: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        self.memory.get_slice(0, len).unwrap().write_slice(&data, 0).unwrap();
        assert_eq!(self.one(queue, Op::Write, offset, len), 0);
        self.memory.get_slice(0, len).unwrap().write_slice(&vec![0; len], 0).unwrap();
        assert_eq!(self.one(queue, Op::Read, offset, len), 0);
        let mut back = vec![0; len];
        self.memory.get_slice(0, len).unwrap().read_slice(&mut back, 0).unwrap();
        assert!(back == data, "read something else at {offset}");
    }
}
