//! What lies around a write, which is read from the backing file: how often, and what happens if that fails.

mod util;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, BlockNode, ReadFlags, WriteFlags};
use serde_json::json;
use util::Stand;

const LENGTH: u64 = 1 << 20;
const CLUSTER: usize = 64 << 10;

/// What cannot be read.
const BAD: Range<u64> = 2048..3072;

/// A backing file that tells what was read.
struct Base(Arc<Mutex<Vec<Range<u64>>>>);

impl BlockDriver for Base {
    fn format_name(&self) -> &'static str {
        "base"
    }

    fn length(&self) -> u64 {
        LENGTH
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        let range = offset..offset + target.len() as u64;
        self.0.lock().unwrap().push(range.clone());
        if range.start < BAD.end && BAD.start < range.end {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        target.fill_from(0, 0xba);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn q197_head_and_tail_are_read_together() {
    let stand = Stand::new();
    let reads = Arc::<Mutex<Vec<Range<u64>>>>::default();
    let base = BlockNode::new("base", Base(Arc::clone(&reads)));
    stand.blockdevs.adopt(base).unwrap();
    let image = stand.create("image.qcow2", "", "1M");
    let opened = stand.open_writable(&image, json!({"backing": "base"}));
    let taken = || std::mem::take(&mut *reads.lock().unwrap());
    let cluster = |number: u64, from: u64, to: u64| {
        let start = number * CLUSTER as u64;
        start + from..start + to
    };
    // What is between the two cannot be read, and the write does not need it.
    opened.write(2048, &[1; 1024]).unwrap();
    let (head, tail) = (cluster(0, 0, 2048), cluster(0, 3072, 65536));
    assert_eq!(taken(), [cluster(0, 0, 65536), head, tail]);
    let mut expected = vec![0xba; CLUSTER];
    expected[2048..3072].fill(1);
    assert_eq!(opened.read(0, CLUSTER).unwrap(), expected);
    // Here it can.
    opened.write(4 * CLUSTER as u64 + 1024, &[2; 512]).unwrap();
    assert_eq!(taken(), [cluster(4, 0, 65536)]);
    // There is no head, and then head and tail are far from each other.
    opened.write(2 * CLUSTER as u64, &[3; 40 << 10]).unwrap();
    assert_eq!(taken(), [cluster(2, 40 << 10, 65536)]);
    opened.write(5 * CLUSTER as u64 + 1024, &[4; 40 << 10]).unwrap();
    let (head, tail) = (cluster(5, 0, 1024), cluster(5, 41 << 10, 65536));
    assert_eq!(taken(), [head, tail]);
    opened.close();
    stand.end();
}
