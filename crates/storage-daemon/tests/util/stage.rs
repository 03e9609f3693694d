//! A node of the NBD client on a server that the test plays.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk::options::NodeOptions;
use coblk::{AioContext, BlockBackend, BlockNode, Blockdevs, IoVector, WriteFlags};
use coblk_tests::tools;

use super::Place;
use super::fake::{self, Fake, Style};

pub const SIZE: u64 = 1 << 20;
pub const BLOCK: u64 = 4096;
/// For so long a test looks whether something happens that must not.
pub const WATCH: Duration = Duration::from_millis(300);

/// A node on a server that the test plays, and its loop.
pub struct Stage {
    pub place: Place,
    pub ctx: AioContext,
    pub blockdevs: Blockdevs,
}

impl Stage {
    pub fn new() -> (Stage, UnixListener) {
        let place = Place::in_memory();
        let listener = UnixListener::bind(place.path("server.sock")).unwrap();
        let ctx = AioContext::for_test().unwrap();
        (Stage { place, ctx, blockdevs: Blockdevs::new(coblk::drivers()) }, listener)
    }

    pub fn open(&self) -> Arc<BlockNode> {
        self.open_with("60")
    }

    /// Requests wait for so many seconds.
    pub fn open_with(&self, reconnect_delay: &str) -> Arc<BlockNode> {
        let path = self.place.path("server.sock");
        let server = format!("server.type=unix,server.path={}", tools::text(&path));
        self.open_at(&format!("{server},reconnect-delay={reconnect_delay}"))
    }

    pub fn open_at(&self, options: &str) -> Arc<BlockNode> {
        let options = format!("nbd,node-name=disk,{options}");
        self.blockdevs.open(&self.ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap()
    }

    /// Writes blocks of these bytes at these offsets, all at once, in this order; when all have ended.
    pub fn write_all(&self, node: Arc<BlockNode>, writes: &[(u64, u8)]) {
        let backend = Rc::new(BlockBackend::new(&self.ctx, "test", node));
        let left = Rc::new(std::cell::Cell::new(writes.len()));
        for (offset, byte) in writes.iter().copied() {
            let (backend, left) = (Rc::clone(&backend), Rc::clone(&left));
            self.ctx.spawn("write", move |co| {
                let data = vec![byte; BLOCK as usize];
                let flags = WriteFlags::empty();
                backend.co_pwritev(co, offset, &IoVector::from(&data), flags).unwrap();
                drop(backend);
                left.set(left.get() - 1);
            });
        }
        self.ctx.run_until(|| left.get() == 0);
        drop(backend);
    }

    pub fn close(self) {
        self.blockdevs.close(&self.ctx, "disk").unwrap();
    }
}

/// The next connection, which shows an export of [`SIZE`] bytes.
pub fn accept(listener: &UnixListener) -> Fake {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Fake::negotiate(stream, Style::Structured, SIZE, fake::ALL).unwrap()
}

/// Whether another request, or a connection, comes within [`WATCH`].
pub fn comes(source: &impl AsFd) -> bool {
    let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: WATCH.as_nanos() as i64 };
    let mut fds = [rustix::event::PollFd::new(source, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// Answers all until the client disconnects.
pub fn answer_all(fake: &mut Fake) -> io::Result<()> {
    loop {
        let asked = fake.request()?;
        if asked.command == fake::DISCONNECT {
            return Ok(());
        }
        let answer = fake.answer(&asked, 0, &[]);
        fake.say(&answer)?;
    }
}
