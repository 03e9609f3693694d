//! [`VhostUserBlkExportType`]: nodes as disks of virtual machines in other processes, for [`coblk_export`].

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use coblk_aio::net::{Listener, SocketAddress, SocketError};
use coblk_aio::{AioHandle, Co, PoolShare};
use coblk_block::{Device, ErrorAction, IoStatus};
use coblk_export::{Export, ExportError, ExportOptions, ExportType, Exporting, RemoveMode};
use coblk_qapi::{Error, Size};
use coblk_virtio_blk::VirtioBlkConfig;
use serde::{Deserialize, Serialize};

use crate::export::VhostUserBlk;
use crate::options::VhostUserBlkOptions;

/// Bytes of a serial number.
const MAX_SERIAL_BYTES: usize = 20;
/// The largest block.
const MAX_BLOCK_BYTES: u64 = 2 << 20;

/// The type `vhost-user-blk` of exports, on sockets that `S` makes: a program may have some that it was
/// started with.
///
/// ```
/// use coblk_export::ExportTypes;
/// use coblk_vhost_user_blk::{Bind, VhostUserBlkExportType};
///
/// let mut types = ExportTypes::new();
/// types.add(VhostUserBlkExportType::new(Bind));
/// assert_eq!(types.names(), ["vhost-user-blk"]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct VhostUserBlkExportType<S = Bind>(S);

/// Where the sockets of exports come from.
pub trait Sockets: 'static {
    /// Listens at the address of an export, which is a unix socket or a descriptor. May suspend.
    ///
    /// # Errors
    /// What cannot be bound, or is not there.
    fn co_listen(&self, co: &Co<'_>, address: &SocketAddress) -> Result<Listener, SocketError>;

    /// The export has begun at that address, and will not be refused any more.
    fn taken_over(&self, _address: &SocketAddress) {}
}

/// Sockets that are bound at their addresses, by a worker thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bind;

impl Sockets for Bind {
    fn co_listen(&self, co: &Co<'_>, address: &SocketAddress) -> Result<Listener, SocketError> {
        PoolShare::once(co, || Listener::bind(address))
    }
}

impl<S: Sockets> VhostUserBlkExportType<S> {
    /// One whose sockets these are.
    pub fn new(sockets: S) -> VhostUserBlkExportType<S> {
        VhostUserBlkExportType(sockets)
    }
}

/// A disk for a virtual machine in another process: QAPI's `BlockExportOptionsVhostUserBlk`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VhostUserBlkExportOptions {
    /// `addr`: where front ends connect; `unix` or `fd`.
    pub addr: SocketAddress,
    /// `logical-block-size` in bytes; 512 by default.
    pub logical_block_size: Option<Size>,
    /// `num-queues`; 1 by default.
    pub num_queues: Option<u16>,
    /// `serial`: what the disk calls itself, in at most 20 bytes; by default the id of the export, as far as
    /// there is room for it. Not in QEMU, all of whose disks are called the same.
    pub serial: Option<String>,
}

/// An export over vhost-user.
struct VhostUserBlkExport {
    /// Until it is closed.
    disk: RefCell<Option<VhostUserBlk>>,
    device: Device,
    contexts: Vec<AioHandle>,
    status: Arc<Status>,
}

/// An [`IoStatus`] that the contexts of the queues set.
#[derive(Default)]
struct Status(AtomicU8);

impl Status {
    fn set(&self, status: IoStatus) {
        self.0.store(status as u8, Ordering::Relaxed);
    }

    fn load(&self) -> IoStatus {
        let all = [IoStatus::Ok, IoStatus::Failed, IoStatus::NoSpace];
        let number = self.0.load(Ordering::Relaxed);
        all.into_iter().find(|status| *status as u8 == number).unwrap_or_default()
    }
}

