//! A guest that has left one daemon, and comes to another one before its memory does.

use std::fs::File;
use std::os::unix::net::UnixStream;

use coblk_block::{BlockNode, drivers};
use coblk_vhost_user_blk::VhostUserBlkOptions;
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::guest::{DEPTH, Guest, MEMORY_BYTES, READ, STATUSES, USED, WRITE, negotiate_rings_on};
use super::late::{Late, is_there};
use super::pages::PAGE;
use super::{Server, wait_until};

/// Two daemons of one image.
pub fn daemons(contexts: usize) -> [Server; 2] {
    let first = Server::start(VhostUserBlkOptions::default(), 0);
    let image = first.image.clone();
    let second = Server::start_on(VhostUserBlkOptions::default(), contexts, |_| {
        BlockNode::new("disk", drivers::File::options().open(image).unwrap())
    });
    [first, second]
}

/// Where reads find what they read, and where writes go.
pub const FROM: u64 = 100;
pub const TO: u64 = 200;
/// What was there before.
pub const BEFORE: u8 = 0xb5;

pub fn value(slot: usize) -> u8 {
    slot as u8 * 3 + 17
}

/// Each even slot writes, each odd one reads.
pub fn submit_all(guest: &mut Guest) {
    for slot in 0..DEPTH {
        match slot % 2 {
            0 => guest.submit(slot, WRITE, TO + slot as u64, value(slot)),
            _ => guest.submit(slot, READ, FROM + slot as u64, 0xaa),
        }
    }
}

/// A guest that has left the first daemon with requests in its ring that no daemon has taken; what its memory was, and
/// where its queue goes on. Its new memory is empty.
pub fn leaves(server: &Server, packed: bool) -> (Guest, Vec<u8>, u16) {
    let stream = UnixStream::connect(&server.socket).unwrap();
    let mut front = negotiate_rings_on(stream, 0, packed);
    let mut guest = Guest::with_ring(packed);
    guest.start(&mut front);
    for slot in 0..DEPTH {
        assert_eq!(guest.one_in(slot, WRITE, FROM + slot as u64, value(slot)), 0);
    }
    for slot in 0..DEPTH {
        assert_eq!(guest.one_in(slot, WRITE, TO + slot as u64, BEFORE), 0);
    }
    let base = front.get_vring_base(0).unwrap() as u16;
    submit_all(&mut guest);
    let mut image = vec![0; MEMORY_BYTES];
    guest.load_bytes(0, &mut image);
    let fresh = Guest::new();
    (guest.file, guest.memory) = (fresh.file, fresh.memory);
    (guest, image, base)
}

pub fn listens(server: &Server, packed: bool) -> (Frontend, UnixStream, File) {
    let stream = UnixStream::connect(&server.socket).unwrap();
    let mut front = negotiate_rings_on(stream.try_clone().unwrap(), 0, packed);
    let userfault = front.postcopy_advise().unwrap();
    front.postcopy_listen().unwrap();
    (front, stream, userfault)
}

/// The guest's memory is shown, and nothing of it is there.
pub fn shows(server: &Server, guest: &Guest, packed: bool) -> (Frontend, UnixStream, File, u64) {
    let (mut front, stream, userfault) = listens(server, packed);
    let base = front.add_mem_region(&guest.region()).unwrap().unwrap();
    (front, stream, userfault, base)
}

pub fn has_nothing(file: &File) -> bool {
    (0..MEMORY_BYTES / PAGE as usize).all(|page| !is_there(file, page))
}

pub fn starts(front: &mut Frontend, guest: &Guest, base: u16) {
    guest.lay_out(front, base);
    front.set_vring_call(0, &guest.call).unwrap();
    front.set_vring_kick(0, &guest.kick).unwrap();
    front.set_vring_enable(0, true).unwrap();
}

/// The answers, once their pages are there: the guest of this test makes pages that it touches.
pub fn answers(guest: &mut Guest, late: &Late, packed: bool, count: usize) -> Vec<(usize, u8)> {
    let ring = if packed { 0 } else { USED };
    wait_until("answers come", || {
        [ring, STATUSES].iter().all(|place| late.has(place / PAGE as usize))
    });
    guest.wait_for(count)
}
