//! [`FuseExportType`]: nodes as regular files, for [`coblk_export`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, PoolShare};
use coblk_block::{Device, IoStatus, Permissions};
use coblk_export::{Export, ExportError, ExportType, Exporting};
use serde::{Deserialize, Serialize};

use crate::file::{File, Rules};
use crate::mount::{Mount, MountError, join};
use crate::mountpoint::{prepare, resolve};
use crate::queue::MAX_IN_FLIGHT;
use crate::ring::Share;
use crate::station::{Plan, Station};

/// Requests that the kernel may have under way, over all contexts.
const MAX_BACKGROUND: usize = 1024;

/// The type `fuse` of exports: a node as a regular file, mounted over one that is there. It knows where its
/// exports are mounted.
///
/// ```
/// use coblk_export::ExportTypes;
/// use coblk_fuse::FuseExportType;
///
/// let mut types = ExportTypes::new();
/// types.add(FuseExportType::default());
/// assert_eq!(types.names(), ["fuse"]);
/// ```
#[derive(Debug, Default)]
pub struct FuseExportType {
    mounted: Places,
}

/// Paths of mount points.
type Places = Rc<RefCell<BTreeSet<PathBuf>>>;

/// Whether other users reach a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowOther {
    /// Only the daemon's user does.
    Off,
    /// Other users do, as the file's permissions say.
    On,
    /// Other users do, unless that is not allowed. The default.
    #[default]
    Auto,
}

/// A file: QAPI's `BlockExportOptionsFuse`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FuseExportOptions {
    /// `mountpoint`: a regular file, which the export covers while it is there.
    pub mountpoint: String,
    /// `growable`: whether writes behind the end make the node longer; no by default.
    pub growable: Option<bool>,
    /// `allow-other`: whether other users reach the file.
    pub allow_other: Option<AllowOther>,
    /// `io-uring`: whether requests come over io_uring, where the kernel has that; no by default.
    pub io_uring: Option<bool>,
}

impl ExportType for FuseExportType {
    const NAME: &'static str = "fuse";
    type Options = FuseExportOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: FuseExportOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        let (co, common) = (exporting.co, exporting.options);
        let path = PoolShare::once(co, || resolve(&options.mountpoint));
        let place = Place::take(&self.mounted, path.map_err(ExportError::of_type)?)?;
        let growable = options.growable == Some(true);
        let rules =
            Rules { writable: common.writable, growable, writethrough: common.writethrough };
        let allow_other = options.allow_other.unwrap_or_default();
        let mounted = PoolShare::once(co, || mount(&place.path, allow_other));
        let (mut mount, device, shared) = mounted.map_err(ExportError::of_type)?;
        let mut backend = exporting.backend_options();
        if rules.writable && rules.growable {
            let held = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
            backend = backend.permissions(held, Permissions::all());
        }
        let own = [co.context().handle()];
        let homes = if exporting.contexts.is_empty() { &own } else { exporting.contexts };
        let file = Arc::new(File::new(rules, shared));
        let plan = Plan {
            file: Arc::clone(&file),
            node: Arc::clone(exporting.node),
            device: backend.device(),
            backend,
            policies: common.error_policies(),
            reporter: exporting.reporter.clone(),
            is_alone: homes.len() == 1,
            max_background: (MAX_IN_FLIGHT * homes.len()).min(MAX_BACKGROUND) as u16,
            share: None,
        };
        let graph_device = plan.device;
        match start(co, homes, &plan, device, options.io_uring == Some(true)) {
            Ok(stations) => Ok(Box::new(FuseExport {
                file,
                device: graph_device,
                open: RefCell::new(Some(Open { stations, mount, _place: place })),
            })),
            Err(refused) => {
                PoolShare::once(co, || mount.unmount());
                Err(refused)
            }
        }
    }
}

/// Mounts; says whether other users reach the file.
fn mount(
    path: &Path,
    allow_other: AllowOther,
) -> Result<(Mount, std::os::fd::OwnedFd, bool), MountError> {
    prepare(path)?;
    if allow_other != AllowOther::Off {
        match Mount::new(path, true) {
            Ok((mount, device)) => return Ok((mount, device, true)),
            Err(error) if allow_other == AllowOther::On => return Err(error),
            Err(error) => tracing::debug!(%error, "not for other users"),
        }
    }
    Mount::new(path, false).map(|(mount, device)| (mount, device, false))
}

/// A queue on each context.
fn start(
    co: &Co<'_>,
    homes: &[AioHandle],
    plan: &Plan,
    device: std::os::fd::OwnedFd,
    has_rings: bool,
) -> Result<Vec<Station>, ExportError> {
    let mut devices = Vec::new();
    for _ in 1..homes.len() {
        devices.push(join(&device).map_err(|error| {
            ExportError::of_type(format!("cannot open /dev/fuse for another thread: {error}"))
        })?);
    }
    devices.push(device);
    let both = homes.iter().zip(devices);
    let mut stations = Vec::new();
    for (first, (home, device)) in both.enumerate() {
        let share = has_rings.then_some(Share { first, step: homes.len() });
        match Station::co_start(co, home, Plan { share, ..plan.clone() }, device) {
            Ok(station) => stations.push(station),
            Err(refused) => {
                close_all(co, stations);
                return Err(refused);
            }
        }
    }
    let callers: Vec<_> = stations.iter().map(Station::caller).collect();
    plan.file.set_queues(move |call| callers.iter().for_each(|tell| tell(call)));
    Ok(stations)
}

fn close_all(co: &Co<'_>, stations: Vec<Station>) {
    let ends: Vec<_> = stations.into_iter().map(Station::close).collect();
    for end in ends {
        // Fails if the context is gone, and the queue with it.
        let _ = co.block_on(end);
    }
}

/// A path where nothing else of this type is mounted meanwhile.
struct Place {
    path: PathBuf,
    taken: Places,
}

impl Place {
    fn take(taken: &Places, path: PathBuf) -> Result<Place, ExportError> {
        if !taken.borrow_mut().insert(path.clone()) {
            let text = format!("There already is a FUSE export on '{}'", path.display());
            return Err(ExportError::of_type(text));
        }
        Ok(Place { path, taken: Rc::clone(taken) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.borrow_mut().remove(&self.path);
    }
}

/// A file.
struct FuseExport {
    file: Arc<File>,
    device: Device,
    /// Until it is closed.
    open: RefCell<Option<Open>>,
}

struct Open {
    stations: Vec<Station>,
    mount: Mount,
    _place: Place,
}

impl FuseExport {
    fn each(&self, tell: impl Fn(&Station)) {
        self.open.borrow().iter().flat_map(|open| &open.stations).for_each(tell);
    }
}

impl Export for FuseExport {
    fn device(&self) -> Device {
        self.device
    }

    fn begin(&self) {
        self.each(Station::begin);
    }

    fn is_in_use(&self) -> bool {
        self.file.is_open()
    }

    fn io_status(&self) -> IoStatus {
        self.file.status()
    }

    fn resume(&self) {
        self.file.set_status(IoStatus::Ok);
        self.each(Station::resume);
    }

    fn report_errors(&self) {
        self.each(Station::report_errors);
    }

    /// Programs that open the path from now on find the file that was there before, even if a request hangs.
    /// Requests are served while it is unmounted: what is mapped may be written back. Then all that was read
    /// is answered, and the rest fails with the device.
    fn co_close(&self, co: &Co<'_>) {
        let Some(Open { stations, mut mount, _place }) = self.open.take() else { return };
        PoolShare::once(co, || mount.unmount());
        close_all(co, stations);
    }
}
