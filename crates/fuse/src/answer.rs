//! [`Answer`]: what a request is owed.

use std::io::{self, IoSlice};
use std::rc::Rc;

use crate::memory::SMALL;
use crate::queue::Queue;
use crate::reply::{self, Reply};
use crate::room::Room;

/// A request that is to be answered: with EIO, if it is dropped without. Counts as in flight.
pub struct Answer {
    pub queue: Rc<Queue>,
    /// Its data, or that of the answer.
    pub room: Room,
    unique: u64,
    is_owed: bool,
}

impl Answer {
    pub fn new(queue: &Rc<Queue>, unique: u64, room: Room) -> Answer {
        queue.count_begun();
        Answer { queue: Rc::clone(queue), room, unique, is_owed: true }
    }

    /// No answer is expected.
    pub fn none(mut self) {
        self.is_owed = false;
    }

    /// With an errno.
    pub fn error(mut self, errno: i32) {
        self.send_error(errno);
    }

    fn send_error(&mut self, errno: i32) {
        // The kernel takes no others.
        let errno = if (1..512).contains(&errno) { errno } else { libc::EIO };
        self.send(-errno, &[]);
    }

    /// With a short answer. Returns whether the kernel still wanted it.
    pub fn reply(mut self, reply: &Reply) -> bool {
        self.send(0, reply.as_bytes())
    }

    fn send(&mut self, error: i32, body: &[u8]) -> bool {
        self.is_owed = false;
        let header = reply::header(self.unique, error, body.len());
        match (self.room.take_entry(), self.queue.lane()) {
            (Some(mut entry), Some(lane)) => {
                entry.payload_mut()[..body.len()].copy_from_slice(body);
                entry.answer(&header, body.len() as u32);
                lane.answer(entry);
                true
            }
            _ => self.queue.send(&[IoSlice::new(&header), IoSlice::new(body)]),
        }
    }

    /// With the data that is in its room.
    pub fn data(mut self) {
        self.is_owed = false;
        let header = reply::header(self.unique, 0, self.room.len());
        let bytes = self.room.len() as u32;
        match (self.room.take_entry(), self.queue.lane()) {
            (Some(mut entry), Some(lane)) => {
                entry.answer(&header, bytes);
                lane.answer(entry);
            }
            _ if bytes as usize <= SMALL && self.queue.may_wait() => {
                let room = std::mem::replace(&mut self.room, Room::Blocks(None));
                self.queue.tell_later(Untold { header, body: Body::Data(room) });
            }
            _ => drop(self.queue.send(&self.room.behind(&header))),
        }
    }

    /// With what the node says. ENOSYS has a meaning of its own here: the kernel would take the request for
    /// done, a sync as well, and not ask again as long as the file system is mounted.
    pub fn failed(self, error: &io::Error) {
        match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::ENOSYS => self.error(libc::EOPNOTSUPP),
            errno => self.error(errno),
        }
    }

    /// With what an operation has come to.
    pub fn result(mut self, result: io::Result<Reply>) {
        match result {
            Ok(reply) if matches!(self.room, Room::Blocks(_)) && self.queue.may_wait() => {
                self.is_owed = false;
                let header = reply::header(self.unique, 0, reply.as_bytes().len());
                self.queue.tell_later(Untold { header, body: Body::Reply(reply) });
            }
            Ok(reply) => drop(self.reply(&reply)),
            Err(error) => self.failed(&error),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.is_owed {
            self.send_error(libc::EIO);
        }
        self.queue.count_ended();
    }
}

/// An answer that the kernel is to be told of.
pub struct Untold {
    pub header: [u8; reply::HEADER_BYTES],
    pub body: Body,
}

pub enum Body {
    Data(Room),
    Reply(Reply),
}
