//! A daemon with a main loop of its own and a coblk context inside.
//!
//! It serves an image on a unix datagram socket, one command a datagram:
//!
//! ```text
//! truncate -s 1M disk.img
//! cargo run --release --example embed -- disk.img embed.sock
//! ```
//!
//! Try it from another terminal, with socat or with python:
//!
//! ```text
//! echo write 4096 hello | socat - UNIX-SENDTO:embed.sock,bind=me.sock
//! echo read 4096 5 | socat - UNIX-SENDTO:embed.sock,bind=me.sock
//!
//! python3 -c 'import socket as s
//! c = s.socket(s.AF_UNIX, s.SOCK_DGRAM); c.bind("me.sock"); c.connect("embed.sock")
//! for command in "write 4096 hello", "flush", "read 4096 5", "quit":
//!     c.send(command.encode()); print(c.recv(65536).decode())'; rm me.sock
//! ```
//!
//! Each command is a coroutine, so its code is a straight line, and a slow one holds up no other;
//! yet all of it is one thread, without a lock.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::rc::Rc;

use coblk::drivers::File;
use coblk::{AioContext, BackendOptions, BlockBackend, BlockNode, Co};
use coblk::{IoVector, IoVectorMut, WriteFlags};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// Longest datagram, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// What the daemon's loop waits for.
const CONTEXT: Token = Token(0);
const COMMANDS: Token = Token(1);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, socket] = &arguments[..] else {
        eprintln!("usage: embed IMAGE SOCKET");
        return ExitCode::from(2);
    };
    match run(image, socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(image: &str, socket_path: &str) -> Result<(), Box<dyn Error>> {
    let ctx = AioContext::new()?;
    let node = BlockNode::new("disk0", File::options().open(image)?);
    let backend = BackendOptions::new("embed").open(&ctx, node)?;
    let quit = Rc::new(Cell::new(false));

    let socket = Rc::new(UnixDatagram::bind(socket_path)?);
    socket.set_nonblocking(true)?;

    // The daemon's own loop, here mio's. The context is a guest in it, as one more descriptor.
    let mut poll = Poll::new()?;
    let (context_fd, socket_fd) = (ctx.as_fd().as_raw_fd(), socket.as_raw_fd());
    poll.registry().register(&mut SourceFd(&context_fd), CONTEXT, Interest::READABLE)?;
    poll.registry().register(&mut SourceFd(&socket_fd), COMMANDS, Interest::READABLE)?;
    let mut events = Events::with_capacity(16);
    println!("serving {image} on {socket_path}");
    while !quit.get() || backend.in_flight() > 0 {
        // From here on what workers complete makes the context's descriptor readable.
        let wait = ctx.prepare_wait();
        match poll.poll(&mut events, wait.timeout()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => drop(wait),
        }
        if events.iter().any(|event| event.token() == COMMANDS) {
            take_commands(&ctx, &socket, &backend, &quit);
        }
        ctx.try_poll();
    }
    backend.flush(&ctx)?;
    Ok(std::fs::remove_file(socket_path)?)
}

/// Spawns a coroutine for each command that has come.
fn take_commands(
    ctx: &AioContext,
    socket: &Rc<UnixDatagram>,
    backend: &BlockBackend,
    quit: &Rc<Cell<bool>>,
) {
    let mut datagram = vec![0; MAX_BYTES];
    // Readiness is reported once, so take all there is.
    while let Ok((bytes, client)) = socket.recv_from(&mut datagram) {
        let command = String::from_utf8_lossy(&datagram[..bytes]).trim_end().to_owned();
        let (socket, backend, quit) = (Rc::clone(socket), backend.clone(), Rc::clone(quit));
        ctx.spawn("command", move |co| {
            let reply = match execute(co, &backend, &quit, &command) {
                Ok(answer) => format!("ok {answer}"),
                Err(why) => format!("error: {why}"),
            };
            // A client that has no name, or does not read, gets no reply.
            let _ = client.as_pathname().map(|path| socket.send_to(reply.as_bytes(), path));
        });
    }
}

/// The block layer in straight-line code; while workers do the I/O, the coroutine is suspended.
fn execute(
    co: &Co<'_>,
    backend: &BlockBackend,
    quit: &Cell<bool>,
    command: &str,
) -> Result<String, Box<dyn Error>> {
    match command.splitn(3, ' ').collect::<Vec<_>>()[..] {
        ["read", offset, bytes] => {
            let mut data = vec![0; bytes.parse::<usize>()?.min(MAX_BYTES)];
            backend.co_preadv(co, offset.parse()?, &mut IoVectorMut::from(&mut data[..]))?;
            Ok(String::from_utf8_lossy(&data).into_owned())
        }
        ["write", offset, text] => {
            let data = IoVector::from(text.as_bytes());
            backend.co_pwritev(co, offset.parse()?, &data, WriteFlags::empty())?;
            Ok(format!("{} bytes written", text.len()))
        }
        ["flush"] => Ok(backend.co_flush(co).map(|()| "flushed".to_owned())?),
        ["quit"] => {
            quit.set(true);
            Ok("bye".to_owned())
        }
        _ => Err("commands: read OFFSET BYTES, write OFFSET TEXT, flush, quit".into()),
    }
}
