//! Front ends that bring memory late and break the rules, or go in the midst: they lose their connection, and no
//! thread of the daemon waits for them any longer. Nothing is written that they have not brought.

mod util;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coblk_vhost_user_blk::VhostUserBlkOptions;
use util::early::{BEFORE, TO, answers, daemons, leaves, listens, shows, starts, value};
use util::guest::{
    AVAIL, BLOCK, DATA, DEPTH, Guest, READ, SIZE, STATUSES, USED, negotiate_rings_on, taken,
};
use util::late::Late;
use util::pages::PAGE;
use util::{Client, Server, wait_until};
use vhost::VhostBackend;
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const POSTCOPY_ADVISE: u32 = 28;
const POSTCOPY_LISTEN: u32 = 29;
const POSTCOPY_END: u32 = 30;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

/// What these tests look for is the process's own, so that one runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(stream: &UnixStream, request: u32, body: &[u8]) {
    let mut message: Vec<u8> =
        [request, 1, body.len() as u32].into_iter().flat_map(u32::to_ne_bytes).collect();
    message.extend(body);
    (&mut &*stream).write_all(&message).unwrap();
}

/// Whether the daemon hangs up.
fn is_lost(stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match (&mut &*stream).read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// The next front end is served, and the last one has left nothing.
fn honest(server: &Server) {
    Client::connect(&server.socket, 1).check(0, 4096, 4096, 77);
    wait_until("what a front end had is gone", || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let userfaults = links.filter(|link| {
            std::fs::read_link(link.path())
                .is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]")
        });
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let watches = tasks.filter(|task| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| name.trim() == "vhost-user-page")
        });
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        userfaults.count() == 0 && watches.count() == 0 && !maps.contains("memfd:gone")
    });
}

/// A front end that has come so far, and does one thing more.
fn loses(server: &Server, what: &str, rest: impl FnOnce(&mut Frontend, &UnixStream)) {
    let stream = UnixStream::connect(&server.socket).unwrap();
    let mut front = negotiate_rings_on(stream.try_clone().unwrap(), 0, false);
    rest(&mut front, &stream);
    assert!(is_lost(&stream), "{what} is let pass");
    drop((front, stream));
    honest(server);
}

#[test]
fn messages_out_of_order_cost_the_connection() {
    let _alone = alone();
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let guest = Guest::new();
    loses(&server, "LISTEN without ADVISE", |_, stream| say(stream, POSTCOPY_LISTEN, &[]));
    loses(&server, "END without ADVISE", |_, stream| say(stream, POSTCOPY_END, &[]));
    loses(&server, "END without LISTEN", |front, stream| {
        front.postcopy_advise().unwrap();
        say(stream, POSTCOPY_END, &[]);
    });
    loses(&server, "ADVISE again", |front, stream| {
        front.postcopy_advise().unwrap();
        say(stream, POSTCOPY_ADVISE, &[]);
    });
    for again in [POSTCOPY_ADVISE, POSTCOPY_LISTEN] {
        loses(&server, "once more", |front, stream| {
            front.postcopy_advise().unwrap();
            front.postcopy_listen().unwrap();
            say(stream, again, &[]);
        });
    }
    for again in [POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_END] {
        loses(&server, "something after END", |front, stream| {
            front.postcopy_advise().unwrap();
            front.postcopy_listen().unwrap();
            front.postcopy_end().unwrap();
            say(stream, again, &[]);
        });
    }
    loses(&server, "LISTEN with memory", |front, stream| {
        front.add_mem_region(&guest.region()).unwrap();
        front.postcopy_advise().unwrap();
        say(stream, POSTCOPY_LISTEN, &[]);
    });
    loses(&server, "ADVISE that was not negotiated", |front, stream| {
        let without = front.get_protocol_features().unwrap() - VhostUserProtocolFeatures::PAGEFAULT;
        front.set_protocol_features(without).unwrap();
        say(stream, POSTCOPY_ADVISE, &[]);
    });
}

