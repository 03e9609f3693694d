//! One front end, from its first message to its last: [`Session`] answers the messages that the
//! vhost crate reads. It runs on the control thread of the connection.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::EventNotifier;
use coblk_virtio_blk::Interrupt;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::channel::{Channel, acknowledge};
use crate::config::{self, ConfigRequest};
use crate::device::DeviceHandle;
use crate::handover::GET_VRING_BASE_SKIP_DRAIN;
use crate::inflight::InflightMemory;
use crate::memory::{MAX_REGIONS, Shown};
use crate::messages::SET_BACKEND_REQ_FD;
use crate::notifier::from_front_end;
use crate::postcopy::Postcopy;
use crate::vring::{Kick, RingAddresses, Vring};

/// What all sessions of an export share.
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) device: coblk_block::Device,
    /// One a context; queue `i` is on the one at `i` modulo their number.
    pub(crate) devices: Vec<DeviceHandle>,
    /// Of virtio and virtio-blk.
    pub(crate) features: u64,
    pub(crate) num_queues: u16,
    pub(crate) queue_size_max: u16,
    /// Whether a guest may come before its memory.
    pub(crate) postcopy: bool,
    /// Sectors of each device: they hear of a new length one by one.
    pub(crate) capacities: Vec<AtomicU64>,
    /// Sectors that the front end knows of.
    pub(crate) told: AtomicU64,
    /// Where the front end is told that its configuration space has changed.
    pub(crate) channel: Channel,
}

impl Offer {
    /// Has each device say when its capacity changes, also when no front end is connected. One whose
    /// queue the front end breaks shuts `connection` down.
    pub(crate) fn watch_devices(
        self: &Arc<Offer>,
        connection: Option<&UnixStream>,
    ) -> std::io::Result<()> {
        for (index, device) in self.devices.iter().enumerate() {
            let connection = connection.map(UnixStream::try_clone).transpose()?;
            let offer = Arc::downgrade(self);
            device.tell(move |_, device| {
                let me = Rc::downgrade(device);
                if let Some(offer) = offer.upgrade() {
                    offer.capacity_changed(index, device.capacity_sectors());
                }
                device.set_config_interrupt(Interrupt::callback(move |_| {
                    let Some(device) = me.upgrade() else { return };
                    if let Some(connection) = connection.as_ref().filter(|_| device.needs_reset()) {
                        let _ = connection.shutdown(std::net::Shutdown::Both);
                    } else if let Some(offer) = offer.upgrade() {
                        offer.capacity_changed(index, device.capacity_sectors());
                    }
                }));
            });
        }
        Ok(())
    }

    /// A device has a new capacity. The front end is told once all have it, so that none refuses
    /// what it may address now, and by one of them.
    fn capacity_changed(&self, device: usize, sectors: u64) {
        self.capacities[device].store(sectors, Ordering::SeqCst);
        if self.capacities.iter().all(|it| it.load(Ordering::SeqCst) == sectors)
            && self.told.swap(sectors, Ordering::SeqCst) != sectors
        {
            self.channel.config_changed();
        }
    }
}

/// The state of one connection.
pub(crate) struct Session {
    offer: Arc<Offer>,
    pub(crate) socket: UnixStream,
    pub(crate) vrings: Vec<Vring>,
    pub(crate) shown: Shown,
    /// Told when dirty pages were marked.
    pub(crate) log_notifier: Option<EventNotifier>,
    pub(crate) protocol: VhostUserProtocolFeatures,
    pub(crate) postcopy: Postcopy,
}

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

impl Session {
    /// A session over `socket`. A device whose queue the front end breaks shuts it down.
    pub(crate) fn new(offer: &Arc<Offer>, socket: UnixStream) -> std::io::Result<Session> {
        offer.watch_devices(Some(&socket))?;
        let device = |index: u16| {
            let devices = &offer.devices;
            devices[usize::from(index) % devices.len()].clone()
        };
        let vrings = (0..offer.num_queues).map(|index| Vring::new(index, device(index))).collect();
        let (offer, shown) = (Arc::clone(offer), Shown::default());
        let protocol = VhostUserProtocolFeatures::empty();
        let postcopy = Postcopy::default();
        Ok(Session { offer, socket, vrings, shown, log_notifier: None, protocol, postcopy })
    }

    pub(crate) fn name(&self) -> &str {
        &self.offer.name
    }

