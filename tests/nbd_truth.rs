//! What the NBD server tells its clients is true: a flush has reached the medium.
#![forbid(unsafe_code)]

use std::path::Path;

use coblk::BlockNode;
use coblk::drivers::{Engine, File};
use coblk_tests::nbd::{SIZE, Served};
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
