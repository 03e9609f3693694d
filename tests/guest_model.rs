//! Random requests of a guest, many in flight, against a model: the whole path from the virtqueue to
//! the image. Neighbours in one kick, which the device merges, are frequent.

use std::ops::Range;

use coblk::drivers::Engine;
use coblk::virtio_blk::BlkStatus;
use coblk::virtio_blk::guest::{GuestBuffer, GuestRequest, QueueOptions};
use coblk::{AioContext, BlockBackend, BlockNode};
use coblk_tests::guest::{Guest, SECTOR, every_way};
use coblk_tests::image_dir;
use coblk_tests::images::{assert_same_content, qemu_img_create, sparse_image};
use coblk_tests::random::Random;

const SECTORS: u64 = 1024;
const SLOTS: usize = 48;
const LONGEST: u64 = 16;

/// A request in flight.
enum Flight {
    Read(Range<u64>),
    Write(Range<u64>, Vec<u8>),
    Zero(Range<u64>),
    Discard(Range<u64>),
    Flush,
}

impl Flight {
    /// Its sectors, and whether it changes them.
    fn range(&self) -> Option<(&Range<u64>, bool)> {
        match self {
            Flight::Read(range) => Some((range, false)),
            Flight::Write(range, _) | Flight::Zero(range) | Flight::Discard(range) => {
                Some((range, true))
            }
            Flight::Flush => None,
        }
    }
}

struct Model {
    guest: Guest,
    random: Random,
    buffers: Vec<GuestBuffer>,
    flights: Vec<Option<Flight>>,
    content: Vec<u8>,
    known: Vec<bool>,
    /// Where the last request ended, for the next one to go on.
    next: u64,
}

fn bytes(range: &Range<u64>) -> Range<usize> {
    (range.start * SECTOR) as usize..(range.end * SECTOR) as usize
}

impl Model {
    fn new(guest: Guest, seed: u64) -> Model {
        let len = (LONGEST * SECTOR) as u32;
        let slots = 0..SLOTS;
        let ram = &guest.machine.ram;
        let buffers = slots.clone().map(|_| ram.alloc(len, 512).expect("guest memory")).collect();
        Model {
            buffers,
            guest,
            random: Random::new(seed),
            flights: slots.map(|_| None).collect(),
            content: vec![0; (SECTORS * SECTOR) as usize],
            known: vec![true; SECTORS as usize],
            next: 0,
        }
    }

    fn play(&mut self, requests: usize) {
        let mut submitted = 0;
        while submitted < requests || self.flights.iter().any(Option::is_some) {
            let burst = self.random.below(12);
            for _ in 0..burst {
                submitted += usize::from(submitted < requests && self.submit());
            }
            self.guest.machine.queues[0].kick();
            if self.flights.iter().any(Option::is_some) {
                self.guest.ctx.poll();
            }
            while let Some(completion) = self.guest.machine.queues[0].reap() {
                self.complete(completion.token as usize, completion.status);
            }
        }
    }

    /// Puts a request on the ring, if there is a free slot and its range is free.
    fn submit(&mut self) -> bool {
        let Some(slot) = self.flights.iter().position(Option::is_none) else { return false };
        let start = match self.random.below(3) {
            0 => self.random.below(SECTORS),
            _ => self.next % SECTORS,
        };
        let range = start..start + 1 + self.random.below(LONGEST.min(SECTORS - start));
        let flight = match self.random.below(100) {
            ..45 => Flight::Read(range),
            45..90 => {
                let mut data = vec![0; bytes(&range).len()];
                self.random.fill(&mut data);
                Flight::Write(range, data)
            }
            90..95 => Flight::Zero(range),
            95..98 => Flight::Discard(range),
            _ => Flight::Flush,
        };
        if !self.is_free(&flight) {
            return false;
        }
        if let Some((range, _)) = flight.range() {
            self.next = range.end;
        }
        self.put(slot, &flight);
        self.flights[slot] = Some(flight);
        true
    }

    /// Whether nothing in flight conflicts with it: the device promises no order.
    fn is_free(&self, flight: &Flight) -> bool {
        let Some((range, change)) = flight.range() else { return true };
        self.flights.iter().flatten().filter_map(Flight::range).all(|(other, changes)| {
            range.end <= other.start || other.end <= range.start || !change && !changes
        })
    }

