//! Every request through the guest driver, against the null and the file driver and a disk that
//! logs; merging; and what an error or a panic below does to the requests around it.

mod util;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::AioContext;
use coblk_block::drivers::{File, Null};
use coblk_block::{BlockBackend, BlockNode};
use coblk_virtio_blk::guest::{GuestRequest, Machine, MachineBuilder, QueueFull, QueueOptions};
use coblk_virtio_blk::{
    BlkStatus, DirtyLog, Interrupt, QueueLog, VirtioBlkConfig, VirtqueueLayout, feature,
};
use util::{AVAIL, DESC, RAW_SIZE, RawGuest, SCRATCH, Seen, TestDisk, backend, settle};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ seed).collect()
}

/// All ways a guest can talk to the device.
fn all_builders() -> Vec<(&'static str, MachineBuilder)> {
    let indirect = QueueOptions { indirect_segments: 16, ..Default::default() };
    let small = QueueOptions { size: 4, ..Default::default() };
    let unmerged = VirtioBlkConfig::default().merge_requests(false);
    vec![
        ("event_idx", Machine::builder()),
        ("flags", Machine::builder().without_features(feature::EVENT_IDX)),
        ("indirect", Machine::builder().queue(indirect)),
        ("tiny queue", Machine::builder().queue(small)),
        ("unmerged", Machine::builder().config(unmerged)),
    ]
}

#[test]
fn data_goes_to_a_file_and_comes_back() {
    for (name, builder) in all_builders() {
        let ctx = AioContext::for_test().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let node = BlockNode::new("disk0", File::options().open(file.path()).unwrap());
        let mut machine = builder.build(&ctx, BlockBackend::new(&ctx, "drive", node)).unwrap();
        let data = pattern(1 << 20, 1);
        assert_eq!(machine.write(&ctx, 1000, &data), BlkStatus::Ok, "{name}");
        assert_eq!(machine.flush(&ctx), BlkStatus::Ok);
        let mut back = vec![0; 1 << 20];
        assert_eq!(machine.read(&ctx, 1000, &mut back), BlkStatus::Ok);
        assert!(back == data, "{name}");
        let on_disk = std::fs::read(file.path()).unwrap();
        assert!(on_disk[1000 * 512..][..1 << 20] == data, "{name}");

        let zeroes = GuestRequest::WriteZeroes { sector: 1008, sectors: 16, unmap: true };
        assert_eq!(machine.call(&ctx, zeroes), BlkStatus::Ok);
        let discard = GuestRequest::Discard { sector: 0, sectors: 16 };
        assert_eq!(machine.call(&ctx, discard), BlkStatus::Ok);
        let mut back = vec![1; 32 * 512];
        assert_eq!(machine.read(&ctx, 1000, &mut back), BlkStatus::Ok);
        assert_eq!(back[..4096], data[..4096]);
        assert_eq!(back[4096..12288], [0; 8192]);
        assert_eq!(back[12288..], data[12288..16384]);
        let beyond = machine.read(&ctx, (8 << 20) / 512, &mut back[..512]);
        assert_eq!(beyond, BlkStatus::IoErr);
    }
}

#[test]
fn the_null_driver_takes_every_request() {
    for deferred in [false, true] {
        let ctx = AioContext::for_test().unwrap();
        let node = BlockNode::new("null", Null::new(1 << 30).deferred(deferred));
        let config = VirtioBlkConfig::default().serial("null0");
        let builder = Machine::builder().config(config);
        let mut machine = builder.build(&ctx, BlockBackend::new(&ctx, "drive", node)).unwrap();
        let requests = [
            GuestRequest::Flush,
            GuestRequest::Discard { sector: 8, sectors: 8 },
            GuestRequest::WriteZeroes { sector: 8, sectors: 8, unmap: false },
        ];
        for request in requests {
            assert_eq!(machine.call(&ctx, request), BlkStatus::Ok);
        }
        assert_eq!(machine.write(&ctx, 8, &[1; 8192]), BlkStatus::Ok);
        assert_eq!(machine.read(&ctx, 8, &mut [1; 8192]), BlkStatus::Ok);
        assert_eq!(machine.serial(&ctx), "null0");
        assert_eq!(machine.device.in_flight(), 0);
    }
}

