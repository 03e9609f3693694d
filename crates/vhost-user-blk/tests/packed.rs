//! Packed queues over vhost-user: with the driver of libblkio, and with one that says what it likes.

mod util;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use util::guest::{
    Guest, READ, RING_PACKED, SIZE, WRITE, negotiate_rings, negotiate_rings_on, set_base,
};
use util::{Client, DISK_BYTES, Op, Server};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

#[test]
fn the_driver_of_libblkio_finds_its_disk() {
    for io_threads in [0, 2] {
        let device = VirtioBlkConfig::default().num_queues(2);
        let server = Server::start(VhostUserBlkOptions::new(device), io_threads);
        // Not only the first front end.
        for _ in 0..2 {
            let mut client = Client::connect_rings(&server.socket, 2, true);
            for round in 0..100u8 {
                let offset = u64::from(round) * 65536;
                client.check(usize::from(round) % 2, offset, 4096, round);
                assert_eq!(client.one(0, Op::Flush, 0, 0), 0);
                assert_eq!(client.one(1, Op::Discard, DISK_BYTES - 65536, 4096), 0);
                assert_eq!(client.one(1, Op::WriteZeroes, DISK_BYTES - 65536, 4096), 0);
            }
            // Many at once, which are answered in any order.
            for round in 0..50 {
                for tag in 0..20 {
                    let offset = (round * 20 + tag) as u64 * 4096;
                    client.submit(0, Op::Write, offset, 4096, tag * 4096, tag);
                }
                let mut done = client.complete(0, 20);
                done.sort_unstable();
                assert_eq!(done, (0..20).map(|tag| (tag, 0)).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn c92_a_packed_queue_stops_and_goes_on_by_both_of_its_places() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut front = negotiate_rings_on(stream.try_clone().unwrap(), 0, true);
    let mut guest = Guest::with_ring(true);
    assert_eq!(front.get_vring_base(0).unwrap(), 0x8000_8000, "before it begins");
    guest.start(&mut front);
    for round in 0..60u8 {
        assert_eq!(guest.one(WRITE, u64::from(round), round), 0);
        assert_eq!(guest.one(READ, u64::from(round), 0xff), 0);
        assert_eq!(guest.data(0), round);
        let base = front.get_vring_base(0).unwrap();
        let (avail, used) = guest.packed_places();
        assert_eq!(avail, used);
        assert_eq!(base, u32::from(avail) | u32::from(used) << 16);
        // As common front ends say it, or with one of the two alone.
        match round % 2 {
            0 => assert!(set_base(&stream, base)),
            _ => front.set_vring_base(0, base as u16).unwrap(),
        }
        front.set_vring_kick(0, &guest.kick).unwrap();
    }
    // Without a log of requests in flight there are none.
    let base = front.get_vring_base(0).unwrap();
    assert!(!set_base(&stream, base ^ 1 << 16));
}

#[test]
fn a_queue_that_runs_stays_split_or_packed() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    for packed in [false, true] {
        let mut front = negotiate_rings(&server.socket, 0, packed);
        let mut guest = Guest::with_ring(packed);
        guest.start(&mut front);
        assert_eq!(guest.one(WRITE, 0, 1), 0);
        let features = front.get_features().unwrap();
        let with = |packed| if packed { features } else { features & !RING_PACKED };
        front.set_features(with(packed)).unwrap();
        assert_eq!(guest.one(WRITE, 0, 1), 0);
        assert!(front.set_features(with(!packed)).is_err());
    }
}

/// A log is as large as the rings need it that were negotiated; before that, as either may.
#[test]
fn logs_of_packed_queues_are_larger() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
    let bytes = |packed| {
        let mut front = negotiate_rings(&server.socket, 0, packed);
        front.get_inflight_fd(&wanted).unwrap().0.mmap_size
    };
    assert!(bytes(false) >= 16 + 16 * SIZE as u64 && bytes(false) < bytes(true));
    assert!(bytes(true) >= 32 + 32 * SIZE as u64);

    let mut front = negotiate_rings(&server.socket, 0, false);
    let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
    drop(front);
    let mut front = negotiate_rings(&server.socket, 0, true);
    // There is room for a split queue alone.
    front.set_inflight_fd(&layout, std::os::fd::AsRawFd::as_raw_fd(&log)).unwrap();
    let guest = Guest::with_ring(true);
    front.add_mem_region(&guest.region()).unwrap();
    guest.lay_out(&front, 1 << 15);
    front.set_vring_kick(0, &guest.kick).unwrap();
    assert!(front.set_vring_enable(0, true).is_err());
}
