//! The driver of libblkio uses an export.

mod util;

use std::os::unix::fs::FileExt;

use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use util::{Client, DISK_BYTES, Op, Server};
use vm_memory::{Bytes, VolatileMemory};

fn with_queues(num_queues: u16) -> VhostUserBlkOptions {
    let device = VirtioBlkConfig::default().num_queues(num_queues);
    VhostUserBlkOptions::new(device)
}

#[test]
fn what_is_written_is_read_and_is_in_the_image() {
    let server = Server::start(with_queues(1), 0);
    let mut client = Client::connect(&server.socket, 1);
    for (offset, len, seed) in [(0, 512, 1), (4096, 65536, 2), (DISK_BYTES - 512, 512, 3)] {
        client.check(0, offset, len, seed);
    }
    assert_eq!(client.one(0, Op::Flush, 0, 0), 0);
    let mut last = [0; 512];
    std::fs::File::open(&server.image).unwrap().read_exact_at(&mut last, DISK_BYTES - 512).unwrap();
    assert_eq!(last[1], 31 ^ 3);
    assert_eq!(client.one(0, Op::WriteZeroes, DISK_BYTES - 512, 512), 0);
    assert_eq!(client.one(0, Op::Discard, 4096, 4096), 0);
    assert_eq!(client.one(0, Op::Read, DISK_BYTES - 512, 512), 0);
    assert_eq!(client.memory.get_slice(0, 8).unwrap().read_obj::<u64>(0).unwrap(), 0);
    assert_ne!(client.one(0, Op::Read, DISK_BYTES, 512), 0, "beyond the end");
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let server = Server::start(with_queues(3), 0);
    let client = Client::connect(&server.socket, 3);
    let config = client.transport.get_config().unwrap();
    assert_eq!(u64::from(config.capacity), DISK_BYTES / 512);
    assert_eq!((u16::from(config.num_queues), config.writeback), (3, 1));
    // Segments fit the queues of 128 that front ends like.
    assert_eq!((u32::from(config.size_max), u32::from(config.seg_max)), (0, 126));
    assert_eq!((u32::from(config.blk_size), config.physical_block_exp), (512, 0));
    let discard = (config.max_discard_sectors, config.max_discard_seg);
    let zeroes = (config.max_write_zeroes_sectors, config.max_write_zeroes_seg);
    for (sectors, ranges) in [discard, zeroes] {
        assert_eq!((u32::from(sectors), u32::from(ranges)), (4_194_303, 16));
    }
    assert_eq!(u32::from(config.discard_sector_alignment), 1);
    assert_eq!(config.write_zeroes_may_unmap, 1);
}

#[test]
fn many_requests_on_queues_of_several_contexts() {
    const QUEUES: usize = 3;
    const DEPTH: usize = 16;
    const LEN: usize = 4096;
    let server = Server::start(with_queues(QUEUES as u16), 2);
    let mut client = Client::connect(&server.socket, QUEUES);
    for round in 0..64u64 {
        for queue in 0..QUEUES {
            for at in 0..DEPTH {
                let slot = queue * DEPTH + at;
                let block = (round * (QUEUES * DEPTH) as u64 + slot as u64) % (DISK_BYTES / 4096);
                let bytes = vec![(block ^ round) as u8; LEN];
                client.memory.get_slice(slot * LEN, LEN).unwrap().write_slice(&bytes, 0).unwrap();
                client.submit(queue, Op::Write, block * 4096, LEN, slot * LEN, slot);
            }
        }
        for queue in 0..QUEUES {
            let mut done = client.complete(queue, DEPTH);
            done.sort_unstable();
            let all = (0..DEPTH).map(|at| (queue * DEPTH + at, 0)).collect::<Vec<_>>();
            assert_eq!(done, all);
        }
        let image = std::fs::read(&server.image).unwrap();
        let first = (round * (QUEUES * DEPTH) as u64) % (DISK_BYTES / 4096);
        assert_eq!(image[first as usize * 4096], (first ^ round) as u8);
    }
}

#[test]
fn one_front_end_after_the_other() {
    let server = Server::start(with_queues(1), 0);
    for seed in 0..20 {
        Client::connect(&server.socket, 1).check(0, 8192, 4096, seed);
    }
}