#[test]
fn a_request_of_many_segments_is_one_request() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, TestDisk::new(4096));
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffers = machine.ram.alloc_many(200, 512, 1024).unwrap();
    for (index, buffer) in (0..).zip(&buffers) {
        machine.ram.write(*buffer, &[index; 512]);
    }
    let write = GuestRequest::Write { sector: 16, buffers: &buffers };
    assert_eq!(machine.call(&ctx, write), BlkStatus::Ok);
    let expected = Seen::Write { offset: 8192, bytes: 102400, ranges: 200, fua: false };
    assert_eq!(disk.take_seen(), [expected]);
    assert_eq!(disk.data.lock().unwrap()[8192 + 199 * 512], 199);
}

#[test]
fn the_write_cache_is_what_the_guest_was_told() {
    let fua_of = |builder: MachineBuilder, off: bool| {
        let ctx = AioContext::for_test().unwrap();
        let (disk, backend) = backend(&ctx, TestDisk::new(64));
        let mut machine = builder.build(&ctx, backend).unwrap();
        if off {
            machine.device.write_config(32, &[0]);
            assert_eq!(machine.device.config_space()[32], 0);
        }
        machine.write(&ctx, 0, &[1; 512]);
        machine.call(&ctx, GuestRequest::WriteZeroes { sector: 0, sectors: 1, unmap: false });
        let fua = disk.take_seen().into_iter().map(|seen| match seen {
            Seen::Write { fua, .. } | Seen::Zeroes { fua, .. } => fua,
            other => panic!("{other:?}"),
        });
        fua.collect::<Vec<_>>()
    };
    let no_flush = Machine::builder().without_features(feature::FLUSH);
    let no_switch = Machine::builder().without_features(feature::CONFIG_WCE);
    let no_cache = Machine::builder().config(VirtioBlkConfig::default().write_cache(false));
    assert_eq!(fua_of(Machine::builder(), false), [false, false]);
    assert_eq!(fua_of(Machine::builder(), true), [true, true]);
    assert_eq!(fua_of(no_flush, false), [true, true]);
    assert_eq!(fua_of(no_switch, false), [false, false]);
    assert_eq!(fua_of(no_cache, false), [true, true]);
}

mod merging {
    use super::*;

    struct Batch {
        ctx: AioContext,
        disk: std::sync::Arc<TestDisk>,
        machine: Machine,
    }

    impl Batch {
        fn new(disk: TestDisk, builder: MachineBuilder) -> Batch {
            let ctx = AioContext::for_test().unwrap();
            let (disk, backend) = backend(&ctx, disk);
            let machine = builder.build(&ctx, backend).unwrap();
            Batch { ctx, disk, machine }
        }

        fn default() -> Batch {
            Self::new(TestDisk::new(8192), Machine::builder())
        }

        /// Submits the requests and kicks once; returns each one's status, by token.
        fn run(&mut self, requests: &[GuestRequest<'_>]) -> Vec<BlkStatus> {
            let queue = &mut self.machine.queues[0];
            for (token, request) in (0..).zip(requests) {
                queue.submit(*request, token).unwrap();
            }
            queue.kick();
            settle(&self.ctx);
            let mut statuses = vec![None; requests.len()];
            while let Some(completion) = queue.reap() {
                let slot = &mut statuses[completion.token as usize];
                assert!(slot.replace(completion.status).is_none(), "answered twice");
            }
            statuses.into_iter().map(|status| status.expect("an answer")).collect()
        }
    }

    #[test]
    fn neighbours_become_one_request_with_an_answer_each() {
        let mut batch = Batch::default();
        let buffers = batch.machine.ram.alloc_many(16, 4096, 4096).unwrap();
        let buffers: Vec<_> = buffers.into_iter().map(|buffer| [buffer]).collect();
        let requests: Vec<_> = (0..16)
            .map(|i| {
                let data = &buffers[i as usize];
                batch.machine.ram.write(data[0], &pattern(4096, i as u8));
                GuestRequest::Write { sector: 100 + 8 * i, buffers: data }
            })
            .collect();
        assert_eq!(batch.run(&requests), [BlkStatus::Ok; 16]);
        let one = Seen::Write { offset: 51200, bytes: 65536, ranges: 16, fua: false };
        assert_eq!(batch.disk.take_seen(), [one]);
        for i in 0..16u8 {
            let at = 51200 + 4096 * usize::from(i);
            assert_eq!(batch.disk.data.lock().unwrap()[at..at + 4096], pattern(4096, i));
        }
    }

