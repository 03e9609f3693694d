//! Disks over vhost-user: the driver of libblkio uses them.

mod util;
#[path = "../../vhost-user-blk/tests/util/mod.rs"]
mod vhost;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use util::{Place, SIZE, wait_until};
use vhost::guest::{BLOCK, DATA, GET_ID, Guest, negotiate};
use vhost::{Client, Op};

const DISK: &str = "--blockdev file,node-name=disk,filename=@/disk.img";

#[test]
fn disks_on_one_thread_and_on_several() {
    for (threads, queues) in [
        ("", 1),
        ("--object iothread,id=t0", 2),
        ("--object iothread,id=t0 --object iothread,id=t1", 3),
    ] {
        let place = Place::new();
        let on = match threads.matches("iothread").count() {
            0 => "",
            1 => ",iothread=t0,fixed-iothread=on",
            _ => ",iothread.0=t0,iothread.1=t1",
        };
        let export = format!(
            "--export vhost-user-blk,id=v0,node-name=disk,writable=on,num-queues={queues},\
             logical-block-size=4k,addr.type=unix,addr.path=@/vhost.sock{on}"
        );
        let daemon = place.start(&format!("{threads} {DISK} {export}"));
        let mut client = Client::connect(&place.path("vhost.sock"), queues);
        let config = client.transport.get_config().unwrap();
        assert_eq!(u64::from(config.capacity), SIZE / 512);
        assert_eq!(
            (u32::from(config.blk_size), u16::from(config.num_queues)),
            (4096, queues as u16)
        );
        for queue in 0..queues {
            client.check(queue, queue as u64 * 65536, 65536, queue as u8);
        }
        assert_eq!(client.one(0, Op::Flush, 0, 0), 0);
        daemon.stop(Signal::TERM);
        assert!(!place.path("vhost.sock").exists());
        let mut block = [0; 4096];
        let image = std::fs::File::open(place.image()).unwrap();
        image.read_exact_at(&mut block, 0).unwrap();
        assert_eq!(block[1], 31);
    }
}

/// Two disks of a guest are told apart by what they call themselves.
#[test]
fn a_disk_has_a_serial_number_of_its_own() {
    let place = Place::new();
    for (options, serial) in [
        ("id=v0", "v0"),
        ("id=a-name-of-more-than-twenty-bytes", "a-name-of-more-than-"),
        ("id=v0,serial=WD-1234", "WD-1234"),
    ] {
        let export = format!(
            "--export vhost-user-blk,{options},node-name=disk,addr.type=unix,addr.path=@/vhost.sock"
        );
        let daemon = place.start(&format!("{DISK} {export}"));
        let mut front = negotiate(&place.path("vhost.sock"), 0);
        let mut guest = Guest::new();
        guest.start(&mut front);
        assert_eq!(guest.one(GET_ID, 0, 0xff), 0);
        let mut answer = [0; BLOCK];
        guest.load_bytes(DATA, &mut answer);
        let mut expected = [0; 20];
        expected[..serial.len()].copy_from_slice(serial.as_bytes());
        assert_eq!(answer[..20], expected, "{options}");
        drop(front);
        daemon.stop(Signal::TERM);
    }
}

#[test]
fn a_read_only_disk_on_an_inherited_socket_is_not_written_to() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("vhost.sock")).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
    let export = format!("--export vhost-user-blk,id=v0,node-name=disk,addr.type=fd,addr.str={fd}");
    let daemon = place.start(&format!("{DISK} {export}"));
    let mut client = Client::connect(&place.path("vhost.sock"), 1);
    assert_eq!(client.one(0, Op::Read, 0, 4096), 0);
    assert_ne!(client.one(0, Op::Write, 0, 4096), 0);
    daemon.stop(Signal::TERM);
}

/// What one client does costs that client's connection only.
#[test]
fn clients_that_break_the_rules_lose_their_connections_and_no_others() {
    let place = Place::new();
    let vhost = "--export vhost-user-blk,id=v0,node-name=disk,writable=on,\
                 addr.type=unix,addr.path=@/vhost.sock";
    let daemon = place.start(&format!("{} {vhost}", util::NBD));
    for round in 0..8u8 {
        for socket in [place.socket(), place.path("vhost.sock")] {
            let mut hostile = UnixStream::connect(socket).unwrap();
            // Enough to be more than a header of either protocol; it may be refused half-way.
            let _ = hostile.write_all(&[round.wrapping_mul(37); 4096]);
        }
        place.check();
        Client::connect(&place.path("vhost.sock"), 1).check(0, 1 << 20, 4096, round);
    }
    daemon.stop(Signal::TERM);
}

/// Requests that an error has stopped do not keep the daemon from ending.
#[test]
fn c85_a_disk_with_held_requests_does_not_hold_up_the_end() {
    let place = Place::new();
    let bad = "--blockdev blkdebug,node-name=bad,image=disk,inject-error.0.iotype=write";
    let export = "--object iothread,id=t0 --export vhost-user-blk,id=v0,node-name=bad,writable=on,\
                  werror=stop,iothread=t0,addr.type=unix,addr.path=@/vhost.sock";
    let daemon = place.start(&format!("{DISK} {bad} {export} --trace block_io_error,file=@/log"));
    let mut client = Client::connect(&place.path("vhost.sock"), 1);
    client.submit(0, Op::Write, 0, 4096, 0, 1);
    client.complete(0, 0);
    let log = place.path("log");
    wait_until("the request is held", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("block_io_error"))
    });
    daemon.stop(Signal::TERM);
}
