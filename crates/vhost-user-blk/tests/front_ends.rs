//! Front ends that do what is allowed and not common.

mod util;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_block::BackendOptions;
use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use util::daemon::Daemon;
use util::guest::{Guest, READ, WRITE, negotiate, negotiate_on};
use util::{Client, DISK_BYTES, Op, Server};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn daemon() {
    util::daemon::run_if_asked();
}

/// Counts what it is told.
struct Told(u32);

impl VhostUserFrontendReqHandlerMut for Told {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0 += 1;
        Ok(0)
    }
}

fn capacity(front: &mut Frontend) -> u64 {
    let read = front.get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60]).unwrap();
    u64::from_le_bytes(read.1[..8].try_into().unwrap())
}

fn resize(server: &Server, length: u64) {
    let node = Arc::clone(&server.node);
    server.call(move |ctx, _| {
        let backend = BackendOptions::new("resizer").share_rw(true).open(ctx, node).unwrap();
        backend.truncate(ctx, length).unwrap();
    });
}

#[test]
fn a_front_end_is_told_of_a_new_length() {
    let device = VirtioBlkConfig::default().num_queues(2);
    let options = VhostUserBlkOptions::new(device);
    let server = Server::start(options, 2);
    for answer_wanted in [true, false] {
        resize(&server, DISK_BYTES);
        let mut front = negotiate(&server.socket, 0);
        if !answer_wanted {
            front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::empty());
        }
        let told = Arc::new(Mutex::new(Told(0)));
        let mut channel = FrontendReqHandler::new(Arc::clone(&told)).unwrap();
        front.set_backend_request_fd(&channel.get_tx_raw_fd()).unwrap();
        // The message was taken, whether or not it was answered.
        assert_eq!(capacity(&mut front), DISK_BYTES / 512);
        for length in [2 * DISK_BYTES, DISK_BYTES / 2] {
            resize(&server, length);
            channel.handle_request().unwrap();
            assert_eq!(capacity(&mut front), length / 512);
        }
        assert_eq!(told.lock().unwrap().0, 2, "once for each change");
    }
    // Those that were not asked to be told see it when they look.
    let mut client = Client::connect(&server.socket, 2);
    resize(&server, 3 * DISK_BYTES);
    while u64::from(client.transport.get_config().unwrap().capacity) != 3 * DISK_BYTES / 512 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.one(0, Op::Write, 3 * DISK_BYTES - 4096, 4096), 0);
}

#[test]
fn a_front_end_that_does_not_listen_holds_up_nobody() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut front = negotiate(&server.socket, 0);
    let (ours, theirs) = UnixStream::pair().unwrap();
    front.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    // Far more than the socket takes.
    for round in 0..2000 {
        resize(&server, DISK_BYTES + round % 2 * 4096);
    }
    assert_eq!(capacity(&mut front), DISK_BYTES / 512 + 8);
    drop(ours);
    resize(&server, DISK_BYTES);
    assert_eq!(capacity(&mut front), DISK_BYTES / 512);
}

const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
/// No descriptor comes with the message.
const NOFD: u64 = 1 << 8;

fn without_descriptor(mut stream: &UnixStream, request: u32) {
    let header = [request, 1, 8].into_iter().flat_map(u32::to_ne_bytes);
    let message: Vec<u8> = header.chain(NOFD.to_ne_bytes()).collect();
    stream.write_all(&message).unwrap();
}

