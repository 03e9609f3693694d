//! A guest runs here before its memory has come: a front end of the tests brings each page when it is asked for.

mod util;

use std::fs::File;
use std::os::unix::fs::FileExt;

use util::Server;
use util::early::{FROM, TO, answers, daemons, has_nothing, leaves, shows, starts, value};
use util::guest::{BLOCK, DATA, DEPTH, Guest, MEMORY_BYTES, READ, WRITE};
use util::late::Late;
use util::pages::PAGE;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;

fn check_all(guest: &Guest, server: &Server, answers: &[(usize, u8)]) {
    assert_eq!(answers.len(), DEPTH);
    let image = File::open(&server.image).unwrap();
    for &(slot, status) in answers {
        assert_eq!(status, 0, "slot {slot}");
        let mut data = [0; BLOCK];
        match slot % 2 {
            0 => {
                image.read_exact_at(&mut data, (TO + slot as u64) * BLOCK as u64).unwrap();
            }
            _ => guest.load_bytes(DATA + slot * BLOCK, &mut data),
        }
        assert!(data == [value(slot); BLOCK], "slot {slot}: {}", data[0]);
    }
}

/// All that a guest does while its memory comes, and after.
fn comes_before_its_memory(packed: bool, contexts: usize) {
    let servers = daemons(contexts);
    let (mut guest, image, base) = leaves(&servers[0], packed);
    let (mut front, _stream, userfault, at) = shows(&servers[1], &guest, packed);
    assert!(has_nothing(&guest.file), "showing memory makes none");
    front.postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG).unwrap();
    let late = Late::start(userfault, image.clone(), guest.file.try_clone().unwrap(), at);
    starts(&mut front, &guest, base);
    let done = answers(&mut guest, &late, packed, DEPTH);
    check_all(&guest, &servers[0], &done);
    let pages: Vec<usize> = late.asked().into_iter().collect();
    let all: Vec<usize> = (0..MEMORY_BYTES / PAGE as usize).collect();
    assert_eq!(pages, all, "each page was missing, and was asked for");

    // Memory is added under the queue, which waits until the front end has taken note of it.
    let more = Guest::new();
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 1 << 30,
        userspace_addr: 1 << 30,
        ..more.region()
    };
    let at = front.add_mem_region(&region).unwrap().unwrap();
    let late_too = {
        let userfault = late.userfault();
        Late::start(userfault, image, more.file.try_clone().unwrap(), at)
    };
    guest.submit_at(0, READ, FROM * (BLOCK as u64 / 512), (1 << 30) + PAGE, BLOCK);
    guest.kick.write(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(
        guest.reap().is_empty() && has_nothing(&more.file),
        "memory that the front end has not noted"
    );
    drop(late);
    front.postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG).unwrap();
    assert_eq!(guest.wait_for(1), [(0, 0)]);
    assert_eq!(late_too.asked().into_iter().collect::<Vec<_>>(), [1]);
    let mut data = [0; BLOCK];
    more.load_bytes(PAGE as usize, &mut data);
    assert!(data == [value(0); BLOCK]);

    // All of it has come; the front end is asked no more.
    late_too.bring_all();
    front.postcopy_end().unwrap();
    assert_eq!(guest.one(WRITE, 5, 0x3c), 0);
    assert_eq!(late_too.asked().len(), 1);
    drop(late_too);
    drop(front);
}

#[test]
fn a_guest_comes_before_its_memory() {
    comes_before_its_memory(false, 0);
}

#[test]
fn a_guest_with_a_packed_queue_comes_before_its_memory() {
    comes_before_its_memory(true, 1);
}
