//! What the NBD server tells its clients is true: a flush has reached the medium, a
//! write that found no room has failed, and so has a read that did.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use coblk::BlockNode;
use coblk::block::RequestKind;
use coblk::block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk::drivers::{Engine, File};
use coblk_tests::nbd::{MAGIC, SIZE, Served, choose, hogs, request};
use coblk_tests::{sandbox, tools};

/// How many of each kind a client asks for.
const COUNT: usize = 7;

fn writes_and_flushes(dir: &Path) {
    let served = Served::with_node(tools::text(dir), |dir| {
        let image = dir.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        // A ring's requests are no system calls.
        let file = File::options().engine(Engine::Threads).open(&image).unwrap();
        BlockNode::new("disk0", file)
    });
    let uri = served.uri("disk");
    let mut args = vec!["-f".to_owned(), "raw".to_owned()];
    for round in 0..COUNT {
        args.extend(["-c".to_owned(), format!("write {}k 4k", round * 4)]);
        args.extend(["-c".to_owned(), "flush".to_owned()]);
    }
    for round in 0..COUNT {
        args.extend(["-c".to_owned(), format!("write -f {}k 4k", 1024 + round * 4)]);
    }
    // Nothing was written since: these need no system call.
    args.extend(["-c", "flush", "-c", "flush", &uri].map(str::to_owned));
    let said = tools::run("qemu-io", args);
    assert_eq!(said.matches("wrote 4096/4096").count(), 2 * COUNT, "{said}");
}

#[test]
fn each_flush_and_durable_write_of_a_client_is_an_fdatasync() {
    let test = "each_flush_and_durable_write_of_a_client_is_an_fdatasync";
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    sandbox::traced(test, parent, "fdatasync,fsync", writes_and_flushes, |log| {
        let synced = log.lines().filter(|line| line.contains("disk.img"));
        assert_eq!(synced.count(), 2 * COUNT, "{log}");
    });
}

fn durable_write_in_pieces(dir: &Path) {
    let served = Served::with_node(tools::text(dir), |dir| {
        let image = dir.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let file = File::options().engine(Engine::Threads).open(&image).unwrap();
        BlockNode::new("disk0", file)
    });
    let _hogs = hogs(&served, 6, 32 * MIB);
    let mut client = choose(&served.socket());
    let len = 32 * MIB as usize;
    // FLAG_FUA, WRITE.
    client.write_all(&request(MAGIC, 1, 1, 0, len as u32)).unwrap();
    client.write_all(&vec![7; len]).unwrap();
    let mut reply = [1; 16];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

#[test]
fn a_durable_write_in_pieces_is_flushed_once_when_all_is_there() {
    let test = "a_durable_write_in_pieces_is_flushed_once_when_all_is_there";
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let calls = "pwrite64,pwritev,pwritev2,fdatasync,fsync";
    sandbox::traced(test, parent, calls, durable_write_in_pieces, |log| {
        let calls: Vec<&str> = log.lines().filter(|line| line.contains("disk.img")).collect();
        let is_flush = |line: &&str| line.contains("sync(");
        assert!(calls.len() > 32, "it was not in pieces: {log}");
        assert!(calls.last().is_some_and(is_flush), "the last is no flush: {log}");
        assert_eq!(calls.iter().copied().filter(|line| is_flush(line)).count(), 1, "{log}");
    });
}

const MIB: u64 = 1 << 20;

#[test]
fn a_client_is_told_that_the_medium_is_full() {
    let test = "a_client_is_told_that_the_medium_is_full";
    sandbox::on_small_file_system(test, 8 * MIB, |dir| {
        let served = Served::new(tools::text(dir));
        let ballast = dir.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[0xaa; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let uri = served.uri("disk");
        let args = ["-f", "raw", "-c", "write 1M 64k", "-c", "read -P 0 1M 64k", &uri];
        let output = tools::output("qemu-io", args);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("write failed: No space left on device"), "{said}");
        assert!(said.contains("read 65536/65536"), "the connection is of no use: {said}");
        std::fs::remove_file(&ballast).unwrap();
        drop(file);
        served.check();
    });
}

/// A client in Python: each failure has its errno, and the connection is good after it.
const LIBNBD: &str = r"
import errno, sys
try:
    import nbd
except ImportError:
    sys.exit('this test needs the module nbd: apt-get install python3-libnbd')

h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(sys.argv[1])
assert h.get_protocol() == 'newstyle-fixed'
assert h.get_structured_replies_negotiated()
assert h.get_size() == 64 << 20 and not h.is_read_only()
assert h.can_fua() and h.can_df() and h.can_multi_conn() and h.can_fast_zero()

h.pwrite(b'a' * 8192, 512, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 512) == b'a' * 8192

# Structured reads, at an offset that the export cannot read.
for flags in (0, nbd.CMD_FLAG_DF):
    chunks = []
    try:
        h.pread_structured(4096, 1 << 20, lambda *chunk: chunks.append(chunk[2]), flags)
        sys.exit('the read succeeded')
    except nbd.Error as error:
        assert error.errnum == errno.EIO, error
    assert nbd.READ_DATA not in chunks, chunks
    assert h.pread(8192, 512) == b'a' * 8192

extents = []
h.block_status(64 << 20, 0, lambda name, offset, entries, error: extents.extend(entries))
assert sum(extents[0::2]) == 64 << 20 and extents[1] == 0 and 3 in extents[1::2], extents

h.shutdown()
print('all is well')
";

#[test]
fn libnbd_is_told_which_reads_fail() {
    let rules = Rules::new(1);
    rules.add(Rule::fail(libc::EIO).on(RequestKind::Read).within(MIB..2 * MIB));
    let served = Served::with_node(env!("CARGO_TARGET_TMPDIR"), |dir| {
        let image = dir.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let file = BlockNode::new("file0", File::options().open(&image).unwrap());
        BlockNode::new("disk0", BlkDebug::new(file, rules))
    });
    // The system's own Python, for which Debian has the module.
    let said = tools::run("/usr/bin/python3", ["-c", LIBNBD, &served.uri("disk")]);
    assert!(said.contains("all is well"), "{said}");
}