    fn put(&mut self, slot: usize, flight: &Flight) {
        let token = slot as u64;
        let machine = &mut self.guest.machine;
        let buffer = self.buffers[slot];
        let sectors = |range: &Range<u64>| (range.end - range.start) as u32;
        // Two segments, cut at an odd place, half of the time.
        let mut cut = |len: u32| {
            let at =
                if self.random.below(2) == 0 { len } else { self.random.below(len.into()) as u32 };
            let parts = [buffer.slice(0, at), buffer.slice(at, len - at)];
            parts.into_iter().filter(|part| part.len > 0).collect::<Vec<_>>()
        };
        let queue = &mut machine.queues[0];
        let put = match flight {
            Flight::Read(range) => {
                let buffers = cut(sectors(range) * SECTOR as u32);
                machine.ram.write(buffer, &vec![0xee; bytes(range).len()]);
                queue.submit(GuestRequest::Read { sector: range.start, buffers: &buffers }, token)
            }
            Flight::Write(range, data) => {
                machine.ram.write(buffer, data);
                let buffers = cut(data.len() as u32);
                queue.submit(GuestRequest::Write { sector: range.start, buffers: &buffers }, token)
            }
            Flight::Zero(range) => {
                let (sector, sectors) = (range.start, sectors(range));
                let unmap = self.random.below(2) == 0;
                queue.submit(GuestRequest::WriteZeroes { sector, sectors, unmap }, token)
            }
            Flight::Discard(range) => {
                let (sector, sectors) = (range.start, sectors(range));
                queue.submit(GuestRequest::Discard { sector, sectors }, token)
            }
            Flight::Flush => queue.submit(GuestRequest::Flush, token),
        };
        put.expect("room on the ring for every slot");
    }

    fn complete(&mut self, slot: usize, status: BlkStatus) {
        assert_eq!(status, BlkStatus::Ok);
        let flight = self.flights[slot].take().expect("a request in flight");
        match flight {
            Flight::Read(range) => {
                let mut read = vec![0; bytes(&range).len()];
                self.guest
                    .machine
                    .ram
                    .read(self.buffers[slot].slice(0, read.len() as u32), &mut read);
                self.check(range, &read);
            }
            Flight::Write(range, data) => self.set(range, Some(&data)),
            Flight::Zero(range) => {
                let zeroes = vec![0; bytes(&range).len()];
                self.set(range, Some(&zeroes));
            }
            Flight::Discard(range) => self.set(range, None),
            Flight::Flush => {}
        }
    }

    fn set(&mut self, range: Range<u64>, data: Option<&[u8]>) {
        self.known[range.start as usize..range.end as usize].fill(data.is_some());
        if let Some(data) = data {
            self.content[bytes(&range)].copy_from_slice(data);
        }
    }

    fn check(&self, range: Range<u64>, read: &[u8]) {
        for (sector, read) in range.zip(read.chunks(SECTOR as usize)) {
            let right = self.content[bytes(&(sector..sector + 1))] == *read;
            assert!(right || !self.known[sector as usize], "sector {sector}");
        }
    }

    /// Gives every sector a known content, and compares all of it.
    fn settle(&mut self) {
        for sector in 0..SECTORS {
            if !self.known[sector as usize] {
                self.guest.write(sector * SECTOR, &[9; SECTOR as usize]);
                self.set(sector..sector + 1, Some(&[9; SECTOR as usize]));
            }
        }
        self.guest.flush();
        let all = self.guest.read(0, (SECTORS * SECTOR) as usize);
        self.check(0..SECTORS, &all);
    }
}

#[test]
fn an_image_holds_what_the_model_holds() {
    let dir = image_dir!();
    for (way, options) in every_way() {
        eprintln!("{way}");
        let image = qemu_img_create(dir.path(), "disk.img", SECTORS * SECTOR);
        let mut model = Model::new(Guest::new(&image, options), 42);
        model.play(1500);
        model.settle();
        // And QEMU agrees.
        let expected = sparse_image(dir.path(), "model.img", 0);
        std::fs::write(&expected, &model.content).expect("write the model");
        assert_same_content(&image, &expected);
    }
}

#[test]
fn indirect_descriptors_carry_the_same() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "disk.img", SECTORS * SECTOR);
    let ctx = AioContext::for_test().expect("a context");
    let file = coblk::drivers::File::options().engine(Engine::IoUring).open(&image);
    let node = BlockNode::new("disk", file.expect("an image"));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let queue = QueueOptions { size: 64, indirect_segments: 8, ..QueueOptions::default() };
    let builder = coblk::virtio_blk::guest::Machine::builder().queue(queue);
    let machine = builder.build(&ctx, backend).expect("a machine");
    let mut model = Model::new(Guest { machine, ctx }, 43);
    model.play(1500);
    model.settle();
}
