//! An NBD server on a thread of its own, and the bytes of a client.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use coblk::drivers::{File, NbdNodeOptions};
use coblk::nbd::{NbdContexts, NbdExport, NbdOptions, NbdServer, SocketAddress};
use coblk::options::NodeOptions;
use coblk::{
    AioContext, AioHandle, BackendOptions, BlockBackend, BlockNode, Blockdevs, Co, IoThread,
};

use crate::random::Random;
use crate::tools;

/// Length of the image.
pub const SIZE: u64 = 64 << 20;

thread_local! {
    static SERVER: RefCell<Option<Rc<NbdServer>>> = const { RefCell::new(None) };
}

/// Where the clients of a server are served.
enum Exported {
    Here(BlockBackend),
    Contexts(NbdContexts),
}

impl Exported {
    fn open(ctx: &AioContext, node: Arc<BlockNode>, threads: &[IoThread]) -> Exported {
        if threads.is_empty() {
            return Exported::Here(BlockBackend::new(ctx, "drive", node));
        }
        let homes: Vec<AioHandle> = threads.iter().map(|thread| thread.handle().clone()).collect();
        let options = BackendOptions::new("drive").share_rw(true);
        let contexts = ctx.run(|co| NbdContexts::co_open(co, &node, &options, &homes));
        Exported::Contexts(contexts.unwrap())
    }

    fn export(&self, name: &str) -> NbdExport {
        match self {
            Exported::Here(backend) => NbdExport::new(name, backend.clone()),
            Exported::Contexts(contexts) => NbdExport::on_contexts(name, contexts),
        }
    }

    fn close(&self, co: &Co<'_>) {
        if let Exported::Contexts(contexts) = self {
            contexts.co_close(co);
        }
    }
}

fn numbered_thread(number: usize) -> IoThread {
    let poll_max = Duration::from_micros(50);
    let context = AioContext::test_builder().poll_max(poll_max);
    IoThread::with_builder(&format!("t{number}"), context).unwrap()
}

/// A server on a thread of its own, with an image under the name "disk", and the same read-only as
/// "ro".
pub struct Served {
    /// Where its files are.
    pub dir: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddress,
    stop: Arc<AtomicBool>,
    handle: AioHandle,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Starts it. Temporary files go to `parent`.
    pub fn new(parent: &str) -> Served {
        Self::with_node(parent, |dir| {
            let image = dir.join("disk.img");
            std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
            BlockNode::new("disk0", File::options().open(&image).unwrap())
        })
    }

    /// Starts one on a node that may keep files in the directory it is told.
    pub fn with_node(parent: &str, node: impl FnOnce(&Path) -> Arc<BlockNode>) -> Served {
        let options = NbdOptions::default().max_connections(0);
        Self::with_options(parent, options, None, node)
    }

    /// Starts one with limits of its own; at a TCP address, or at a unix socket in its directory.
    pub fn with_options(
        parent: &str,
        options: NbdOptions,
        tcp: Option<SocketAddr>,
        node: impl FnOnce(&Path) -> Arc<BlockNode>,
    ) -> Served {
        Self::start(parent, options, tcp, 0, node)
    }

    /// Starts one whose clients are served by so many other contexts, called `t0`, `t1` and so on.
    pub fn on_contexts(
        parent: &str,
        options: NbdOptions,
        contexts: usize,
        node: impl FnOnce(&Path) -> Arc<BlockNode>,
    ) -> Served {
        Self::start(parent, options, None, contexts, node)
    }

