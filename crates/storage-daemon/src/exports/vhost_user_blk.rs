//! `vhost-user-blk`: a node as a disk of a virtual machine in another process.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use coblk::block::{Device, ErrorAction, IoStatus};
use coblk::export::{Export, ExportError, ExportType, Exporting, RemoveMode};
use coblk::vhost_user_blk::{VhostUserBlk, VhostUserBlkOptions};
use coblk::virtio_blk::VirtioBlkConfig;
use coblk::{AioHandle, Co};

use crate::options::{ExportOptions, OptionError, VhostUserBlkExportOptions};
use crate::sockets;

/// What QEMU's exports call themselves.
const SERIAL: &str = "vhost_user_blk";
/// The largest block.
const MOST_BLOCK_BYTES: u64 = 2 << 20;

/// The type `vhost-user-blk` of exports. It is here for the address that it listens at: the daemon's options
/// have it, and a socket may have come with the process.
pub struct VhostUserBlkExportType;

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

impl ExportType for VhostUserBlkExportType {
    const NAME: &'static str = "vhost-user-blk";
    type Options = VhostUserBlkExportOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        vhost: VhostUserBlkExportOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        let (co, options) = (exporting.co, exporting.options);
        let device = config(options, &vhost)?;
        let listener = sockets::co_listen_unix(co, &vhost.addr).map_err(ExportError::of_type)?;
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
        sockets::taken_over(&vhost.addr);
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
) -> Result<VirtioBlkConfig, OptionError> {
    let block_bytes = vhost.logical_block_size.map_or(512, |size| size.0);
    let is_size = block_bytes.is_power_of_two() && (512..=MOST_BLOCK_BYTES).contains(&block_bytes);
    if !is_size {
        return Err(OptionError::other(format!(
            "parameter logical-block-size must be a power of 2 between 512 and {MOST_BLOCK_BYTES}"
        )));
    }
    let num_queues = vhost.num_queues.unwrap_or(1);
    if num_queues == 0 {
        return Err(OptionError::other("num-queues must be greater than 0"));
    }
    Ok(VirtioBlkConfig {
        name: options.id.clone(),
        serial: SERIAL.to_owned(),
        num_queues,
        logical_block_bytes: block_bytes as u32,
        physical_block_bytes: block_bytes as u32,
        write_cache: !options.writethrough,
        error_policies: Some(options.error_policies()),
        ..VirtioBlkConfig::default()
    })
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