    /// The front end has sent a socket to be told of changes on.
    pub(crate) fn set_channel(&mut self, channel: UnixStream, answer: bool) -> Result<()> {
        if !self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            return Err(Error::InvalidOperation("a channel that was not negotiated"));
        }
        self.offer.channel.replace(Some(channel));
        self.acknowledge(SET_BACKEND_REQ_FD, answer)
    }

    /// Says that a request was done, if the front end wants an answer.
    pub(crate) fn acknowledge(&self, request: u32, wanted: bool) -> Result<()> {
        let is_known = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        self.acknowledge_if(request, wanted && is_known)
    }

    pub(crate) fn acknowledge_if(&self, request: u32, wanted: bool) -> Result<()> {
        match wanted {
            true => acknowledge(&self.socket, request).map_err(Error::SocketError),
            false => Ok(()),
        }
    }

    /// The front end asks for a part of the configuration space.
    pub(crate) fn answer_config(&mut self, asked: &ConfigRequest) -> Result<()> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(Error::InvalidOperation("a configuration that was not negotiated"));
        }
        let space = self.ask(|device| device.config_space())?;
        asked.answer(&self.socket, &space).map_err(Error::SocketError)
    }

    /// Ends it: nothing of the front end's memory is touched after this.
    pub(crate) fn end(&mut self) {
        self.abandon_postcopy();
        let broken = self.offer.devices.iter().any(|device| {
            device.call(|_, device| device.needs_reset()).unwrap_or(false) //
        });
        if broken {
            for err in self.vrings.iter().filter_map(|vring| vring.err.as_ref()) {
                let _ = err.set();
            }
        }
        // What the next front end, or the next daemon, cannot find in the rings or in the log is
        // answered.
        let stopped = self.vrings.iter_mut().map(|vring| vring.stop_without_drain(&self.shown));
        let stopped = stopped.fold(Ok(()), Result::and);
        // The log is the next one's.
        self.shown.inflight = None;
        if let Err(error) = stopped.and(self.reset()) {
            tracing::warn!(export = self.offer.name, %error, "an export's context is gone");
        }
        // Devices keep no descriptor of a connection that is gone: this waits for them.
        let _ = self.offer.watch_devices(None);
        for device in &self.offer.devices {
            let _ = device.call(|_, _| ());
        }
        self.offer.channel.replace(None);
        self.shown = Shown::default();
    }

    /// The driver starts all over, and forgets what it has asked for.
    fn reset(&mut self) -> Result<()> {
        let reset = self.vrings.iter_mut().map(|vring| vring.reset(&self.shown));
        let reset = reset.fold(Ok(()), Result::and);
        self.shown.packed = None;
        for device in &self.offer.devices {
            device.call(|co, device| device.co_reset(co)).ok_or(Error::BackendInternalError)?;
        }
        reset
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        Ok(self.vring_and_shown(index)?.0)
    }

    pub(crate) fn vring_and_shown(&mut self, index: u32) -> Result<(&mut Vring, &Shown)> {
        let vring = self.vrings.get_mut(index as usize);
        let vring = vring.ok_or(Error::InvalidOperation("there is no such queue"))?;
        Ok((vring, &self.shown))
    }

    /// Starts the queues that have become complete.
    fn start_all(&mut self) -> Result<()> {
        self.vrings.iter_mut().try_for_each(|vring| vring.start(&self.shown, None))
    }

    /// Asks the first device: all of them agree.
    fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&coblk_virtio_blk::VirtioBlk) -> R + Send + 'static,
    ) -> Result<R> {
        let device = self.offer.devices.first();
        let answer = device.and_then(|device| device.call(|_, device| question(device)));
        answer.ok_or(Error::BackendInternalError)
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offer.features | PROTOCOL_FEATURES | LOG_ALL)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let accepted = features & !(PROTOCOL_FEATURES | LOG_ALL);
        self.choose_rings(accepted)?;
        for device in &self.offer.devices {
            let negotiated = device.call(move |_, device| device.negotiate(accepted));
            negotiated
                .ok_or(Error::BackendInternalError)?
                .map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
        }
        if features & PROTOCOL_FEATURES == 0 {
            // Such a front end does not enable queues one by one.
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        self.shown.log_all = features & LOG_ALL != 0;
        self.mark_there()?;
        self.start_all()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.show_all(regions, files)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.show_region(**region, file)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.hide_region(region)
    }

    fn postcopy_advice(&mut self) -> Result<File> {
        self.advise()
    }

    fn postcopy_listen(&mut self) -> Result<()> {
        self.listen()
    }

    fn postcopy_end(&mut self) -> Result<()> {
        self.end_postcopy()
    }

    fn postcopy_ack_mem_regions(&mut self) -> Result<()> {
        self.memory_is_acknowledged(0)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let max = u32::from(self.offer.queue_size_max);
        let vring = self.vring(index)?;
        if vring.is_running() || !num.is_power_of_two() || num > max {
            return Err(Error::InvalidOperation("no queue can have such a size now"));
        }
        vring.size = num as u16;
        self.start_all()
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc_table: u64,
        used_ring: u64,
        avail_ring: u64,
        log: u64,
    ) -> Result<()> {
        let (vring, shown) = self.vring_and_shown(index)?;
        let addresses = Some(RingAddresses { desc_table, avail_ring, used_ring });
        if vring.is_running() && vring.addresses != addresses {
            return Err(Error::InvalidOperation("a queue that runs cannot be moved"));
        }
        vring.addresses = addresses;
        vring.marked_at = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        vring.mark_there(shown)?;
        self.start_all()
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let (vring, shown) = self.vring_and_shown(index)?;
        vring.set_base(base, shown)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.stop_vring(index, self.stops_without_drain())?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.map(from_front_end).transpose()?.map_or(Kick::Poll, Kick::Notifier);
        let (vring, shown) = self.vring_and_shown(u32::from(index))?;
        let paused = vring.pause()?;
        vring.kick = Some(kick);
        vring.start(shown, paused)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = fd.map(from_front_end).transpose()?;
        self.vring(u32::from(index))?.set_call(call)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?.err = fd.map(from_front_end).transpose()?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let postcopy = match self.offer.postcopy {
            true => VhostUserProtocolFeatures::PAGEFAULT,
            false => VhostUserProtocolFeatures::empty(),
        };
        Ok(postcopy
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT
            | GET_VRING_BASE_SKIP_DRAIN)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_protocol_features()?.bits() != 0 {
            return Err(Error::InvalidOperation("protocol features that were not offered"));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_retain(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.offer.num_queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (vring, shown) = self.vring_and_shown(index)?;
        vring.enabled = enable;
        if enable { vring.start(shown, None) } else { vring.stop(shown) }
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // Taken before it comes here: see `messages.rs`.
        Err(Error::InvalidOperation("not a message that asks for the configuration"))
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        for device in &self.offer.devices {
            let (offset, data) = (config::offset_bytes(offset), data.to_vec());
            let written = device.call(move |_, device| device.write_config(offset as u64, &data));
            written.ok_or(Error::BackendInternalError)?;
        }
        Ok(())
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (num_queues, queue_size) = (wanted.num_queues, wanted.queue_size);
        if num_queues > self.offer.num_queues || queue_size > self.offer.queue_size_max {
            return Err(Error::InvalidOperation("more in flight than there are queues"));
        }
        InflightMemory::create(num_queues, queue_size, self.shown.packed != Some(false))
    }

    fn set_inflight_fd(&mut self, layout: &VhostUserInflight, file: File) -> Result<()> {
        let layout = *layout;
        self.change(|shown, socket| {
            shown.inflight = Some(Arc::new(InflightMemory::open(&layout, file, socket)?));
            Ok(())
        })?;
        self.note_inflight();
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _: Backend) {
        // One that came in an unusual way: see `channel.rs`.
        tracing::warn!(export = self.offer.name, "the front end will not be told of changes");
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no display"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk shares no objects"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("a disk has no state to transfer"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no state to transfer"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("a disk shows no memory"))
    }

    fn set_log_base(&mut self, layout: &VhostUserLog, file: File) -> Result<()> {
        self.open_log(layout, file)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Two devices that hear of a length at once both find that all have it; a new connection asks
    /// again.
    #[test]
    fn a_front_end_is_told_once_of_each_length() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let offer = Offer {
            name: "disk".to_owned(),
            device: coblk_block::BackendOptions::new("disk").device(),
            devices: Vec::new(),
            features: 0,
            num_queues: 2,
            queue_size_max: 64,
            postcopy: false,
            capacities: vec![AtomicU64::new(8), AtomicU64::new(8)],
            told: AtomicU64::new(8),
            channel: Channel::default(),
        };
        offer.channel.replace(Some(ours));
        for (device, sectors) in [(0, 8), (1, 8), (0, 9), (1, 9), (0, 9), (1, 9), (1, 8), (0, 8)] {
            offer.capacity_changed(device, sectors);
        }
        drop(offer);
        let mut messages = Vec::new();
        theirs.read_to_end(&mut messages).unwrap();
        assert_eq!(messages.len(), 2 * 12, "of 9, and of 8 again");
    }
}