    fn start(
        parent: &str,
        options: NbdOptions,
        tcp: Option<SocketAddr>,
        contexts: usize,
        node: impl FnOnce(&Path) -> Arc<BlockNode>,
    ) -> Served {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let node = node(dir.path());
        let unix = || SocketAddress::unix(dir.path().join("nbd.sock"));
        let (address, stop) = (tcp.map_or_else(unix, SocketAddress::tcp), Arc::default());
        let (tell, told) = mpsc::channel();
        let stopped: Arc<AtomicBool> = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // It polls: the loop itself receives from clients that are fast enough.
            let poll_max = Duration::from_micros(50);
            let ctx = AioContext::test_builder().poll_max(poll_max).build().unwrap();
            let threads: Vec<IoThread> = (0..contexts).map(numbered_thread).collect();
            let place = Exported::open(&ctx, node, &threads);
            let server = Rc::new(NbdServer::listen(&ctx, &address, options).unwrap());
            server.add_export(place.export("disk").description("a test image")).unwrap();
            server.add_export(place.export("ro").read_only(true)).unwrap();
            SERVER.set(Some(Rc::clone(&server)));
            tell.send((ctx.handle(), server.addresses()[0].clone())).unwrap();
            ctx.run_until(|| stopped.load(Ordering::Acquire));
            SERVER.set(None);
            ctx.run(|co| {
                server.co_shutdown(co, Duration::from_secs(2));
                place.close(co);
            });
            assert_eq!(server.connections(), 0);
        });
        let (handle, address) = told.recv().unwrap();
        Served { dir, address, stop, handle, thread: Some(thread) }
    }

    /// Does something with the server, on its thread.
    pub fn at_server<R: Send + 'static>(
        &self,
        act: impl FnOnce(&Co<'_>, &NbdServer) -> R + Send + 'static,
    ) -> R {
        let act = move |co: &Co<'_>| {
            let server = SERVER.with_borrow(|server| server.clone().expect("it runs"));
            act(co, &server)
        };
        self.handle.spawn("test", act).wait().unwrap()
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.at_server(|_, server| server.connections())
    }

    /// A node that is the export "disk", or "ro".
    pub fn open(&self, ctx: &AioContext, read_only: bool) -> Arc<BlockNode> {
        let export = if read_only { "ro" } else { "disk" };
        let options = NbdNodeOptions::new(self.address.clone(), export);
        let options = NodeOptions::new(options).read_only(read_only);
        let blockdevs = Blockdevs::new(coblk::drivers());
        let node = blockdevs.open(ctx, options).unwrap();
        // The node is used for longer than it has a name there.
        std::mem::forget(blockdevs);
        node
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.address.path().expect("a unix socket").to_owned()
    }

    /// Where clients find an export.
    pub fn uri(&self, name: &str) -> String {
        match self.address.path() {
            Some(path) => format!("nbd+unix:///{name}?socket={}", tools::text(path)),
            None => format!("nbd://{}/{name}", self.address),
        }
    }

    /// A connection on which the greeting has not been read yet.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// An honest client is served.
    pub fn check(&self) {
        let uri = self.uri("disk");
        let said = tools::run("qemu-io", ["-f", "raw", "-c", "write -P 7 4096 4096", &uri]);
        assert!(said.contains("wrote 4096/4096"), "{said}");
        let said = tools::run("qemu-io", ["-f", "raw", "-c", "read -P 7 4096 4096", &uri]);
        assert!(said.contains("read 4096/4096") && !said.contains("failed"), "{said}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.handle.schedule(|_| ());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server has panicked");
    }
}

/// An option with its header.
pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A request with a compact header, whose cookie is 7.
pub fn request(magic: u32, flags: u16, command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&7u64.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// The first word of a request.
pub const MAGIC: u32 = 0x2560_9513;

/// A connection that has chosen "disk" the old way, with simple replies.
pub fn choose(path: &Path) -> UnixStream {
    choose_export(path, "disk")
}

fn choose_export(path: &Path, export: &str) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream.write_all(&option(1, export.as_bytes())).unwrap();
    let mut chosen = [0; 18 + 10];
    stream.read_exact(&mut chosen).unwrap();
    stream
}

/// A client that makes one request after the other.
pub struct Session(UnixStream);

impl Session {
    /// Connects, and chooses "disk".
    pub fn open(path: &Path) -> Session {
        Session::choose(path, "disk")
    }

    /// Connects, and chooses an export.
    pub fn choose(path: &Path, export: &str) -> Session {
        let stream = choose_export(path, export);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Session(stream)
    }

    /// Sends a request, whose payload is `data`.
    pub fn send(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) {
        let request = [&request(MAGIC, 0, command, offset, len), data].concat();
        self.0.write_all(&request).unwrap();
    }