#[test]
fn messages_that_make_no_sense_cost_the_connection() {
    let _alone = alone();
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let guest = Guest::new();
    loses(&server, "ADVISE with a body", |_, stream| say(stream, POSTCOPY_ADVISE, &[0; 8]));
    loses(&server, "LISTEN with a body", |front, stream| {
        front.postcopy_advise().unwrap();
        say(stream, POSTCOPY_LISTEN, &[0; 8]);
    });
    let listening = |front: &mut Frontend| {
        front.postcopy_advise().unwrap();
        front.postcopy_listen().unwrap();
    };
    loses(&server, "END with a body", |front, stream| {
        listening(front);
        say(stream, POSTCOPY_END, &[0; 8]);
    });
    for request in [0, SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG] {
        loses(&server, "an acknowledgement of nothing", |_, stream| say(stream, request, &[0; 8]));
        loses(&server, "a front end that could not take note", |front, stream| {
            listening(front);
            front.add_mem_region(&guest.region()).unwrap();
            say(stream, request, &1u64.to_ne_bytes());
        });
    }
    loses(&server, "an empty table", |_, stream| say(stream, SET_MEM_TABLE, &[]));
    for (request, body) in [(SET_VRING_NUM, &[0, 0, 0, 0, 64, 0, 0, 0][..]), (POSTCOPY_END, &[])] {
        loses(&server, "a message before the acknowledgement", |front, stream| {
            listening(front);
            front.add_mem_region(&guest.region()).unwrap();
            say(stream, request, body);
        });
    }
    // Of a file system whose missing pages the kernel reads from the file.
    let image = File::open(&server.image).unwrap();
    let writable = File::options().read(true).write(true).open(&server.image).unwrap();
    for (what, file, memory_size) in
        [("memory of a file", &writable, 1 << 20), ("memory that is read only", &image, 1 << 20)]
    {
        loses(&server, what, |front, _| {
            listening(front);
            let region = vhost::VhostUserMemoryRegionInfo {
                memory_size,
                mmap_handle: file.as_raw_fd(),
                ..guest.region()
            };
            front.add_mem_region(&region).unwrap_err();
        });
    }
}

/// Memory is acknowledged in all ways that front ends have, and a queue runs.
#[test]
fn each_way_to_acknowledge_is_understood() {
    let _alone = alone();
    let servers = daemons(1);
    let ways = [
        (SET_MEM_TABLE, &[][..]),
        (0, &[0; 8]),
        (SET_MEM_TABLE, &[0; 8]),
        (ADD_MEM_REG, &[0; 8]),
        (REM_MEM_REG, &[0; 8]),
    ];
    for (request, body) in ways {
        let (mut guest, image, base) = leaves(&servers[0], false);
        let (mut front, stream, userfault) = listens(&servers[1], false);
        let other = Guest::new();
        let elsewhere =
            vhost::VhostUserMemoryRegionInfo { guest_phys_addr: 1 << 30, ..other.region() };
        let at = match request {
            ADD_MEM_REG | REM_MEM_REG => {
                front.add_mem_region(&elsewhere).unwrap().unwrap();
                front.remove_mem_region(&elsewhere).unwrap();
                front.add_mem_region(&guest.region()).unwrap().unwrap()
            }
            _ => front.set_mem_table(&[elsewhere, guest.region()]).unwrap().unwrap()[1],
        };
        say(&stream, request, body);
        // Once more does no harm: nothing waits for it.
        say(&stream, request, body);
        let late = Late::start(userfault, image, guest.file.try_clone().unwrap(), at);
        starts(&mut front, &guest, base);
        assert_eq!(answers(&mut guest, &late, false, DEPTH).len(), DEPTH);
        late.bring_all();
        // Answered even if no answer is asked for.
        say(&stream, POSTCOPY_END, &[]);
        let mut answer = [0; 20];
        (&mut &stream).read_exact(&mut answer).unwrap();
        assert_eq!(answer[..], [30, 5, 8, 0, 0].map(u32::to_ne_bytes).concat());
        assert_eq!(guest.one(READ, 5, 0), 0);
    }
    honest(&servers[1]);
}

/// A write whose data does not come, and what else its thread may wait for.
const SLOT: usize = 8;

