//! What a READ has read, as the client is told: data, and holes where it is all zeroes.
//!
//! The data itself says where it is zero. That costs dense data a look at one byte in each
//! [`GRAIN`], where block status would cost it system calls, and finds zeroes that are allocated too.

use std::rc::Rc;

use crate::protocol::CMD_FLAG_DF;
use crate::protocol::reply::Style;
use crate::protocol::request::Request;
use crate::server::client::Client;
use crate::server::memory::Buffer;
use crate::server::message::{Message, Payload};

/// Granularity of holes in bytes: fewer zeroes are not worth a chunk.
const GRAIN: usize = 32 << 10;

/// Sends all but the last chunk of the reply, and returns that.
pub fn reply(client: &Rc<Client>, style: Style, request: &Request, data: Buffer) -> Message {
    if style == Style::Simple || request.has(CMD_FLAG_DF) || data.is_empty() {
        return Message::data(style, request, data);
    }
    let (mut end, mut is_hole) = run(&data, 0);
    if end == data.len() {
        return match is_hole {
            true => Message::hole(style, request, request.offset, end, true),
            false => Message::data(style, request, data),
        };
    }
    let data = Rc::new(data);
    let mut at = 0;
    loop {
        let (offset, last) = (request.offset + at as u64, end == data.len());
        let message = if is_hole {
            Message::hole(style, request, offset, end - at, last)
        } else {
            let part = Payload::Part(Rc::clone(&data), at..end);
            Message::part(style, request, offset, part, last)
        };
        if last {
            return message;
        }
        client.link.post(message);
        at = end;
        (end, is_hole) = run(&data, at);
    }
}

/// Where the run of grains of one kind ends that begins at `from`, and whether they are zeroes.
fn run(data: &[u8], from: usize) -> (usize, bool) {
    let mut grains = data[from..].chunks(GRAIN).map(|grain| (grain.len(), is_zero(grain)));
    let (mut bytes, kind) = grains.next().unwrap_or((0, false));
    bytes += grains.take_while(|grain| grain.1 == kind).map(|grain| grain.0).sum::<usize>();
    (from + bytes, kind)
}

/// All bytes are zero: the first is, and each is as the one before it.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_one_kind() {
        let mut data = vec![0; 4 * GRAIN + 5];
        assert_eq!(run(&data, 0), (4 * GRAIN + 5, true));
        data[GRAIN] = 1;
        data[3 * GRAIN - 1] = 1;
        assert_eq!(run(&data, 0), (GRAIN, true));
        assert_eq!(run(&data, GRAIN), (3 * GRAIN, false));
        assert_eq!(run(&data, 3 * GRAIN), (4 * GRAIN + 5, true));
        data[4 * GRAIN + 4] = 1;
        assert_eq!(run(&data, 3 * GRAIN), (4 * GRAIN, true));
        assert_eq!(run(&data, 4 * GRAIN), (4 * GRAIN + 5, false));
        assert!(is_zero(&[]) && is_zero(&[0]) && !is_zero(&[1]) && !is_zero(&[0, 1]));
    }
}
