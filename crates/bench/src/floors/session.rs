//! What a front end has said so far: [`Session`]. Whatever it changes, it changes while no queue is
//! answered.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use coblk::virtio_blk::{SECTOR_BYTES, VirtqueueLayout};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::Wait;
use super::queues::{Eventfd, Queue, answer_all, ring_bell};
use super::store::Store;

const MAX_REGIONS: usize = 8;
const MAX_QUEUE_SIZE: u32 = 1024;
const F_MQ: u64 = 1 << 12;
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
const F_PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const FEATURES: u64 = F_MQ | F_EVENT_IDX | F_VERSION_1 | F_PROTOCOL;
/// Where the configuration space says how many queues there are.
const CONFIG_QUEUES: usize = 34;

#[derive(Default)]
struct Vring {
    layout: Option<VirtqueueLayout>,
    size: u16,
    base: u16,
    kick: Option<Eventfd>,
    call: Option<Eventfd>,
    enabled: bool,
}

/// The state of one connection.
pub(super) struct Session {
    socket: UnixStream,
    wait: Wait,
    store: Arc<Store>,
    features: u64,
    vrings: Vec<Vring>,
    regions: Vec<(VhostUserMemoryRegion, Arc<GuestRegionMmap>)>,
    runner: Option<Runner>,
}

/// The thread that answers.
struct Runner {
    stop: Arc<AtomicBool>,
    kicks: Vec<Eventfd>,
    thread: JoinHandle<io::Result<Vec<(usize, u16)>>>,
}

impl Session {
    pub(super) fn new(socket: UnixStream, wait: Wait, store: Arc<Store>, queues: u16) -> Session {
        let vrings = (0..queues).map(|_| Vring::default()).collect();
        let (features, regions, runner) = (0, Vec::new(), None);
        Session { socket, wait, store, features, vrings, regions, runner }
    }

    /// No queue is answered after this.
    ///
    /// # Errors
    /// If one was broken.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        let Some(runner) = self.runner.take() else { return Ok(()) };
        runner.stop.store(true, Ordering::Release);
        runner.kicks.iter().try_for_each(ring_bell)?;
        let joined = runner.thread.join();
        for (index, next) in joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))? {
            self.vrings[index].base = next;
        }
        Ok(())
    }

    /// Answers the queues that are complete.
    fn start(&mut self) -> Result<()> {
        let event_idx = self.features & F_EVENT_IDX != 0;
        let vrings = self.vrings.iter().enumerate();
        let mut queues: Vec<Queue> =
            vrings.filter_map(|(index, vring)| vring.queue(index, event_idx)).collect();
        if queues.is_empty() {
            return Ok(());
        }
        let regions = self.regions.iter().map(|(_, region)| Arc::clone(region)).collect();
        let memory = GuestMemoryMmap::from_arc_regions(regions);
        let memory = memory.map_err(|_| Error::InvalidOperation("regions overlap"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let kicks = queues.iter().map(|queue| Arc::clone(&queue.kick)).collect();
        let socket = self.socket.try_clone().map_err(Error::SocketError)?;
        let (told, store, wait) = (Arc::clone(&stop), Arc::clone(&self.store), self.wait);
        let thread = thread::spawn(move || {
            let answered = answer_all(&told, &memory, &mut queues, &store, wait);
            if answered.is_err() {
                // The front end would wait for ever.
                let _ = socket.shutdown(Shutdown::Both);
            }
            answered.map(|()| queues.iter().map(|it| (it.index, it.layout.next_index)).collect())
        });
        self.runner = Some(Runner { stop, kicks, thread });
        Ok(())
    }

    fn change(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.stop().map_err(Error::ReqHandlerError)?;
        change(self)?;
        self.start()
    }

    fn change_vring(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<()> {
        if index as usize >= self.vrings.len() {
            return Err(Error::InvalidOperation("there is no such queue"));
        }
        self.change(|session| {
            change(&mut session.vrings[index as usize]);
            Ok(())
        })
    }

    fn add_region(&mut self, layout: VhostUserMemoryRegion, file: File) -> Result<()> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(Error::InvalidOperation("too many regions"));
        }
        let end = layout.mmap_offset.checked_add(layout.memory_size);
        let file_bytes = file.metadata().map_err(Error::SocketError)?.len();
        if end.is_none_or(|end| end > file_bytes) {
            return Err(Error::InvalidOperation("a region that is longer than its file"));
        }
        let region =
            GuestRegionMmap::new(layout.mmap_region(file)?, GuestAddress(layout.guest_phys_addr));
        let region = region.ok_or(Error::InvalidOperation("a region that wraps around"))?;
        self.regions.push((layout, Arc::new(region)));
        self.regions.sort_by_key(|(layout, _)| layout.guest_phys_addr);
        Ok(())
    }

    /// The guest's address of what the front end sees at `addr`.
    fn guest_address(&self, addr: u64) -> Result<u64> {
        let found = self.regions.iter().find_map(|(layout, _)| {
            let offset = addr.checked_sub(layout.user_addr)?;
            (offset < layout.memory_size).then(|| layout.guest_phys_addr.wrapping_add(offset))
        });
        found.ok_or(Error::InvalidOperation("a ring outside of all regions"))
    }
}

