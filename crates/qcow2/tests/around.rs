//! What first writes do besides: what lies around them is read from the backing file, and the file grows.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut, PoolShare};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockDriver, BlockNode, ReadFlags, Truncate, WriteFlags};
use serde_json::json;

use crate::util::Stand;

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

/// A file in memory, and the lengths that it was given.
struct Host(Mutex<Vec<u8>>, Arc<Mutex<Vec<u64>>>);

impl BlockDriver for Host {
    fn format_name(&self) -> &'static str {
        "host"
    }

    fn length(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        let (offset, bytes) = (offset as usize, target.len());
        target.copy_from(0, &self.0.lock().unwrap()[offset..offset + bytes]);
        Ok(())
    }

    fn co_pwritev(
        &self,
        _: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        let (offset, bytes) = (offset as usize, source.len());
        source.copy_to(0, &mut self.0.lock().unwrap()[offset..offset + bytes]);
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, _: Truncate) -> io::Result<()> {
        // Others come meanwhile.
        PoolShare::once(co, || ());
        self.1.lock().unwrap().push(length);
        self.0.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }
}

#[test]
fn q197_writes_that_need_the_same_space_make_it_once() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "16M");
    let lengths = Arc::<Mutex<Vec<u64>>>::default();
    let host = Host(Mutex::new(std::fs::read(image).unwrap()), Arc::clone(&lengths));
    stand.blockdevs.adopt(BlockNode::new("host", host)).unwrap();
    let options = json!({"driver": "qcow2", "node-name": "disk", "file": "host"});
    let options = NodeOptions::from_value(options).unwrap();
    let node = stand.blockdevs.open(&stand.ctx, options).unwrap();
    let backend = BackendOptions::new("writer").open(&stand.ctx, node).unwrap();
    for cluster in 0..64 {
        let (offset, data) = (cluster * CLUSTER as u64, vec![1; 4096]);
        backend.aio_pwritev(&stand.ctx, offset, data, WriteFlags::empty(), |_, result, _| {
            result.unwrap();
        });
    }
    stand.ctx.run_until(|| backend.in_flight() == 0);
    let lengths = std::mem::take(&mut *lengths.lock().unwrap());
    assert!(lengths.is_sorted_by(|one, next| one < next), "{lengths:?}");
    // By a MiB each.
    assert!((4..=6).contains(&lengths.len()), "{lengths:?}");
    drop(backend);
    stand.blockdevs.close(&stand.ctx, "disk").unwrap();
    stand.end();
}
