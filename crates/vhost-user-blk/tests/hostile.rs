//! Front ends that break the rules. Each loses its connection, or does no harm; after each an
//! honest one is served by the same daemon.

mod util;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coblk_vhost_user_blk::VhostUserBlkOptions;
use rustix::fs::{MemfdFlags, memfd_create};
use util::{Client, Op, Server};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;

fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let header = [request, 1, body.len() as u32];
    let header = header.into_iter().flat_map(u32::to_ne_bytes);
    header.chain(body.iter().copied()).collect()
}

/// Whether the daemon hangs up after these bytes.
fn loses_its_connection(server: &Server, bytes: &[u8]) -> bool {
    let mut socket = UnixStream::connect(&server.socket).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(bytes).unwrap();
    // A reset, if it did not read all that was sent.
    match socket.read(&mut [0; 64]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn honest(server: &Server) {
    Client::connect(&server.socket, 1).check(0, 4096, 4096, 77);
}

#[test]
fn messages_that_make_no_sense() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut regions = vec![0; 8 + 32 * 255];
    regions[0] = 255;
    let list = [
        ("an unknown request", message(9999, &[])),
        ("request 0", message(0, &[])),
        ("another version", [1u32, 2, 0].into_iter().flat_map(u32::to_ne_bytes).collect()),
        ("a body of 4 GiB", [1u32, 1, u32::MAX].into_iter().flat_map(u32::to_ne_bytes).collect()),
        ("a body where none may be", message(GET_FEATURES, &[0; 8])),
        ("255 regions", message(SET_MEM_TABLE, &regions)),
        ("regions without files", message(SET_MEM_TABLE, &[&[1, 0, 0, 0][..], &[0; 36]].concat())),
        ("a queue past the last", message(SET_VRING_NUM, &[200, 0, 0, 0, 64, 0, 0, 0])),
        ("a queue of 3", message(SET_VRING_NUM, &[0, 0, 0, 0, 3, 0, 0, 0])),
        ("noise", vec![0xa5; 300]),
    ];
    for (what, bytes) in list {
        assert!(loses_its_connection(&server, &bytes), "{what} is let pass");
        honest(&server);
    }
}

#[test]
fn half_a_message_blocks_nobody() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut half = UnixStream::connect(&server.socket).unwrap();
    half.write_all(&message(SET_VRING_NUM, &[0; 8])[..15]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(half);
    honest(&server);
    // And one that stays: the daemon ends all the same, when the server is dropped.
    let mut half = UnixStream::connect(&server.socket).unwrap();
    half.write_all(&message(GET_FEATURES, &[])[..7]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(server);
}

/// A front end that can say anything, up to the point where it has negotiated.
fn front_end(server: &Server) -> Frontend {
    let mut front = Frontend::connect(&server.socket, 1).unwrap();
    front.set_owner().unwrap();
    let features = front.get_features().unwrap() & !util::guest::RING_PACKED;
    front.set_features(features).unwrap();
    let protocol = front.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
    front.set_protocol_features(protocol & VhostUserProtocolFeatures::all()).unwrap();
    front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    front
}

fn region(at: u64, len: u64, fd: RawFd) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: at,
        memory_size: len,
        userspace_addr: at,
        mmap_offset: 0,
        mmap_handle: fd,
    }
}

fn rings_at(at: u64) -> VringConfigData {
    VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: at,
        avail_ring_addr: at.wrapping_add(4096),
        used_ring_addr: at.wrapping_add(8192),
        log_addr: None,
    }
}

#[test]
fn memory_and_rings_that_are_not_there() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(1 << 16).unwrap();
    let fd = memory.as_raw_fd();
    for (at, len) in [(u64::MAX - 4095, 8192), (0, 0), (0, 1 << 40), (0, u64::MAX)] {
        assert!(
            front_end(&server).add_mem_region(&region(at, len, fd)).is_err(),
            "{at:#x} {len:#x}"
        );
        honest(&server);
    }
    for at in [1 << 17, !0xffff, (1 << 16) - 4096] {
        let mut front = front_end(&server);
        front.add_mem_region(&region(0, 1 << 16, fd)).unwrap();
        front.set_vring_num(0, 64).unwrap();
        front.set_vring_addr(0, &rings_at(at)).unwrap();
        front.set_vring_enable(0, true).unwrap();
        let kick = vmm_eventfd();
        assert!(front.set_vring_kick(0, &kick).is_err(), "rings at {at:#x}");
        drop(front);
        honest(&server);
    }
}

#[test]
fn memory_truncated_under_the_rings() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    for _ in 0..3 {
        let mut client = Client::connect(&server.socket, 1);
        client.check(0, 0, 4096, 5);
        // Data first: the kernel notices, and the request fails.
        client.memory_file.set_len(0).unwrap();
        assert_ne!(client.one(0, Op::Write, 0, 4096), 0);
        drop(client);
        honest(&server);
    }
    let mut front = front_end(&server);
    let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(1 << 16).unwrap();
    front.add_mem_region(&region(0, 1 << 16, memory.as_raw_fd())).unwrap();
    front.set_vring_num(0, 64).unwrap();
    front.set_vring_addr(0, &rings_at(0)).unwrap();
    front.set_vring_enable(0, true).unwrap();
    let kick = vmm_eventfd();
    front.set_vring_kick(0, &kick).unwrap();
    memory.set_len(0).unwrap();
    kick.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(front.get_vring_base(0).is_err(), "the connection is lost");
    drop(front);
    honest(&server);
}

fn vmm_eventfd() -> vmm_sys_util::eventfd::EventFd {
    vmm_sys_util::eventfd::EventFd::new(0).unwrap()
}
