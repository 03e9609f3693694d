//! A driver of one queue, written by hand: it decides what it tells the device and when, and it
//! survives its device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::pages::Pages;

/// Entries of the queue.
pub const SIZE: usize = 64;
/// Requests in flight: each has three descriptors, and a slot for its data.
pub const DEPTH: usize = SIZE / 3;
/// Bytes of data that a request has.
pub const BLOCK: usize = 4096;
pub const AVAIL: usize = 4096;
pub const USED: usize = 8192;
const HEADERS: usize = 12288;
pub const STATUSES: usize = 16384;
pub const DATA: usize = 20480;
pub const MEMORY_BYTES: usize = DATA + DEPTH * BLOCK;

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const GET_ID: u32 = 8;
pub const WRITE_ZEROES: u32 = 13;
/// The device has written no status.
pub const UNTOUCHED: u8 = 0xee;

/// VIRTIO_F_RING_PACKED.
pub const RING_PACKED: u64 = 1 << 34;

pub struct Guest {
    pub file: File,
    pub memory: MmapRegion,
    /// The queue, and where in the guest's memory this part of it lies.
    pub queue: usize,
    pub origin: u64,
    /// Pages that the guest has written, from here on, if that is to be known.
    pub written: Option<Arc<Pages>>,
    pub kick: EventFd,
    pub call: EventFd,
    pub avail_idx: u16,
    pub used_idx: u16,
    /// Its ring, if that is packed.
    packed: Option<PackedSide>,
}

/// Both places in a packed ring, each with its wrap counter above the index.
#[derive(Clone, Copy)]
struct PackedSide {
    avail: u16,
    used: u16,
    /// The last word of the first descriptor that the device does not see yet, and where it is.
    hidden: Option<(usize, u64)>,
}

const WRAP: u16 = 1 << 15;

/// Marks of a descriptor that is available there, and of one that is used.
fn marks(at: u16) -> [u16; 2] {
    if at & WRAP != 0 { [1 << 7, 1 << 7 | 1 << 15] } else { [1 << 15, 0] }
}

fn advance(at: u16, count: u16) -> u16 {
    let index = (at & !WRAP) + count;
    if index >= SIZE as u16 { (at ^ WRAP) & WRAP | (index - SIZE as u16) } else { at + count }
}

/// Connects and negotiates; all that is offered but packed rings and the features `without`.
pub fn negotiate(socket: &Path, without: u64) -> Frontend {
    negotiate_rings(socket, without, false)
}

/// [`negotiate`], with packed rings perhaps.
pub fn negotiate_rings(socket: &Path, without: u64, packed: bool) -> Frontend {
    negotiate_rings_on(UnixStream::connect(socket).unwrap(), without, packed)
}

/// [`negotiate`], on a connection that the test may write to as well.
pub fn negotiate_on(stream: UnixStream, without: u64) -> Frontend {
    negotiate_rings_on(stream, without, false)
}

/// Both of these.
pub fn negotiate_rings_on(stream: UnixStream, without: u64, packed: bool) -> Frontend {
    let without = without | if packed { 0 } else { RING_PACKED };
    let mut front = Frontend::from_stream(stream, 2);
    front.set_owner().unwrap();
    let features = front.get_features().unwrap() & !without;
    front.set_features(features).unwrap();
    // As most front ends do, for which GET_VRING_BASE waits for requests.
    let protocol =
        front.get_protocol_features().unwrap() - VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT;
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front
}

pub const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;
pub const INFLIGHT_BIT: u64 = 1 << 20;
pub const SKIP_DRAIN_BIT: u64 = 1 << 23;

/// Has also accepted these protocol features, which the front end of the vhost crate does not know.
pub fn negotiate_more(stream: UnixStream, bits: u64, packed: bool) -> Frontend {
    let mut front = negotiate_rings_on(stream, 0, packed);
    let known = front.get_protocol_features().unwrap().bits();
    let features = known & !(INFLIGHT_BIT | SKIP_DRAIN_BIT) | bits;
    front.set_protocol_features(VhostUserProtocolFeatures::from_bits_retain(features)).unwrap();
    front
}