impl Vring {
    /// What is to be answered, if it is complete.
    fn queue(&self, index: usize, event_idx: bool) -> Option<Queue> {
        let layout = self.layout.filter(|_| self.enabled && self.size > 0)?;
        let layout = VirtqueueLayout { size: self.size, next_index: self.base, ..layout };
        let (kick, call) = (Arc::clone(self.kick.as_ref()?), self.call.clone());
        Some(Queue { index, layout, event_idx, kick, call })
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop().map_err(Error::ReqHandlerError)?;
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidOperation("features that were not offered"));
        }
        self.change(|session| {
            session.features = features;
            Ok(())
        })
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::MQ)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut pairs = regions.iter().zip(files);
        self.change(|session| {
            session.regions.clear();
            pairs.try_for_each(|(region, file)| session.add_region(*region, file))
        })?;
        Ok(None)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let region = **region;
        self.change(|session| session.add_region(region, file))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let addr = region.guest_phys_addr;
        self.change(|session| {
            session.regions.retain(|(layout, _)| layout.guest_phys_addr != addr);
            Ok(())
        })
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if !num.is_power_of_two() || num > MAX_QUEUE_SIZE {
            return Err(Error::InvalidOperation("no queue has such a size"));
        }
        self.change_vring(index, |vring| vring.size = num as u16)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        desc_table: u64,
        used_ring: u64,
        avail_ring: u64,
        _: u64,
    ) -> Result<()> {
        let layout = VirtqueueLayout {
            size: 0,
            desc_table: self.guest_address(desc_table)?,
            avail_ring: self.guest_address(avail_ring)?,
            used_ring: self.guest_address(used_ring)?,
            next_index: 0,
        };
        self.change_vring(index, |vring| vring.layout = Some(layout))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base);
        let base = base.map_err(|_| Error::InvalidOperation("no queue can begin there"))?;
        self.change_vring(index, |vring| vring.base = base)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.change_vring(index, |vring| vring.kick = None)?;
        Ok(VhostUserVringState::new(index, u32::from(self.vrings[index as usize].base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.change_vring(u32::from(index), |vring| vring.kick = fd.map(Arc::new))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.change_vring(u32::from(index), |vring| vring.call = fd.map(Arc::new))
    }

    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change_vring(index, |vring| vring.enabled = enable)
    }

    fn get_config(&mut self, offset: u32, len: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut space = [0; VHOST_USER_CONFIG_SIZE as usize];
        space[..8].copy_from_slice(&(self.store.len_bytes() / SECTOR_BYTES).to_le_bytes());
        let queues = self.vrings.len() as u16;
        space[CONFIG_QUEUES..CONFIG_QUEUES + 2].copy_from_slice(&queues.to_le_bytes());
        let part = space.get(offset as usize..).and_then(|rest| rest.get(..len as usize));
        part.map(<[u8]>::to_vec).ok_or(Error::InvalidOperation("past the configuration space"))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("nothing can be configured"))
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn postcopy_advice(&mut self) -> Result<File> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn postcopy_listen(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn postcopy_end(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn postcopy_ack_mem_regions(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn session() -> Session {
        let (socket, _) = UnixStream::pair().unwrap();
        let store = Arc::new(Store::open(None).unwrap());
        Session::new(socket, Wait::Blocking, store, 2)
    }

    fn region(len_bytes: u64) -> (VhostUserMemoryRegion, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len_bytes).unwrap();
        (VhostUserMemoryRegion::new(0x1000, len_bytes, 0x9000, 0), file)
    }

    #[test]
    fn memory_that_is_not_there_is_refused() {
        let mut session = session();
        let (mut layout, file) = region(8192);
        layout.memory_size += 1;
        assert!(session.add_region(layout, file).is_err());
        let (mut layout, file) = region(8192);
        layout.mmap_offset = u64::MAX;
        assert!(session.add_region(layout, file).is_err());
        for _ in 0..MAX_REGIONS {
            let (layout, file) = region(8192);
            session.add_region(layout, file).unwrap();
        }
        let (layout, file) = region(8192);
        assert!(session.add_region(layout, file).is_err(), "one too many");
    }

    #[test]
    fn addresses_of_the_front_end_are_those_of_its_regions() {
        let mut session = session();
        let (layout, file) = region(8192);
        session.add_region(layout, file).unwrap();
        assert_eq!(session.guest_address(0x9000).unwrap(), 0x1000);
        assert_eq!(session.guest_address(0x9000 + 8191).unwrap(), 0x1000 + 8191);
        for addr in [0, 0x8fff, 0x9000 + 8192, u64::MAX] {
            assert!(session.guest_address(addr).is_err(), "{addr:#x}");
        }
        let flags = VhostUserVringAddrFlags::empty;
        assert!(session.set_vring_addr(0, flags(), 0x9000, 0, 0x9000, 0).is_err());
        session.set_vring_addr(1, flags(), 0x9000, 0xa000, 0x9800, 0).unwrap();
        assert!(session.set_vring_addr(2, flags(), 0x9000, 0xa000, 0x9800, 0).is_err());
    }

    #[test]
    fn a_queue_that_is_broken_ends_the_connection() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let store = Arc::new(Store::open(None).unwrap());
        let mut session = Session::new(ours, Wait::Blocking, store, 1);
        let (layout, file) = region(8192);
        // Of the available ring, the index: more than the queue has entries.
        file.write_all_at(&9u16.to_le_bytes(), 4096 + 2).unwrap();
        session.set_features(F_VERSION_1 | F_PROTOCOL).unwrap();
        session.add_region(layout, file).unwrap();
        session.set_vring_num(0, 8).unwrap();
        let flags = VhostUserVringAddrFlags::empty();
        session.set_vring_addr(0, flags, 0x9000, 0x9800, 0xa000, 0).unwrap();
        let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        session.set_vring_kick(0, Some(File::from(kick))).unwrap();
        session.set_vring_enable(0, true).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        let error = session.stop().unwrap_err().to_string();
        assert!(error.contains("9 requests in a queue of 8"), "{error}");
    }

    #[test]
    fn sizes_features_and_parts_that_do_not_exist_are_refused() {
        let mut session = session();
        for size in [0, 3, MAX_QUEUE_SIZE * 2, u32::MAX] {
            assert!(session.set_vring_num(0, size).is_err(), "{size}");
        }
        session.set_vring_num(1, 128).unwrap();
        assert!(
            session.set_vring_num(2, 128).is_err() && session.set_vring_base(0, 65_536).is_err()
        );
        assert!(session.set_features(1 << 35).is_err());
        let flags = VhostUserConfigFlags::empty();
        let capacity = session.get_config(0, 8, flags).unwrap();
        assert_eq!(capacity, (1u64 << 30 >> 9).to_le_bytes());
        assert_eq!(session.get_config(34, 2, flags).unwrap(), [2, 0]);
        for (offset, len) in [(0, VHOST_USER_CONFIG_SIZE + 1), (u32::MAX, 1)] {
            assert!(session.get_config(offset, len, flags).is_err());
        }
    }
}
