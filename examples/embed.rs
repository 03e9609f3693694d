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
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use coblk::drivers::File;
use coblk::{AioContext, BackendOptions, BlockBackend, BlockNode, Co, FdInterest};
use coblk::{IoVector, IoVectorMut, WriteFlags};

/// Longest datagram, in bytes.
const MAX_BYTES: usize = 64 * 1024;

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
    let (own, daemon) = (Rc::clone(&socket), (backend.clone(), Rc::clone(&quit)));
    let _commands = ctx.fd_handler(socket, FdInterest::Read, move |ctx, _| {
        let mut datagram = vec![0; MAX_BYTES];
        // Readiness is reported once, so take all there is.
        while let Ok((bytes, client)) = own.recv_from(&mut datagram) {
            let command = String::from_utf8_lossy(&datagram[..bytes]).trim_end().to_owned();
            let (socket, (backend, quit)) = (Rc::clone(&own), daemon.clone());
            ctx.spawn("command", move |co| {
                let reply = match execute(co, &backend, &quit, &command) {
                    Ok(answer) => format!("ok {answer}"),
                    Err(why) => format!("error: {why}"),
                };
                // A client that has no name, or does not read, gets no reply.
                let _ = client.as_pathname().map(|path| socket.send_to(reply.as_bytes(), path));
            });
        }
    })?;

    // The daemon's own loop: the context is a guest in it, and polls for at most a second.
    println!("serving {image} on {socket_path}");
    while !quit.get() || backend.in_flight() > 0 {
        ctx.poll_timeout(Duration::from_secs(1));
    }
    backend.flush(&ctx)?;
    Ok(std::fs::remove_file(socket_path)?)
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