fn goes_in_the_midst(packed: bool, contexts: usize, place: usize, log: bool) {
    let servers = daemons(contexts);
    let (guest, image, base) = leaves(&servers[0], packed);
    let (mut front, stream, userfault, at) = shows(&servers[1], &guest, packed);
    front.postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG).unwrap();
    let inflight = log.then(|| {
        let (layout, file) =
            front.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, SIZE as u16)).unwrap();
        front.set_inflight_fd(&layout, file.as_raw_fd()).unwrap();
        file
    });
    let late = Late::start(userfault, image, guest.file.try_clone().unwrap(), at);
    let page = place / PAGE as usize;
    late.hold([page]);
    // No answer to the last of them is waited for: it may be that none can be given.
    guest.lay_out(&front, base);
    front.set_vring_call(0, &guest.call).unwrap();
    front.set_vring_kick(0, &guest.kick).unwrap();
    let enable = [0u32, 1].map(u32::to_ne_bytes).concat();
    say(&stream, 18, &enable);
    wait_until("the page is asked for", || late.asked().contains(&page));
    // Others may go on meanwhile.
    std::thread::sleep(Duration::from_millis(5));
    // The front end's own descriptors of the userfaultfd stay.
    drop((front, stream));
    let begin = Instant::now();
    Client::connect(&servers[1].socket, 1).check(0, 4096, 4096, 77);
    assert!(begin.elapsed() < Duration::from_secs(5), "the next front end has waited");
    drop(late);
    honest(&servers[1]);
    if let Some(file) = inflight {
        assert!(taken(&file).contains(&(SLOT * 3)), "it is in flight: {:?}", taken(&file));
    }
    let disk = File::open(&servers[0].image).unwrap();
    for slot in (0..DEPTH).step_by(2) {
        let mut data = [0; BLOCK];
        disk.read_exact_at(&mut data, (TO + slot as u64) * BLOCK as u64).unwrap();
        let is_held = place == DATA + slot * BLOCK;
        let may_be = [BEFORE, if is_held { BEFORE } else { value(slot) }];
        assert!(may_be.iter().any(|it| data == [*it; BLOCK]), "slot {slot} has {}", data[0]);
    }
}

#[test]
fn a_front_end_goes_while_its_memory_comes() {
    let _alone = alone();
    for packed in [false, true] {
        // A header, a status, the ring, data to write and data to read.
        let places = [0, AVAIL, USED, 12288, STATUSES, DATA + SLOT * BLOCK, DATA + BLOCK];
        for place in places {
            goes_in_the_midst(packed, usize::from(packed), place, false);
        }
    }
    goes_in_the_midst(false, 1, DATA + SLOT * BLOCK, true);
}

#[test]
fn an_export_ends_while_memory_comes() {
    let _alone = alone();
    let servers = daemons(1);
    let (guest, image, base) = leaves(&servers[0], false);
    let (mut front, _stream, userfault, at) = shows(&servers[1], &guest, false);
    front.postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG).unwrap();
    let late = Late::start(userfault, image, guest.file.try_clone().unwrap(), at);
    late.hold([DATA / PAGE as usize]);
    starts(&mut front, &guest, base);
    wait_until("the page is asked for", || late.asked().contains(&(DATA / PAGE as usize)));
    let [first, second] = servers;
    let begin = Instant::now();
    drop(second);
    assert!(begin.elapsed() < Duration::from_secs(5), "it has waited for the page");
    drop((front, late));
    honest(&first);
}

/// The front end may wait for an answer while a thread here waits for a page: who brings pages must be another thread.
#[test]
fn a_queue_stops_when_its_pages_have_come() {
    let _alone = alone();
    for packed in [false, true] {
        let servers = daemons(1);
        let (mut guest, image, base) = leaves(&servers[0], packed);
        let (mut front, stream, userfault, at) = shows(&servers[1], &guest, packed);
        front.postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG).unwrap();
        let late = Late::start(userfault, image, guest.file.try_clone().unwrap(), at);
        let page = (DATA + SLOT * BLOCK) / PAGE as usize;
        late.hold([page]);
        starts(&mut front, &guest, base);
        wait_until("the page is asked for", || late.asked().contains(&page));
        std::thread::scope(|scope| {
            let stop = scope.spawn(|| front.get_vring_base(0).unwrap());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!stop.is_finished(), "it stops with a request in flight");
            late.release();
            stop.join().unwrap();
        });
        assert_eq!(guest.wait_for(DEPTH).len(), DEPTH);
        front.reset_owner().unwrap();
        drop((front, stream, late));
        honest(&servers[1]);
    }
}
