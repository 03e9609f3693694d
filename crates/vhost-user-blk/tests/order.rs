//! The messages that set a queue up may come in any order: it starts with the last of them.

mod util;

use coblk_vhost_user_blk::VhostUserBlkOptions;
use util::guest::{Guest, READ, RING_PACKED, SIZE, WRITE, negotiate};
use util::{Client, Server};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

/// What a front end has to say before a queue runs.
#[derive(Clone, Copy, Debug)]
enum Step {
    Features,
    Memory,
    Size,
    Rings,
    Base,
    Call,
    Kick,
    Enable,
}

impl Step {
    fn say(self, front: &mut Frontend, guest: &Guest, features: u64) {
        let said = match self {
            Step::Features => front.set_features(features),
            Step::Memory => front.set_mem_table(&[guest.region()]).map(drop),
            Step::Size => front.set_vring_num(0, SIZE as u16),
            Step::Rings => front.set_vring_addr(0, &Guest::rings()),
            Step::Base => front.set_vring_base(0, guest.used_idx),
            Step::Call => front.set_vring_call(0, &guest.call),
            Step::Kick => front.set_vring_kick(0, &guest.kick),
            Step::Enable => front.set_vring_enable(0, true),
        };
        said.unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

/// All orders of `steps`.
fn orders(steps: &[Step]) -> Vec<Vec<Step>> {
    if steps.is_empty() {
        return vec![Vec::new()];
    }
    let first = |at: usize| {
        let mut rest = steps.to_vec();
        let first = rest.remove(at);
        orders(&rest).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (0..steps.len()).flat_map(first).collect()
}

/// A guest goes on at some index, which is soon past the largest one, and finds its requests served.
fn serves(front: &mut Frontend, order: &[Step], features: u64) {
    let mut guest = Guest::new();
    guest.empty_rings(65_534);
    // What was there before the queue starts must be served too.
    guest.submit(0, WRITE, 3, 0x5a);
    for step in order {
        step.say(front, &guest, features);
    }
    guest.kick.write(1).unwrap();
    assert_eq!(guest.wait_for(1), [(0, 0)], "{order:?}");
    for round in 0..3 {
        assert_eq!(guest.one(READ, 3, 0), 0, "{order:?}");
        assert_eq!(guest.data(0), 0x5a, "{order:?}, {round}");
    }
    assert_eq!(front.get_vring_base(0).unwrap(), 2, "{order:?}");
}

#[test]
fn each_order_of_messages_starts_a_queue() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let steps = [Step::Memory, Step::Size, Step::Rings, Step::Base, Step::Kick, Step::Enable];
    for (count, mut order) in orders(&steps).into_iter().enumerate() {
        order.insert(count % (order.len() + 1), Step::Call);
        serves(&mut negotiate(&server.socket, 0), &order, 0);
    }
}

#[test]
fn each_order_of_messages_starts_a_queue_without_protocol_features() {
    const PROTOCOL_FEATURES: u64 = 1 << 30;
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let steps = [Step::Memory, Step::Size, Step::Rings, Step::Base, Step::Kick, Step::Features];
    for (count, mut order) in orders(&steps).into_iter().enumerate() {
        order.insert(count % (order.len() + 1), Step::Call);
        let mut front = Frontend::connect(&server.socket, 1).unwrap();
        front.set_owner().unwrap();
        let features = front.get_features().unwrap() & !(PROTOCOL_FEATURES | RING_PACKED);
        serves(&mut front, &order, features);
    }
}

/// The region with the rings is the last of two.
#[test]
fn memory_may_come_last_and_in_pieces() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut front = negotiate(&server.socket, 0);
    let (mut guest, other) = (Guest::new(), Guest::new());
    let steps = [Step::Size, Step::Rings, Step::Base, Step::Call, Step::Kick, Step::Enable];
    steps.into_iter().for_each(|step| step.say(&mut front, &guest, 0));
    let mut region = other.region();
    (region.guest_phys_addr, region.userspace_addr) = (1 << 30, 1 << 30);
    front.add_mem_region(&region).unwrap();
    front.add_mem_region(&guest.region()).unwrap();
    assert_eq!(guest.one(WRITE, 0, 7), 0);
    // A queue that runs keeps its memory, or the front end is disconnected.
    assert!(front.remove_mem_region(&guest.region()).is_err());
}

#[test]
fn a_queue_that_has_taken_something_cannot_begin_elsewhere() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut front = negotiate(&server.socket, 0);
    let mut guest = Guest::new();
    guest.start(&mut front);
    assert_eq!(guest.one(WRITE, 0, 7), 0);
    front.set_vring_base(0, 0).unwrap();
    assert!(front.set_vring_base(0, 1).is_err(), "it would serve a request again, or miss one");
    drop(front);
    Client::connect(&server.socket, 1).check(0, 4096, 4096, 77);
}

#[test]
fn queues_and_logs_have_up_to_1024_entries() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    for size in [1, 2, 64, 128, 256, 512, 1024] {
        let mut front = negotiate(&server.socket, 0);
        front.set_vring_num(0, size).unwrap();
        let wanted = VhostUserInflight::new(0, 0, 1, size);
        let (layout, file) = front.get_inflight_fd(&wanted).unwrap();
        assert!(layout.mmap_size >= 16 + 16 * u64::from(size));
        assert_eq!(file.metadata().unwrap().len(), layout.mmap_size);
    }
    for size in [0, 3, 2048, 32768] {
        assert!(negotiate(&server.socket, 0).set_vring_num(0, size).is_err(), "{size}");
    }
    let wanted = VhostUserInflight::new(0, 0, 1, 2048);
    assert!(negotiate(&server.socket, 0).get_inflight_fd(&wanted).is_err());
}
