//! [`Client`]: one request, one answer, and the end.

use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

use coblk::Co;
use coblk::FdInterest;
use coblk::aio::net::Stream;
use coblk::aio::sync::CoSleep;

use super::http::{self, Answer, MAX_HEAD_BYTES, Refusal};

/// For the request, and again for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For the client to take note of the end.
const LINGER: Duration = Duration::from_secs(1);

/// A client that has connected.
pub(super) struct Client {
    stream: Stream,
    /// Woken when there is something to do.
    ready: CoSleep,
}

impl Client {
    pub(super) fn new(stream: Stream) -> Client {
        Client { stream, ready: CoSleep::new() }
    }

    /// Ends it, whatever it does.
    pub(super) fn end(&self) {
        self.stream.shutdown();
        self.ready.wake();
    }

    /// Reads its request and sends what `page` makes, or a refusal.
    ///
    /// # Errors
    /// If the client goes, or does not take its answer in time.
    pub(super) fn serve(&self, co: &Co<'_>, page: impl FnOnce() -> String) -> io::Result<()> {
        let ready = self.ready.clone();
        let wake = move |_: &_, _| ready.wake();
        let _watched = co.context().fd_handler(&self.stream, FdInterest::ReadWrite, wake)?;
        self.exchange(co, page)
    }

    fn exchange(&self, co: &Co<'_>, page: impl FnOnce() -> String) -> io::Result<()> {
        let response = match self.receive(co)? {
            Answer::Page { body } => http::page(&page(), body),
            Answer::Refusal(refusal) => refusal.response(),
        };
        self.send(co, &response)?;
        // What a client sends and the server does not read would cost it the answer at the end.
        self.stream.shutdown_write()?;
        let deadline_ns = deadline_ns(co, LINGER);
        let mut most = 64;
        while most > 0 && self.read(co, &mut [0; 4096], deadline_ns)? > 0 {
            most -= 1;
        }
        Ok(())
    }

    fn receive(&self, co: &Co<'_>) -> io::Result<Answer> {
        let deadline_ns = deadline_ns(co, PATIENCE);
        let (mut received, mut end) = ([0; MAX_HEAD_BYTES], 0);
        loop {
            match self.read(co, &mut received[end..], deadline_ns) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => end += bytes,
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    return Ok(Answer::Refusal(Refusal::RequestTimeout));
                }
                Err(error) => return Err(error),
            }
            if let Some(answer) = http::parse(&received[..end]) {
                return Ok(answer);
            }
        }
    }

    fn read(&self, co: &Co<'_>, target: &mut [u8], deadline_ns: i64) -> io::Result<usize> {
        self.repeat(co, deadline_ns, || self.stream.read(target))
    }

    fn send(&self, co: &Co<'_>, mut rest: &[u8]) -> io::Result<()> {
        let deadline_ns = deadline_ns(co, PATIENCE);
        while !rest.is_empty() {
            let sent = self.repeat(co, deadline_ns, || self.stream.write(&[IoSlice::new(rest)]))?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Makes a call until it has done something, or the time is over.
    fn repeat(
        &self,
        co: &Co<'_>,
        deadline_ns: i64,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match call() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => return result,
            }
            let left_ns = deadline_ns - co.context().now_ns();
            match u64::try_from(left_ns) {
                Ok(left_ns @ 1..) => drop(self.ready.sleep(co, Duration::from_nanos(left_ns))),
                _ => return Err(ErrorKind::TimedOut.into()),
            }
        }
    }
}

fn deadline_ns(co: &Co<'_>, patience: Duration) -> i64 {
    co.context().now_ns() + patience.as_nanos() as i64
}
