//! System calls of a server fail: its client is told of each, and of which, and goes on.
#![forbid(unsafe_code)]

use coblk::BlockNode;
use coblk::drivers::{Engine, File};
use coblk_tests::nbd::{SIZE, Served};
use coblk_tests::{sandbox, tools};

/// A client in Python, on one connection to the end. Prints for each kind of request how many failed,
/// and with what.
const CLIENT: &str = r"
import collections, errno, sys
import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[1])
told = collections.Counter()

def succeeds(what, request):
    try:
        request()
        return True
    except nbd.Error as error:
        told[what, errno.errorcode[error.errnum]] += 1
        return False

held = {}
for block in range(40):
    data = bytes([block + 1]) * 4096
    if succeeds('write', lambda: h.pwrite(data, block * 4096)):
        held[block * 4096] = data

def read(offset):
    assert h.pread(4096, offset) == held[offset], offset

for offset in held:
    succeeds('read', lambda: read(offset))

flushed = 0
while succeeds('flush', h.flush):
    flushed += 1
    while not succeeds('write', lambda: h.pwrite(b'x' * 512, 1 << 20)):
        pass
for again in range(3):
    assert not succeeds('flush', h.flush), 'a flush after one that failed'

# Nothing of that is the end of the connection.
for offset in held:
    while not succeeds('read', lambda: read(offset)):
        pass
held[1 << 20] = b'y' * 4096
while not succeeds('write', lambda: h.pwrite(held[1 << 20], 1 << 20)):
    pass
while not succeeds('read', lambda: read(1 << 20)):
    pass
h.shutdown()
for (what, error), count in sorted(told.items()):
    print(what, error, count)
print('succeeded', flushed)
";

#[test]
fn a_client_is_told_of_each_call_that_fails() {
    let faults = [
        "pwritev:error=ENOSPC:when=3+5",
        // Reads in place are made again by a worker, whatever it was that failed.
        "preadv2:error=EIO",
        "preadv:error=EIO:when=2+4",
        "fdatasync:error=EIO:when=3",
    ];
    sandbox::with_faults_on_file(
        "a_client_is_told_of_each_call_that_fails",
        env!("CARGO_TARGET_TMPDIR").as_ref(),
        ("disk.img", SIZE),
        &faults,
        |dir| {
            let served = Served::with_node(tools::text(dir), |_| {
                let file = File::options().engine(Engine::Threads).open(dir.join("disk.img"));
                BlockNode::new("disk0", file.unwrap())
            });
            tools::run("/usr/bin/python3", ["-c", CLIENT, &served.uri("disk")])
        },
        check,
    );
}

/// What the client was told is what has failed, no more and no less.
fn check(told: &str, log: &str) {
    let calls = |call: &str, injected| {
        let call = format!(" {call}(");
        let of_kind = log.lines().filter(|line| line.contains(&call));
        of_kind.filter(|line| line.contains("(INJECTED)") == injected).count()
    };
    let expected = format!(
        "flush EIO 4\nread EIO {}\nwrite ENOSPC {}\nsucceeded {}\n",
        calls("preadv", true),
        calls("pwritev", true),
        calls("fdatasync", false),
    );
    assert_eq!(told, expected, "{log}");
    assert_eq!(calls("fdatasync", true), 1);
    assert!(calls("pwritev", true) > 4 && calls("preadv", true) > 4, "{log}");
}
