//! [`Receiver`]: bytes of a client that were read ahead.

use std::io;

use coblk_aio::Co;

use crate::protocol::broken;
use crate::server::link::Link;

/// Bytes that are read ahead at most: many headers, or small payloads with theirs.
pub const CAPACITY: usize = 32 << 10;
/// Of a payload so much may be read ahead and copied: that is cheaper than to ask whether it is there,
/// and what follows it comes with it.
const MAX_COPIED: usize = 16 << 10;

pub struct Receiver {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Receiver {
    pub fn new() -> Receiver {
        Receiver { buffer: vec![0; CAPACITY], start: 0, end: 0 }
    }

    /// The next `len` bytes, at most [`CAPACITY`].
    pub fn exact(&mut self, co: &Co<'_>, link: &Link, len: usize) -> io::Result<&[u8]> {
        while self.end - self.start < len {
            self.receive(co, link)?;
        }
        let from = self.start;
        self.start += len;
        Ok(&self.buffer[from..self.start])
    }

    /// Reads ahead, as much as there is room for.
    fn receive(&mut self, co: &Co<'_>, link: &Link) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let bytes = link.read_ahead(co, &mut self.buffer, self.end)?;
        self.end += bytes;
        Ok(bytes)
    }

    /// Reads ahead what has come of a client that has closed its end, without waiting.
    ///
    /// # Errors
    /// If that is all.
    pub fn look_for_end(&mut self, link: &Link) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < self.buffer.len() {
            match link.receive(&mut self.buffer[self.end..]) {
                Some(bytes) => self.end += bytes?,
                None => break,
            }
        }
        Ok(())
    }