impl<S: Sockets> ExportType for VhostUserBlkExportType<S> {
    const NAME: &'static str = "vhost-user-blk";
    type Options = VhostUserBlkExportOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        vhost: VhostUserBlkExportOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        let (co, options) = (exporting.co, exporting.options);
        let device = config(options, &vhost)?;
        let is_local = matches!(vhost.addr, SocketAddress::Unix(_) | SocketAddress::Fd(_));
        let listener = match is_local {
            true => self.0.co_listen(co, &vhost.addr),
            false => Err(SocketError::UnixOnly),
        };
        let listener = listener.map_err(ExportError::of_type)?;
        let status = Arc::new(Status::default());
        let (told, reporter) = (Arc::clone(&status), exporting.reporter.clone());
        let device_options = VhostUserBlkOptions {
            device,
            read_only: !options.writable,
            allow_inactive: options.allow_inactive,
            contexts: exporting.contexts.to_vec(),
            paused: true,
            error_listener: Some(Arc::new(move |event| {
                if event.action == ErrorAction::Stop {
                    let no_space = event.is_no_space();
                    told.set(if no_space { IoStatus::NoSpace } else { IoStatus::Failed });
                }
                reporter.report(event);
            })),
        };
        let disk =
            VhostUserBlk::from_listener(co.context(), listener, exporting.node, device_options)
                .map_err(ExportError::of_type)?;
        self.0.taken_over(&vhost.addr);
        let (device, contexts) = (disk.device(), exporting.contexts.to_vec());
        Ok(Box::new(VhostUserBlkExport {
            disk: RefCell::new(Some(disk)),
            device,
            contexts,
            status,
        }))
    }
}

/// The disk, as front ends see it.
fn config(
    options: &ExportOptions,
    vhost: &VhostUserBlkExportOptions,
) -> Result<VirtioBlkConfig, Error> {
    let block_bytes = vhost.logical_block_size.map_or(512, |size| size.0);
    let is_size = block_bytes.is_power_of_two() && (512..=MAX_BLOCK_BYTES).contains(&block_bytes);
    if !is_size {
        return Err(Error::other(format!(
            "parameter logical-block-size must be a power of 2 between 512 and {MAX_BLOCK_BYTES}"
        )));
    }
    let num_queues = vhost.num_queues.unwrap_or(1);
    if num_queues == 0 {
        return Err(Error::other("num-queues must be greater than 0"));
    }
    Ok(VirtioBlkConfig::default()
        .name(options.id.clone())
        .serial(serial(options, vhost)?)
        .num_queues(num_queues)
        .logical_block_bytes(block_bytes as u32)
        .physical_block_bytes(block_bytes as u32)
        .write_cache(!options.writethrough)
        .error_policies(Some(options.error_policies())))
}

fn serial(options: &ExportOptions, vhost: &VhostUserBlkExportOptions) -> Result<String, Error> {
    if let Some(serial) = &vhost.serial {
        return match serial.len() <= MAX_SERIAL_BYTES {
            true => Ok(serial.clone()),
            false => Err(Error::other("parameter serial must not be longer than 20 bytes")),
        };
    }
    let mut end = options.id.len().min(MAX_SERIAL_BYTES);
    while !options.id.is_char_boundary(end) {
        end -= 1;
    }
    Ok(options.id[..end].to_owned())
}

impl Export for VhostUserBlkExport {
    fn device(&self) -> Device {
        self.device
    }

    fn begin(&self) {
        self.disk.borrow().iter().for_each(VhostUserBlk::begin);
    }

    fn is_in_use(&self) -> bool {
        self.disk.borrow().as_ref().is_some_and(VhostUserBlk::is_in_use)
    }

    fn co_close(&self, co: &Co<'_>) {
        let Some(device) = self.disk.take() else { return };
        if let Err(error) = device.co_remove(co, RemoveMode::Hard) {
            tracing::error!(export = device.name(), %error, "cannot remove an export");
        }
        drop(device);
        // The devices end on their contexts before what is asked of these now.
        co.yield_now();
        for context in &self.contexts {
            // Fails if the context is gone, and its device with it.
            let _ = co.block_on(context.spawn("export closed", |_| ()));
        }
    }

    fn io_status(&self) -> IoStatus {
        self.status.load()
    }

    fn resume(&self) {
        self.status.set(IoStatus::Ok);
        self.disk.borrow().iter().for_each(VhostUserBlk::resume);
    }

    fn report_errors(&self) {
        // A device that is reset does that.
    }
}