    /// Waits for an answer: an error by its NBD number, or nothing.
    pub fn answer(&mut self) -> Result<(), u32> {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], [0x67, 0x44, 0x66, 0x98]);
        match u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]) {
            0 => Ok(()),
            error => Err(error),
        }
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.send(1, offset, data.len() as u32, data);
        self.answer()
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.send(0, offset, len as u32, &[]);
        self.answer()?;
        let mut data = vec![0; len];
        self.0.read_exact(&mut data).unwrap();
        Ok(data)
    }

    /// Flushes.
    pub fn flush(&mut self) -> Result<(), u32> {
        self.send(3, 0, 0, &[]);
        self.answer()
    }

    /// An honest client is served: what it writes, in several places, is what it reads.
    #[track_caller]
    pub fn check(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        for _ in 0..16 {
            let offset = random.below(1 << 20);
            let mut data = vec![0; 1 + random.below(32 << 10) as usize];
            random.fill(&mut data);
            assert_eq!(self.write(offset, &data), Ok(()), "a write at {offset}");
            assert!(self.read(offset, data.len()) == Ok(data), "a read at {offset}");
        }
        assert_eq!(self.flush(), Ok(()));
    }
}

/// A connection that has chosen "disk" the old way, with structured replies.
pub fn choose_structured(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(&[&[0, 0, 0, 3][..], &option(8, b""), &option(1, b"disk")].concat()).unwrap();
    stream.read_exact(&mut [0; 18 + 20 + 10]).unwrap();
    stream
}

/// Clients that ask for twice 32 MiB at `offset`, and never take any of it.
pub fn hogs(served: &Served, count: usize, offset: u64) -> Vec<UnixStream> {
    let mut hogs: Vec<UnixStream> = (0..count).map(|_| choose(&served.socket())).collect();
    for hog in &mut hogs {
        let ask = request(MAGIC, 0, 0, offset, 32 << 20);
        hog.write_all(&[ask.clone(), ask].concat()).unwrap();
        // It has its first bytes, so the server holds the rest.
        hog.read_exact(&mut [0; 16]).unwrap();
    }
    hogs
}

/// A structured reply to a read.
#[derive(Default)]
pub struct ReadReply {
    /// The bytes that chunks told of.
    pub data: Vec<u8>,
    /// How many bytes of it came as holes.
    pub holes: usize,
    /// How many chunks there were.
    pub chunks: usize,
    /// The protocol's error number.
    pub error: Option<u32>,
}

/// Reads from the export by a connection with structured replies; every byte must be told of once.
pub fn read_structured(stream: &mut UnixStream, flags: u16, offset: u64, len: u32) -> ReadReply {
    fn take<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
        let mut bytes = [0; N];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }
    stream.write_all(&request(MAGIC, flags, 0, offset, len)).unwrap();
    let mut reply = ReadReply { data: vec![0xee; len as usize], ..ReadReply::default() };
    let mut told = 0;
    loop {
        let header: [u8; 20] = take(stream);
        assert_eq!(header[..4], [0x66, 0x8e, 0x33, 0xef]);
        let chunk_len = u32::from_be_bytes(header[16..].try_into().unwrap()) as usize;
        reply.chunks += 1;
        match u16::from_be_bytes([header[6], header[7]]) {
            0 => {}
            1 => {
                let at = (u64::from_be_bytes(take(stream)) - offset) as usize;
                told += chunk_len - 8;
                stream.read_exact(&mut reply.data[at..at + chunk_len - 8]).unwrap();
            }
            2 => {
                let at = (u64::from_be_bytes(take(stream)) - offset) as usize;
                let hole = u32::from_be_bytes(take(stream)) as usize;
                reply.data[at..at + hole].fill(0);
                (told, reply.holes) = (told + hole, reply.holes + hole);
            }
            0x8001 => {
                reply.error = Some(u32::from_be_bytes(take(stream)));
                assert_eq!(take(stream), [0, 0]);
            }
            kind => panic!("a chunk of kind {kind}"),
        }
        if header[5] & 1 == 1 {
            assert!(reply.error.is_some() || told == len as usize, "told of {told} of {len} bytes");
            return reply;
        }
    }
}