    /// Nothing is here that was not looked at.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Fills `target` with what comes next. If much of that is not here yet, it is read straight to its
    /// place.
    pub fn fill(&mut self, co: &Co<'_>, link: &Link, target: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        loop {
            let here = (self.end - self.start).min(target.len() - done);
            target[done..done + here].copy_from_slice(&self.buffer[self.start..self.start + here]);
            self.start += here;
            done += here;
            if done == target.len() {
                return Ok(());
            }
            let bytes = if target.len() - done <= MAX_COPIED {
                self.receive(co, link)?
            } else {
                let bytes = link.read(co, &mut target[done..])?;
                done += bytes;
                bytes
            };
            link.turn.charge(bytes);
            link.give_way_if_over(co);
        }
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// Also if they are more than any request can have.
    pub fn skip(&mut self, co: &Co<'_>, link: &Link, len: u64) -> io::Result<()> {
        if len > u64::from(u32::MAX) {
            return Err(broken("a payload of more than 4 GiB"));
        }
        let mut left = len;
        while left > 0 {
            link.give_way(co);
            let piece = left.min(4096);
            self.exact(co, link, piece as usize)?;
            left -= piece;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::{ErrorKind, Write};
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    use coblk_aio::AioContext;
    use coblk_aio::net::Stream;
    use fastrand::Rng;

    use super::*;
    use crate::server::message::Message;
    use crate::transport::Transport;

    /// A client and the coroutine that reads from it.
    struct Conversation {
        ctx: AioContext,
        link: Rc<Link>,
        client: Option<UnixStream>,
        got: Rc<RefCell<Vec<u8>>>,
        end: Rc<Cell<Option<ErrorKind>>>,
    }

    impl Conversation {
        /// The coroutine reads messages: a header of 3 bytes says how the rest is read, and its length.
        fn new() -> Conversation {
            let talk = Conversation::begin();
            let (link, got) = (Rc::clone(&talk.link), Rc::clone(&talk.got));
            let end = Rc::clone(&talk.end);
            talk.ctx.spawn("reader", move |co| {
                link.open(co.context()).unwrap();
                let mut receiver = Receiver::new();
                let error = loop {
                    if let Err(error) = one_message(co, &link, &mut receiver, &got) {
                        break error;
                    }
                };
                end.set(Some(error.kind()));
                link.finish(co);
            });
            talk
        }

        /// Without the coroutine.
        fn begin() -> Conversation {
            let ctx = AioContext::for_test().unwrap();
            let (socket, client) = UnixStream::pair().unwrap();
            client.set_nonblocking(true).unwrap();
            let transport = Transport::new(Stream::from_fd(socket).unwrap());
            let link = Link::new(transport, Rc::new(Cell::new(1)));
            let (got, end) = Default::default();
            Conversation { ctx, link, client: Some(client), got, end }
        }

        /// Sends what the socket takes, and returns how much.
        fn send(&mut self, bytes: &[u8]) -> usize {
            match self.client.as_mut().unwrap().write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                sent => sent.unwrap(),
            }
        }

        /// What a loop that polls does before it sleeps.
        fn poll(&self) -> bool {
            let busy = self.link.look();
            if busy {
                self.link.poke();
            }
            busy
        }

        /// Until the loop has nothing more to tell.
        fn settle(&self, by_poll: bool) {
            while (by_poll && self.poll()) || self.ctx.try_poll() {}
        }
    }

    fn one_message(
        co: &Co<'_>,
        link: &Link,
        receiver: &mut Receiver,
        got: &RefCell<Vec<u8>>,
    ) -> io::Result<()> {
        let header = receiver.exact(co, link, 3)?;
        got.borrow_mut().extend_from_slice(header);
        let (kind, len) = (header[0], usize::from(u16::from_be_bytes([header[1], header[2]])));
        match kind {
            0 => {
                let bytes = receiver.exact(co, link, len)?;
                got.borrow_mut().extend_from_slice(bytes);
            }
            1 => {
                let mut bytes = vec![0; len];
                receiver.fill(co, link, &mut bytes)?;
                got.borrow_mut().extend_from_slice(&bytes);
            }
            _ => receiver.skip(co, link, len as u64)?,
        }
        Ok(())
    }

    /// A message, and what the reader gets of it.
    fn message(random: &mut Rng, max_len: u16) -> [Vec<u8>; 2] {
        let (kind, len) = (random.u8(0..3), random.u16(0..=max_len));
        let header = [&[kind][..], &len.to_be_bytes()].concat();
        let payload: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
        let kept = if kind == 2 { &[] } else { &payload[..] };
        [[&header, &payload[..]].concat(), [&header, kept].concat()]
    }

    /// Messages one after the other, and what the reader gets of them.
    fn messages(random: &mut Rng, count: usize, max_len: u16) -> [Vec<u8>; 2] {
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..count {
            for (all, part) in all.iter_mut().zip(message(random, max_len)) {
                all.extend(part);
            }
        }
        all
    }

    #[test]
    fn a_stream_cut_anywhere_comes_whole_by_the_poll_and_by_events() {
        let mut random = Rng::with_seed(1);
        let [sent, wanted] = messages(&mut random, 6, 5);
        for (first, second) in
            (0..=sent.len()).flat_map(|at| (at..=sent.len()).map(move |to| (at, to)))
        {
            for ways in 0..8 {
                let mut talk = Conversation::new();
                let parts = [&sent[..first], &sent[first..second], &sent[second..]];
                for (index, part) in parts.into_iter().enumerate() {
                    assert_eq!(talk.send(part), part.len());
                    talk.settle(ways >> index & 1 == 1);
                }
                assert_eq!(*talk.got.borrow(), wanted, "cut at {first} and {second}, {ways:03b}");
                assert_eq!(talk.end.get(), None);
            }
        }
    }

    #[test]
    fn nothing_is_lost_or_out_of_order_however_polls_and_events_meet() {
        for seed in 0..3000 {
            let mut random = Rng::with_seed(seed);
            let [sent, wanted] = messages(&mut random, 12, if seed % 2 == 0 { 8 } else { 20_000 });
            let mut talk = Conversation::new();
            let is_reset = random.bool();
            // Some clients go in the middle of a message.
            let is_whole = random.bool();
            let sent = if is_whole { &sent[..] } else { &sent[..random.usize(..sent.len())] };
            if is_reset {
                // A client that leaves something unread, and closes, resets the connection.
                talk.link.post(Message::raw(vec![1]));
                assert!(talk.link.flush());
            }
            let mut at = 0;
            while at < sent.len() {
                match random.u8(0..4) {
                    0 => {
                        let max = if random.bool() { 40 } else { 50_000 };
                        let len = random.usize(1..=max).min(sent.len() - at);
                        at += talk.send(&sent[at..at + len]);
                    }
                    // The loop may have more to do between the look and what it leads to.
                    1 => _ = talk.link.look(),
                    2 => _ = talk.poll(),
                    _ => _ = talk.ctx.try_poll(),
                }
                if random.u8(0..8) == 0 {
                    talk.settle(random.bool());
                }
            }
            talk.settle(random.bool());
            let is_right = match is_whole {
                true => *talk.got.borrow() == wanted,
                false => wanted.starts_with(&talk.got.borrow()),
            };
            assert!(is_right, "seed {seed}");
            drop(talk.client.take());
            if random.bool() {
                assert!(talk.link.look(), "seed {seed}: the end is there");
            }
            talk.settle(random.bool());
            let end = if is_reset { ErrorKind::ConnectionReset } else { ErrorKind::UnexpectedEof };
            assert_eq!(talk.end.get(), Some(end), "seed {seed}");
        }
    }

    #[test]
    fn a_poll_receives_what_there_is_room_for_and_nothing_for_a_client_that_is_held_back() {
        let mut talk = Conversation::begin();
        let held_back = Rc::new(Cell::new(true));
        let (link, holds) = (Rc::clone(&talk.link), Rc::clone(&held_back));
        talk.ctx.spawn("reader", move |co| {
            link.open(co.context()).unwrap();
            let mut receiver = Receiver::new();
            receiver.exact(co, &link, 1).unwrap();
            link.wait_until(co, || !holds.get()).unwrap();
            while receiver.exact(co, &link, 1).is_ok() {}
            link.finish(co);
        });
        assert!(!talk.poll(), "nothing was sent");
        assert_eq!(talk.send(&[1]), 1);
        talk.settle(true);
        assert_eq!(talk.link.received(), 1);
        assert_eq!(talk.send(&[2; 50_000]), 50_000);
        assert!(!talk.poll() && talk.link.received() == 1, "it is held back");
        held_back.set(false);
        talk.link.poke();
        assert!(talk.link.look());
        assert_eq!(talk.link.received(), 1 + CAPACITY as u64);
        assert!(talk.link.look(), "what was received is still to be told");
        assert_eq!(talk.link.received(), 1 + CAPACITY as u64);
        talk.settle(true);
        assert_eq!(talk.link.received(), 50_001);
        // Disconnected: the coroutine is still to be told, and nothing is received meanwhile.
        assert_eq!(talk.send(&[3; 100]), 100);
        talk.ctx.run(|_| {
            talk.link.end();
            assert!(!talk.link.look());
        });
        talk.settle(true);
        assert_eq!(talk.link.received(), 50_001);
    }
}