#[test]
fn a_queue_without_kicks_is_polled_and_one_without_calls_is_silent() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let stream = UnixStream::connect(&server.socket).unwrap();
    let mut front = negotiate_on(stream.try_clone().unwrap(), 0);
    let mut guest = Guest::new();
    front.add_mem_region(&guest.region()).unwrap();
    guest.lay_out(&front, 0);
    without_descriptor(&stream, SET_VRING_CALL);
    without_descriptor(&stream, SET_VRING_ERR);
    without_descriptor(&stream, SET_VRING_KICK);
    front.set_vring_enable(0, true).unwrap();
    for round in 0..10u8 {
        guest.submit(0, WRITE, u64::from(round), round);
        assert_eq!(guest.wait_for(1), [(0, 0)]);
        guest.submit(1, READ, u64::from(round), 0xff);
        assert_eq!(guest.wait_for(1), [(1, 0)]);
        assert_eq!(guest.data(1), round);
    }
    // Calls are wanted from now on, kicks as well.
    front.set_vring_call(0, &guest.call).unwrap();
    assert_eq!(guest.call.read().unwrap(), 1, "one may have been missed");
    let base = front.get_vring_base(0).unwrap();
    assert_eq!(base, u32::from(guest.avail_idx));
    front.set_vring_base(0, base as u16).unwrap();
    front.set_vring_kick(0, &guest.kick).unwrap();
    assert_eq!(guest.one(READ, 3, 0xff), 0);
    assert_eq!(guest.data(0), 3);
    drop((front, stream));
}

/// In a process of its own, whose descriptors no other test opens.
#[test]
fn descriptors_of_a_front_end_are_closed_when_it_is_gone() {
    let directory = util::directory();
    std::fs::File::create(directory.path().join("disk")).unwrap().set_len(DISK_BYTES).unwrap();
    let daemon = Daemon::start(directory.path(), &[]);
    let open = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        fds.count()
    };
    let before = open();
    for _ in 0..3 {
        let mut front = negotiate(&directory.path().join("vhost.sock"), 0);
        let mut guest = Guest::new();
        let channel = UnixStream::pair().unwrap();
        front.set_backend_request_fd(&channel.0).unwrap();
        // The second takes the place of the first.
        let errors = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        for error in &errors {
            front.set_vring_err(0, error).unwrap();
        }
        guest.start(&mut front);
        assert_eq!(guest.one(WRITE, 0, 1), 0);
        assert!(open() > before);
        // More heads than there are: the queue is broken, which is said on the descriptor.
        guest.avail_idx = guest.avail_idx.wrapping_add(1000);
        guest.submit(0, WRITE, 0, 1);
        guest.kick.write(1).unwrap();
        let said = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            errors[1].read().is_ok()
        });
        assert!(said && errors[0].read().is_err());
        assert!(front.get_vring_base(0).is_err(), "the connection is lost");
        drop((front, channel));
        while open() != before {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// GET_CONFIG, as a front end says it that counts offsets from somewhere else, or wants nothing.
#[test]
fn each_offset_and_size_of_the_configuration_is_answered() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut front = negotiate_on(stream.try_clone().unwrap(), 0);
    let sectors = (DISK_BYTES / 512).to_ne_bytes();
    let seg_max = 126u32.to_ne_bytes();
    for (offset, size, begins_with) in [
        (0, 60, &sectors[..]),
        (0, 256, &sectors),
        (12, 4, &seg_max),
        (0x100, 60, &sectors),
        (0x10c, 4, &seg_max),
        (0xffff_fffc, 8, &sectors),
        (0, 0, &[]),
        (0x100, 0, &[]),
    ] {
        let prefix = [24, 1, 12 + size, offset, size, 1].into_iter().flat_map(u32::to_ne_bytes);
        let mut message: Vec<u8> = prefix.collect();
        let prefix = [24, 5, 12 + size, offset, size, 1].into_iter().flat_map(u32::to_ne_bytes);
        let expected: Vec<u8> = prefix.chain(begins_with.iter().copied()).collect();
        message.resize(24 + size as usize, 0);
        stream.write_all(&message).unwrap();
        stream.read_exact(&mut message).unwrap();
        assert_eq!(message[..expected.len()], expected, "{offset:#x} {size}");
    }
    assert_eq!(capacity(&mut front), DISK_BYTES / 512, "the connection has lived");
}

/// SET_CONFIG counts offsets as GET_CONFIG does.
#[test]
fn the_write_cache_is_switched_where_it_is_seen() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut front = negotiate(&server.socket, 0);
    let flags = VhostUserConfigFlags::WRITABLE;
    for (offset, value) in [(32, 0), (0x120, 1), (0x120, 0), (32, 1)] {
        front.set_config(offset, flags, &[value]).unwrap();
        assert_eq!(front.get_config(32, 1, flags, &[0]).unwrap().1, [value], "{offset:#x}");
    }
}
