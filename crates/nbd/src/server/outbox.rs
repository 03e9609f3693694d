//! [`Outbox`]: what waits to be sent to a client, several messages to one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use smallvec::SmallVec;

use crate::server::message::Message;
use crate::server::turn::MAX_BYTES;
use crate::transport::Transport;

/// Messages in one system call; each is two ranges at most.
const BATCH: usize = 32;
/// A part that exceeds the bytes of a call by no more than this is not cut: else the header of a long reply
/// would leave as many bytes for another call.
const MAX_EXCESS: usize = 4 << 10;

#[derive(Default)]
pub struct Outbox {
    messages: VecDeque<Message>,
    /// How much of the first one has gone, in bytes.
    sent: usize,
    /// Bytes sent since the beginning.
    total: u64,
    /// An empty list, kept so that none is allocated each time.
    spare: Sent,
}

/// Messages that were sent. The caller drops them when nothing is borrowed: that frees memory, and
/// coroutines that wait for it run. Then it gives the list back.
pub type Sent = Vec<Message>;

impl Outbox {
    pub fn push(&mut self, message: Message) {
        self.messages.push_back(message);
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Length of all messages that have not gone completely, in bytes.
    pub fn len(&self) -> u64 {
        self.messages.iter().map(|message| message.len() as u64).sum()
    }

    /// Bytes sent since the beginning.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Forgets all, for a client that is gone.
    pub fn clear(&mut self) -> Sent {
        self.sent = 0;
        self.messages.drain(..).collect()
    }

    /// Takes a list back whose messages are gone.
    pub fn recycle(&mut self, list: Sent) {
        debug_assert!(list.is_empty());
        self.spare = list;
    }

    /// Sends what the socket takes at once.
    pub fn send(&mut self, transport: &Transport) -> io::Result<Sent> {
        if self.messages.is_empty() {
            transport.push()?;
            return Ok(std::mem::take(&mut self.spare));
        }
        let slices = self.next_slices(transport.long());
        let written = transport.write(&slices)?;
        drop(slices);
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(self.note(written))
    }

    /// So many bytes have gone; of messages that have completely.
    fn note(&mut self, written: usize) -> Sent {
        self.total += written as u64;
        let mut bytes = self.sent + written;
        let mut done = std::mem::take(&mut self.spare);
        while self.messages.front().is_some_and(|message| message.len() <= bytes) {
            if let Some(message) = self.messages.pop_front() {
                bytes -= message.len();
                done.push(message);
            }
        }
        self.sent = bytes;
        done
    }

    /// What one call is given. A client that reads on meanwhile makes it take as long as that is. What has `long`
    /// bytes, or more, is the first of a call.
    #[inline]
    fn next_slices(&self, long: usize) -> SmallVec<[IoSlice<'_>; 2 * BATCH]> {
        let mut slices = SmallVec::new();
        let (mut skip, mut room) = (self.sent, MAX_BYTES);
        for part in self.messages.iter().take(BATCH).flat_map(Message::parts) {
            let gone = skip.min(part.len());
            skip -= gone;
            let part = &part[gone..];
            if room == 0 || (part.len() >= long && !slices.is_empty()) {
                break;
            }
            if part.is_empty() {
                continue;
            }
            let is_whole = part.len() <= room + MAX_EXCESS;
            let part = if is_whole { part } else { &part[..room] };
            room = room.saturating_sub(part.len());
            slices.push(IoSlice::new(part));
        }
        slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_given_a_long_reply_whole_and_of_longer_ones_a_part() {
        let next = |lengths: &[usize], sent| {
            let mut outbox = Outbox { sent, ..Outbox::default() };
            lengths.iter().for_each(|&bytes| outbox.push(Message::raw(vec![0; bytes])));
            outbox.next_slices(usize::MAX).iter().map(|slice| slice.len()).sum::<usize>()
        };
        let header = 16;
        assert_eq!(next(&[header, MAX_BYTES, header, MAX_BYTES], 0), header + MAX_BYTES);
        assert_eq!(next(&[header, MAX_BYTES, header, MAX_BYTES], 1), header + MAX_BYTES - 1);
        assert_eq!(next(&[MAX_BYTES + MAX_EXCESS], 0), MAX_BYTES + MAX_EXCESS);
        assert_eq!(next(&[MAX_BYTES + MAX_EXCESS + 1], 0), MAX_BYTES);
        assert_eq!(next(&[MAX_BYTES + MAX_EXCESS + 1], 1), MAX_BYTES + MAX_EXCESS);
        assert_eq!(next(&[header, 3 * MAX_BYTES], 0), MAX_BYTES);
        assert_eq!(next(&[header; 40], 0), BATCH * header);
    }

    #[test]
    fn what_is_long_begins_a_call() {
        let calls = |lengths: &[usize]| {
            let mut outbox = Outbox::default();
            lengths.iter().for_each(|&bytes| outbox.push(Message::raw(vec![0; bytes])));
            let mut calls = Vec::new();
            while !outbox.is_empty() {
                let slices: Vec<_> = outbox.next_slices(100).iter().map(|it| it.len()).collect();
                outbox.note(slices.iter().sum());
                calls.push(slices);
            }
            calls
        };
        assert_eq!(calls(&[16, 99, 16, 99]), [[16, 99, 16, 99]]);
        assert_eq!(calls(&[16, 100, 16, 99, 16, 200]), [&[16][..], &[100, 16, 99, 16], &[200]]);
    }
}