    #[test]
    fn interleaved_streams_merge_without_sorting() {
        let mut batch = Batch::default();
        let buffer = [batch.machine.ram.alloc(512, 512).unwrap()];
        let read = |sector| GuestRequest::Read { sector, buffers: &buffer };
        let write = |sector| GuestRequest::Write { sector, buffers: &buffer };
        let requests: Vec<_> =
            (0..8).flat_map(|i| [read(i), write(1000 + i), read(2000 + i)]).collect();
        batch.run(&requests);
        let seen = batch.disk.take_seen();
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen.contains(&Seen::Read { offset: 2000 * 512, bytes: 4096, ranges: 8 }));
    }

    #[test]
    fn a_read_and_a_write_do_not_merge_nor_do_strangers() {
        let mut batch = Batch::default();
        let buffer = [batch.machine.ram.alloc(512, 512).unwrap()];
        let read = |sector| GuestRequest::Read { sector, buffers: &buffer };
        let write = |sector| GuestRequest::Write { sector, buffers: &buffer };
        batch.run(&[read(0), write(1), read(2), read(2), read(4)]);
        assert_eq!(batch.disk.take_seen().len(), 5);
    }

    #[test]
    fn a_flush_ends_what_is_merged() {
        let mut batch = Batch::default();
        let buffer = [batch.machine.ram.alloc(512, 512).unwrap()];
        let write = |sector| GuestRequest::Write { sector, buffers: &buffer };
        batch.run(&[write(0), write(1), GuestRequest::Flush, write(2), write(3)]);
        let pair = |offset| Seen::Write { offset, bytes: 1024, ranges: 2, fua: false };
        assert_eq!(batch.disk.take_seen(), [pair(0), Seen::Flush, pair(1024)]);
    }