/// The index in the answer to GET_VRING_BASE_SKIP_DRAIN; an error if the connection is lost.
pub fn stop_without_drain(mut stream: &UnixStream, queue: u32) -> io::Result<u32> {
    let message = [GET_VRING_BASE_SKIP_DRAIN, 1, 8, queue, 0];
    stream.write_all(&message.map(u32::to_ne_bytes).concat())?;
    let mut answer = [0; 20];
    stream.read_exact(&mut answer)?;
    let expected = [GET_VRING_BASE_SKIP_DRAIN, 1 | 4, 8, queue].map(u32::to_ne_bytes).concat();
    assert_eq!(answer[..16], expected);
    Ok(u32::from_ne_bytes(answer[16..].try_into().unwrap()))
}

/// SET_VRING_BASE with 32 bits, which the vhost crate has no call for; false if it costs the connection.
pub fn set_base(stream: &UnixStream, base: u32) -> bool {
    const SET_VRING_BASE: u32 = 10;
    let message: Vec<u8> =
        [SET_VRING_BASE, 1 | 1 << 3, 8, 0, base].into_iter().flat_map(u32::to_ne_bytes).collect();
    (&mut &*stream).write_all(&message).unwrap();
    let mut answer = [0; 20];
    (&mut &*stream).read_exact(&mut answer).is_ok() && answer[12..] == [0; 8]
}

/// The heads that a log of one queue marks as in flight.
pub fn taken(log: &File) -> Vec<usize> {
    let mut bytes = vec![0; 16 + 16 * SIZE];
    log.read_exact_at(&mut bytes, 0).unwrap();
    (0..SIZE).filter(|head| bytes[16 + head * 16] != 0).collect()
}

/// The buffers that a log of one packed queue marks as in flight.
pub fn taken_packed(log: &File) -> Vec<usize> {
    let mut bytes = vec![0; 32 + 32 * SIZE];
    log.read_exact_at(&mut bytes, 0).unwrap();
    let taken = bytes[32..].chunks(32).filter(|entry| entry[0] != 0);
    taken.map(|entry| usize::from(u16::from_le_bytes([entry[16], entry[17]]))).collect()
}

impl Guest {
    pub fn new() -> Guest {
        Self::with_memory(MEMORY_BYTES)
    }

