//! Memory that comes, goes and is replaced between requests: a region that the front end has taken back
//! is not touched any more, wherever the device remembers it.

mod util;

use std::os::fd::AsRawFd;

use coblk_vhost_user_blk::VhostUserBlkOptions;
use util::Server;
use util::guest::{BLOCK, Guest, READ, WRITE, negotiate};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

/// Where the region is that is replaced.
const PLACE: u64 = 1 << 30;
const OK: u8 = 0;
const IOERR: u8 = 1;

/// Memory for the region, all bytes of which are `value`.
struct Memory {
    guest: Guest,
    bytes: usize,
}

impl Memory {
    fn new(bytes: usize, value: u8) -> Memory {
        let guest = Guest::with_memory(bytes);
        guest.store(0, &vec![value; bytes]);
        Memory { guest, bytes }
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: PLACE,
            memory_size: self.bytes as u64,
            userspace_addr: PLACE,
            mmap_offset: 0,
            mmap_handle: self.guest.file.as_raw_fd(),
        }
    }

    /// The first block, which has the same byte everywhere.
    fn block(&self) -> u8 {
        let mut block = vec![0; BLOCK];
        self.guest.load_bytes(0, &mut block);
        assert!(block.iter().all(|byte| *byte == block[0]));
        block[0]
    }
}

/// One request whose data is the first block of the region.
fn one(guest: &mut Guest, kind: u32, block: u64) -> u8 {
    guest.submit_at(0, kind, block * BLOCK as u64 / 512, PLACE, BLOCK);
    guest.kick.write(1).unwrap();
    guest.wait_for(1)[0].1
}

/// Replaces `old` by `new` with `replace`, in the middle of requests.
fn replaced(bytes: usize, replace: impl Fn(&mut Frontend, &mut Guest, &Memory, &Memory)) {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut front = negotiate(&server.socket, 0);
    let mut guest = Guest::new();
    guest.start(&mut front);
    for (block, value) in [(0, 7), (1, 8)] {
        assert_eq!(guest.one(WRITE, block, value), OK);
    }
    let (old, new) = (Memory::new(bytes, 1), Memory::new(bytes, 2));
    front.add_mem_region(&old.region()).unwrap();
    assert_eq!(one(&mut guest, READ, 0), OK);
    assert_eq!((old.block(), new.block()), (7, 2));
    replace(&mut front, &mut guest, &old, &new);
    assert_eq!((old.block(), new.block()), (7, 2), "nothing is read into either meanwhile");
    // A write takes what the new region has, and a read goes there.
    assert_eq!(one(&mut guest, WRITE, 2), OK);
    assert_eq!(guest.one(READ, 2, 0), OK);
    assert_eq!(guest.data(0), 2);
    assert_eq!(one(&mut guest, READ, 1), OK);
    assert_eq!((old.block(), new.block()), (7, 8));
}

/// Smaller and larger than the region of the rings: a device may well remember the largest.
const SIZES: [usize; 2] = [BLOCK, 1 << 20];

#[test]
fn a_region_that_is_removed_and_added_anew_is_not_the_old_one() {
    for bytes in SIZES {
        replaced(bytes, |front, guest, old, new| {
            front.remove_mem_region(&old.region()).unwrap();
            assert_eq!(one(guest, READ, 1), IOERR, "there is no memory");
            assert_eq!(one(guest, WRITE, 1), IOERR);
            front.add_mem_region(&new.region()).unwrap();
        });
    }
}

#[test]
fn a_region_of_a_new_table_is_not_the_old_one() {
    for bytes in SIZES {
        replaced(bytes, |front, guest, _, new| {
            front.set_mem_table(&[guest.region()]).unwrap();
            assert_eq!(one(guest, READ, 1), IOERR, "there is no memory");
            front.set_mem_table(&[guest.region(), new.region()]).unwrap();
        });
        replaced(bytes, |front, guest, _, new| {
            front.set_mem_table(&[guest.region(), new.region()]).unwrap();
        });
    }
}