    #[test]
    fn a_merged_request_is_bounded() {
        let queue = QueueOptions { indirect_segments: 1, ..Default::default() };
        let mut batch = Batch::new(TestDisk::new(1 << 16), Machine::builder().queue(queue));
        let buffer = [batch.machine.ram.alloc(65536, 4096).unwrap()];
        let requests: Vec<_> =
            (0..40).map(|i| GuestRequest::Read { sector: 128 * i, buffers: &buffer }).collect();
        batch.run(&requests);
        let bytes = batch.disk.take_seen().into_iter().map(|seen| match seen {
            Seen::Read { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        });
        assert_eq!(bytes.collect::<Vec<_>>(), [1 << 20, 1 << 20, 8 * 65536]);
    }

    #[test]
    fn merging_can_be_switched_off() {
        let config = VirtioBlkConfig::default().merge_requests(false);
        let mut batch = Batch::new(TestDisk::new(64), Machine::builder().config(config));
        let buffer = [batch.machine.ram.alloc(512, 512).unwrap()];
        let requests: Vec<_> =
            (0..8).map(|sector| GuestRequest::Read { sector, buffers: &buffer }).collect();
        batch.run(&requests);
        assert_eq!(batch.disk.take_seen().len(), 8);
    }

    #[test]
    fn one_bad_sector_fails_one_request_of_a_run() {
        for deferred in [false, true] {
            let disk = TestDisk { deferred, ..TestDisk::new(64) };
            let mut batch = Batch::new(disk, Machine::builder());
            batch.disk.bad_offset.store(3 * 512 + 100, Ordering::Relaxed);
            let buffer = [batch.machine.ram.alloc(512, 512).unwrap()];
            let requests: Vec<_> =
                (0..8).map(|sector| GuestRequest::Write { sector, buffers: &buffer }).collect();
            let mut expected = [BlkStatus::Ok; 8];
            expected[3] = BlkStatus::IoErr;
            assert_eq!(batch.run(&requests), expected);
            assert_eq!(batch.disk.take_seen().len(), 9);
        }
    }

    #[test]
    fn a_bad_address_fails_one_request_of_a_run() {
        let mut batch = Batch::default();
        let good = [batch.machine.ram.alloc(512, 512).unwrap()];
        let bad = [coblk_virtio_blk::guest::GuestBuffer { addr: 1 << 40, len: 512 }];
        let read = |sector, buffers| GuestRequest::Read { sector, buffers };
        let statuses = batch.run(&[read(0, &good), read(1, &bad), read(2, &good)]);
        assert_eq!(statuses, [BlkStatus::Ok, BlkStatus::IoErr, BlkStatus::Ok]);
    }

    #[test]
    fn a_panic_fails_its_run_and_nothing_else() {
        for deferred in [false, true] {
            let disk = TestDisk { deferred, ..TestDisk::new(256) };
            let mut batch = Batch::new(disk, Machine::builder());
            batch.disk.panic_offset.store(512, Ordering::Relaxed);
            let buffer = [batch.machine.ram.alloc(512, 512).unwrap()];
            let read = |sector| GuestRequest::Read { sector, buffers: &buffer };
            let statuses = batch.run(&[read(0), read(1), read(100), read(101)]);
            use BlkStatus::{IoErr, Ok};
            assert_eq!(statuses, [IoErr, IoErr, Ok, Ok]);
            assert_eq!(batch.machine.device.in_flight(), 0);
            assert_eq!(batch.run(&[read(0)]), [Ok]);
        }
    }
}

#[test]
fn a_full_queue_says_so_and_recovers() {
    let ctx = AioContext::for_test().unwrap();
    let (_disk, backend) = backend(&ctx, TestDisk::new(64));
    let queue = QueueOptions { size: 8, ..Default::default() };
    let mut machine = Machine::builder().queue(queue).build(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let queue = &mut machine.queues[0];
    for round in 0..1000 {
        let mut submitted = 0;
        while queue.read(0, buffer, round) != Err(QueueFull) {
            submitted += 1;
        }
        assert_eq!((submitted, queue.in_flight()), (2, 2));
        queue.kick();
        settle(&ctx);
        assert_eq!(std::iter::from_fn(|| queue.reap()).count(), 2);
    }
}

/// Whether a page of guest memory is marked.
fn is_marked(log: &MmapRegion, addr: u64) -> bool {
    let page = addr / 4096;
    let byte: u8 = log.get_slice((page / 8) as usize, 1).unwrap().read_obj(0).unwrap();
    byte & 1 << (page % 8) != 0
}

/// A used ring whose index is at the end of a page, and its entries on the next. With event indices nothing
/// else marks the page of the index; without them, nothing else that of the entries.
#[test]
fn index_and_entries_of_a_used_ring_are_marked() {
    for without in [0, feature::EVENT_IDX] {
        let mut guest = RawGuest::new();
        guest.device.reset(&guest.ctx);
        guest
            .device
            .negotiate(guest.device.features() & !(without | feature::RING_PACKED))
            .unwrap();
        let used_ring = SCRATCH + 0x1000 - 4;
        let (size, next_index) = (RAW_SIZE, 0);
        let layout =
            VirtqueueLayout { size, desc_table: DESC, avail_ring: AVAIL, used_ring, next_index };
        let memory = guest.ram.memory();
        guest.device.start_queue(&guest.ctx, 0, memory, layout, Interrupt::None).unwrap();
        settle(&guest.ctx);
        let log = Arc::new(MmapRegion::new(4096).unwrap());
        let clear = || log.get_slice(0, 4096).unwrap().write_slice(&[0; 4096], 0).unwrap();
        let dirty = Arc::new(DirtyLog::new(Arc::clone(&log)));
        for (data, used_ring) in [(false, used_ring), (true, used_ring + 0x10000)] {
            let queue = QueueLog { log: Arc::clone(&dirty), data, used_ring };
            guest.device.set_dirty_log(0, Some(&queue)).unwrap();
            let marked = || [used_ring, used_ring + 4].map(|it| is_marked(&log, it));
            assert_eq!(marked(), [true, true], "when it begins");
            clear();
            guest.offer_honest_request();
            guest.kick();
            assert_eq!(marked(), [true, true]);
        }
        assert!(!is_marked(&log, used_ring), "elsewhere by now");
        guest.device.set_dirty_log(0, None).unwrap();
        clear();
        guest.offer_honest_request();
        guest.kick();
        let mut bytes = [0; 4096];
        log.get_slice(0, 4096).unwrap().read_slice(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 4096]);
    }
}