    /// So much memory; the rings fit only into [`MEMORY_BYTES`].
    pub fn with_memory(bytes: usize) -> Guest {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes as u64).unwrap();
        let shared = FileOffset::new(file.try_clone().unwrap(), 0);
        Guest {
            memory: MmapRegion::from_file(shared, bytes).unwrap(),
            file,
            queue: 0,
            origin: 0,
            written: None,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail_idx: 0,
            used_idx: 0,
            packed: None,
        }
    }

    /// One whose ring is packed, perhaps.
    pub fn with_ring(packed: bool) -> Guest {
        Self::new().ringed(packed)
    }

    /// The same, with a ring that is packed, perhaps.
    pub fn ringed(self, packed: bool) -> Guest {
        let side = PackedSide { avail: WRAP, used: WRAP, hidden: None };
        Guest { packed: packed.then_some(side), ..self }
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.origin,
            memory_size: self.memory.len() as u64,
            userspace_addr: self.origin,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Where the rings are.
    pub fn rings() -> VringConfigData {
        VringConfigData {
            queue_max_size: SIZE as u16,
            queue_size: SIZE as u16,
            flags: 0,
            desc_table_addr: 0,
            avail_ring_addr: AVAIL as u64,
            used_ring_addr: USED as u64,
            log_addr: None,
        }
    }

    /// Says where the rings are, and where in them to begin.
    pub fn lay_out(&self, front: &Frontend, base: u16) {
        front.set_vring_num(self.queue, SIZE as u16).unwrap();
        front.set_vring_addr(self.queue, &Self::rings_at(self.origin)).unwrap();
        front.set_vring_base(self.queue, base).unwrap();
    }

    /// [`rings`](Self::rings), in memory that begins at `origin`.
    pub fn rings_at(origin: u64) -> VringConfigData {
        let rings = Self::rings();
        VringConfigData {
            desc_table_addr: rings.desc_table_addr + origin,
            avail_ring_addr: rings.avail_ring_addr + origin,
            used_ring_addr: rings.used_ring_addr + origin,
            ..rings
        }
    }

    /// Has the device start, in the usual way.
    pub fn start(&self, front: &mut Frontend) {
        self.start_at(front, self.packed.map_or(self.used_idx, |side| side.used));
    }

    /// [`start`](Self::start), from this index on.
    pub fn start_at(&self, front: &mut Frontend, base: u16) {
        front.add_mem_region(&self.region()).unwrap();
        self.lay_out(front, base);
        front.set_vring_call(self.queue, &self.call).unwrap();
        front.set_vring_kick(self.queue, &self.kick).unwrap();
        front.set_vring_enable(self.queue, true).unwrap();
    }

    pub fn store(&self, offset: usize, bytes: &[u8]) {
        self.memory.get_slice(offset, bytes.len()).unwrap().write_slice(bytes, 0).unwrap();
        self.has_written(offset, bytes.len());
    }

    fn has_written(&self, offset: usize, len: usize) {
        self.written.iter().for_each(|it| it.mark(self.origin + offset as u64, len));
    }

    pub fn load_bytes(&self, offset: usize, bytes: &mut [u8]) {
        self.memory.get_slice(offset, bytes.len()).unwrap().read_slice(bytes, 0).unwrap();
    }

    /// The entries of the available ring, which are the guest's own.
    pub fn available_ring(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4 + 2 * SIZE];
        self.memory.get_slice(AVAIL, bytes.len()).unwrap().read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    /// The driver resets: rings are empty, and begin at `base`.
    pub fn empty_rings(&mut self, base: u16) {
        self.store(AVAIL, &[0; USED - AVAIL]);
        self.store(USED, &[0; HEADERS - USED]);
        (self.avail_idx, self.used_idx) = (base, base);
        self.store(AVAIL + 2, &base.to_le_bytes());
        self.store(USED + 2, &base.to_le_bytes());
    }

    /// The driver begins its packed ring anew, where that of `new` is.
    pub fn restart_packed(&mut self, new: &Guest) {
        self.packed = new.packed;
    }

    /// Where it is in a packed ring: what it makes available next, and the next answer.
    pub fn packed_places(&self) -> (u16, u16) {
        let side = self.packed.unwrap();
        (side.avail, side.used)
    }

    fn load(&self, offset: usize) -> u16 {
        let memory = self.memory.get_slice(offset, 2).unwrap();
        memory.load(0, Ordering::Acquire).unwrap()
    }

    /// The first byte of a slot's data.
    pub fn data(&self, slot: usize) -> u8 {
        self.memory.get_slice(DATA + slot * BLOCK, 1).unwrap().read_obj(0).unwrap()
    }

    pub fn status(&self, slot: usize) -> u8 {
        self.memory.get_slice(STATUSES + slot, 1).unwrap().read_obj(0).unwrap()
    }

    /// Makes a request available, of one block full of `value`; no kick.
    pub fn submit(&mut self, slot: usize, kind: u32, block: u64, value: u8) {
        self.submit_with(slot, kind, block * (BLOCK as u64 / 512), &[value; BLOCK]);
    }

    /// Makes a request for zeroes available, from the first sector on; no kick.
    pub fn submit_zeroes(&mut self, slot: usize, sectors: u32) {
        let range = [0u64.to_le_bytes(), u64::from(sectors).to_le_bytes()].concat();
        self.submit_with(slot, WRITE_ZEROES, 0, &range);
    }

    fn submit_with(&mut self, slot: usize, kind: u32, sector: u64, data: &[u8]) {
        self.store(DATA + slot * BLOCK, data);
        let addr = self.origin + (DATA + slot * BLOCK) as u64;
        self.submit_at(slot, kind, sector, addr, data.len());
    }

    /// Makes a request available whose data lies at `addr` of the guest's memory; no kick.
    pub fn submit_at(&mut self, slot: usize, kind: u32, sector: u64, addr: u64, len: usize) {
        self.prepare_at(slot, kind, sector, addr, len);
        self.make_available();
    }

    /// Writes all of a request but the index that makes it available.
    pub fn prepare_at(&mut self, slot: usize, kind: u32, sector: u64, addr: u64, len: usize) {
        let head = slot * 3;
        self.store(STATUSES + slot, &[UNTOUCHED]);
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        self.store(HEADERS + slot * 16, &header);
        let writable = if kind == READ || kind == GET_ID { 2 } else { 0 };
        let parts = [
            (self.origin + (HEADERS + slot * 16) as u64, 16, 1u16),
            (addr, len as u32, 1 | writable),
            (self.origin + (STATUSES + slot) as u64, 1, 2),
        ];
        if self.packed.is_some() {
            parts.iter().for_each(|part| self.prepare_packed(*part, slot as u16));
            return;
        }
        for (at, (addr, len, flags)) in parts.into_iter().enumerate() {
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(((head + at + 1) as u16).to_le_bytes());
            self.store((head + at) * 16, &bytes);
        }
        let entry = usize::from(self.avail_idx) % SIZE;
        self.store(AVAIL + 4 + entry * 2, &(head as u16).to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    fn prepare_packed(&mut self, (addr, len, flags): (u64, u32, u16), id: u16) {
        let Some(side) = &mut self.packed else { return };
        let place = usize::from(side.avail & !WRAP) * 16;
        let flags = flags | marks(side.avail)[0];
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        side.avail = advance(side.avail, 1);
        let is_hidden = side.hidden.get_or_insert((place + 8, rest)).0 == place + 8;
        self.store(place, &addr.to_le_bytes());
        if !is_hidden {
            self.store(place + 8, &rest.to_le_bytes());
        }
    }

    /// Makes available what was prepared; no kick.
    pub fn make_available(&mut self) {
        if let Some(side) = &mut self.packed {
            if let Some((place, rest)) = side.hidden.take() {
                let word = self.memory.get_slice(place, 8).unwrap();
                word.store(rest.to_le(), 0, Ordering::Release).unwrap();
                self.has_written(place, 8);
            }
            return;
        }
        let avail = self.memory.get_slice(AVAIL + 2, 2).unwrap();
        avail.store(self.avail_idx.to_le(), 0, Ordering::Release).unwrap();
        self.has_written(AVAIL + 2, 2);
    }

    /// Takes the answers that are there: slots and statuses.
    pub fn reap(&mut self) -> Vec<(usize, u8)> {
        let mut answers = Vec::new();
        while let Some(side) = self.packed {
            let place = usize::from(side.used & !WRAP) * 16 + 8;
            if self.load(place + 6) & (1 << 7 | 1 << 15) != marks(side.used)[1] {
                return answers;
            }
            let slot = usize::from(self.load(place + 4));
            answers.push((slot, self.status(slot)));
            self.packed = Some(PackedSide { used: advance(side.used, 3), ..side });
        }
        while self.load(USED + 2) != self.used_idx {
            let entry = usize::from(self.used_idx) % SIZE;
            let slot = usize::from(self.load(USED + 4 + entry * 8)) / 3;
            answers.push((slot, self.status(slot)));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        answers
    }

    /// Waits until so many answers are there.
    pub fn wait_for(&mut self, count: usize) -> Vec<(usize, u8)> {
        let (mut answers, end) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        loop {
            answers.extend(self.reap());
            if answers.len() >= count {
                return answers;
            }
            assert!(Instant::now() < end, "{} of {count} answers came", answers.len());
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// One request, with a kick.
    pub fn one(&mut self, kind: u32, block: u64, value: u8) -> u8 {
        self.one_in(0, kind, block, value)
    }

    /// [`one`](Self::one), in this slot.
    pub fn one_in(&mut self, slot: usize, kind: u32, block: u64, value: u8) -> u8 {
        self.submit(slot, kind, block, value);
        self.kick.write(1).unwrap();
        self.wait_for(1)[0].1
    }
}
