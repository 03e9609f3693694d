//! A libFuzzer target: what a front end may send, and with which descriptors. The input is a list of
//! messages, each of four bytes and a body:
//!
//! ```text
//!   request   flags (the low four bits), and which descriptors come along   body bytes, two bytes
//! ```
//!
//! After each input an honest front end is answered.
#![forbid(unsafe_code)]
#![no_main]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_aio::net::{Listener, SocketAddress};
use coblk_block::{BlockNode, drivers::Null};
use coblk_vhost_user_blk::{VhostUserBlk, VhostUserBlkOptions};
use coblk_virtio_blk::VirtioBlkConfig;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Most messages of one input.
const MESSAGES: usize = 40;
const MEMORY_BYTES: usize = 1 << 16;

struct Scene {
    ctx: AioContext,
    export: VhostUserBlk,
    directory: tempfile::TempDir,
}

thread_local! {
    static SCENE: Scene = Scene::new();
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| SCENE.with(|scene| scene.run(input)));

impl Scene {
    fn new() -> Scene {
        let ctx = AioContext::for_test().expect("a context");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&SocketAddress::unix(path)).expect("a socket");
        let node = BlockNode::new("null", Null::new(1 << 20));
        let device = VirtioBlkConfig::default().num_queues(2);
        let options = VhostUserBlkOptions::new(device);
        let export = VhostUserBlk::from_listener(&ctx, listener, &node, options).expect("an export");
        Scene { ctx, export, directory }
    }

    fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.directory.path().join("socket")).expect("a server");
        self.ctx.run_until(|| self.export.is_in_use());
        socket
    }

    /// Until the connection is over.
    fn leave(&self, socket: UnixStream) {
        let _ = socket.shutdown(std::net::Shutdown::Both);
        self.ctx.run_until(|| !self.export.is_in_use());
    }

    fn run(&self, mut input: &[u8]) {
        let socket = self.connect();
        socket.set_write_timeout(Some(Duration::from_secs(5))).expect("a time");
        for _ in 0..MESSAGES {
            let [request, how, low, high, rest @ ..] = input else { break };
            let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
            let (body, rest) = rest.split_at(len);
            input = rest;
            // Flags: the version in two bits, a reply, an answer wanted.
            let header = [u32::from(*request), u32::from(how & 15), len as u32];
            let bytes = [&header.map(u32::to_ne_bytes).concat(), body].concat();
            if send(&socket, &bytes, &descriptors(how >> 4)).is_err() {
                break;
            }
            // Commands to the device need the loop.
            while self.ctx.try_poll() {}
        }
        self.settle(&socket);
        self.leave(socket);
        self.honest();
    }

    /// Lets the control thread come to the end of what was sent: it answers the last message, or has
    /// hung up.
    fn settle(&self, mut socket: &UnixStream) {
        let question = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        if socket.write_all(&question).is_err() {
            return;
        }
        socket.set_nonblocking(true).expect("a socket");
        for _ in 0..50 {
            let mut answers = [0; 4096];
            match socket.read(&mut answers) {
                Ok(len) if len >= 20 && answers[len - 20..len - 16] == question[..4] => return,
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                _ => {}
            }
            self.ctx.poll_timeout(Duration::from_micros(100));
        }
    }

    /// Asks for the features, and is told.
    fn honest(&self) {
        let mut socket = self.connect();
        socket.write_all(&[1u32, 1, 0].map(u32::to_ne_bytes).concat()).expect("a server");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
        let mut answer = [0; 20];
        socket.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[..4], 1u32.to_ne_bytes());
        self.leave(socket);
    }
}

fn memory() -> OwnedFd {
    let mut file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("memory"));
    // All of it is there: a thread that touched a missing page would wait for this one, and be it.
    file.write_all(&[0; MEMORY_BYTES]).expect("memory");
    file.into()
}

fn descriptors(which: u8) -> Vec<OwnedFd> {
    let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    match which {
        1 => vec![memory()],
        2 => vec![event()],
        3 => vec![UnixStream::pair().expect("sockets").0.into()],
        4 => vec![File::open("/dev/null").expect("a file").into()],
        5 => vec![memory(), memory()],
        6 => vec![event(), memory()],
        7 => (0..9).map(|_| memory()).collect(),
        _ => Vec::new(),
    }
}

fn send(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}
