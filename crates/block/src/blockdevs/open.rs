//! One node on its way from options.

use std::cell::RefCell;
use std::sync::Arc;

use coblk_aio::{Co, PoolShare};

use super::Blockdevs;
use crate::driver::BlockDriver;
use crate::driver::mode::{CacheMode, DetectZeroes};
use crate::driver::role::ChildRole;
use crate::drivers::{File, FileOpenError, FileOptions, Null, Raw};
use crate::filter::blkdebug::{BlkDebug, Rules};
use crate::filter::blklogwrites::BlkLogWrites;
use crate::filter::throttle::Throttle;
use crate::graph::Child;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::{BlockNode, NodeState};
use crate::options::{
    BlkDebugOptions, BlkLogWritesOptions, BlockdevError, DriverOptions, FileNodeOptions,
    NodeOptions, NodeRef, NullOptions, RawOptions, SetState, ThrottleNodeOptions, check_log_sector,
};

/// What a child has from its parent, unless it says otherwise.
#[derive(Clone, Copy, Default)]
pub(super) struct Inherited {
    pub(super) read_only: bool,
    pub(super) auto_read_only: bool,
    pub(super) cache_direct: bool,
    pub(super) cache_no_flush: bool,
    pub(super) unmap: bool,
    pub(super) detect_zeroes: DetectZeroes,
    pub(super) force_share: bool,
}

impl Inherited {
    /// What holds for a node itself.
    pub(super) fn of(options: &NodeOptions, inherited: Inherited) -> Inherited {
        Inherited {
            read_only: options.read_only.unwrap_or(inherited.read_only),
            auto_read_only: options.auto_read_only.unwrap_or(inherited.auto_read_only),
            cache_direct: options.cache_direct.unwrap_or(inherited.cache_direct),
            cache_no_flush: options.cache_no_flush.unwrap_or(inherited.cache_no_flush),
            unmap: options.discard.unwrap_or(inherited.unmap),
            detect_zeroes: options.detect_zeroes.unwrap_or_default(),
            force_share: options.force_share.unwrap_or(inherited.force_share),
        }
    }

    /// Whether these go together.
    pub(super) fn check(self, node: &str) -> Result<(), BlockdevError> {
        let invalid = |option, why: &str| {
            let (node, why) = (node.to_owned(), why.to_owned());
            Err(BlockdevError::Invalid { node, option, why })
        };
        if self.detect_zeroes == DetectZeroes::Unmap && !self.unmap {
            return invalid("detect-zeroes", "'unmap' needs discard=unmap");
        }
        if self.force_share && !self.read_only {
            return invalid("force-share", "needs read-only=on");
        }
        Ok(())
    }

    /// What a child has from the node.
    pub(super) fn for_child(self, role: ChildRole) -> Inherited {
        // What reaches this node shall reach what it stands on.
        let child = Inherited { unmap: true, ..self };
        if role.is_own_storage() {
            return Inherited { read_only: false, auto_read_only: false, ..child };
        }
        if role.contains(ChildRole::COW) {
            return Inherited { read_only: true, auto_read_only: false, ..child };
        }
        child
    }

    /// What the node itself is told.
    pub(super) fn node_state(self) -> NodeState {
        let cache_mode = CacheMode { direct: self.cache_direct, no_flush: self.cache_no_flush };
        NodeState {
            read_only: self.read_only,
            discard: self.unmap,
            detect_zeroes: self.detect_zeroes,
            force_share: self.force_share,
            cache_mode,
        }
    }

    /// A node that is to be written stands on nodes that can be.
    pub(super) fn check_writable(self, node: &str, child: &BlockNode) -> Result<(), BlockdevError> {
        if child.is_read_only() && !self.read_only && !self.auto_read_only {
            let (node, child) = (node.to_owned(), child.name().to_owned());
            return Err(BlockdevError::ReadOnlyChild { node, child });
        }
        Ok(())
    }

    /// Opens an image, read-only if it may not be written to and that will do.
    pub(super) fn open_file<T>(
        self,
        driver: &DriverOptions,
        open: impl Fn(FileOptions) -> Result<T, FileOpenError>,
    ) -> Result<T, FileOpenError> {
        let mut options = File::options().direct(self.cache_direct).no_flush(self.cache_no_flush);
        if let DriverOptions::File(file) | DriverOptions::HostDevice(file) = driver {
            options = options.engine(file.aio).locking(file.locking);
        }
        if let DriverOptions::HostDevice(_) = driver {
            options = options.on_device();
        }
        match open(options.read_only(self.read_only)) {
            Err(error) if self.auto_read_only && is_refusal(&error) => {
                open(options.read_only(true))
            }
            opened => opened,
        }
    }
}

/// One node on its way.
pub(super) struct Opening<'a, 'co> {
    pub(super) blockdevs: &'a Blockdevs,
    pub(super) co: &'a Co<'co>,
    pub(super) name: &'a str,
    pub(super) own: Inherited,
    /// It is inactive from the start otherwise.
    pub(super) active: bool,
    /// On the nodes it will stand on, which are there: opening takes time.
    pub(super) pins: RefCell<Vec<Child>>,
    /// The nodes that were opened for it.
    pub(super) opened: RefCell<Vec<Arc<BlockNode>>>,
}

impl Opening<'_, '_> {
    /// Descriptions nest, and each level is on the stack: what a driver needs stays in its own
    /// function.
    pub(super) fn co_open(&self, options: &NodeOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let node = match &options.driver {
            DriverOptions::File(file) | DriverOptions::HostDevice(file) => {
                self.file(&options.driver, file)
            }
            DriverOptions::Raw(raw) => self.raw(raw),
            DriverOptions::NullCo(options) => self.made(null(options)),
            DriverOptions::NullAio(options) => self.made(null(options).deferred(true)),
            DriverOptions::Throttle(throttle) => self.throttle(throttle),
            DriverOptions::BlkDebug(debug) => self.blkdebug(debug),
            DriverOptions::BlkLogWrites(options) => self.blklogwrites(options),
        }?;
        node.swap_state(self.own.node_state());
        Ok(node)
    }

    #[inline(never)]
    fn made(&self, driver: impl BlockDriver) -> Result<Arc<BlockNode>, BlockdevError> {
        Ok(match self.active {
            true => BlockNode::try_new(self.name, driver),
            false => BlockNode::try_new_inactive(self.name, driver),
        }?)
    }

    #[inline(never)]
    fn file(
        &self,
        driver: &DriverOptions,
        FileNodeOptions { filename, .. }: &FileNodeOptions,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        if filename.as_os_str().is_empty() {
            return Err(self.invalid("filename", "a file has a name".to_owned()));
        }
        let open = |options: FileOptions| PoolShare::once(self.co, || options.open(filename));
        let file = self.own.open_file(driver, open);
        let file = file.map_err(|source| BlockdevError::File { node: self.node(), source });
        self.made(file?)
    }

    #[inline(never)]
    fn raw(&self, options: &RawOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let file = self.child(ChildRole::FILTER, &options.file)?;
        let raw = Raw::part(file, options.offset, options.size);
        self.made(raw.map_err(|error| self.refused(error))?)
    }

    #[inline(never)]
    fn throttle(&self, options: &ThrottleNodeOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let group = self.blockdevs.known_group(&options.throttle_group)?;
        self.made(Throttle::new(self.child(ChildRole::FILTER, &options.file)?, &group))
    }

    #[inline(never)]
    fn blkdebug(&self, options: &BlkDebugOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let BlkDebugOptions { image, inject_error, set_state, constraints } = options;
        let rules = Rules::new(0);
        for inject in inject_error {
            rules.add(inject.rule());
        }
        for SetState { event, state, new_state } in set_state {
            rules.set_state_when(*event, *state, *new_state);
        }
        let (take, unshare) = (constraints.take, constraints.unshare);
        let limits = constraints.limits().map_err(|(option, why)| self.invalid(option, why))?;
        let filter = BlkDebug::new(self.child(ChildRole::FILTER, image)?, rules);
        self.made(filter.constrained(limits, take, unshare))
    }

    #[inline(never)]
    fn blklogwrites(&self, options: &BlkLogWritesOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let file = self.child(ChildRole::FILTER, &options.file)?;
        let log = self.child(ChildRole::METADATA, &options.log)?;
        let log_sector_size = options.log_sector_size;
        check_log_sector(log_sector_size.map(u64::from))
            .map_err(|why| self.invalid("log-sector-size", why))?;
        let filter = match log_sector_size {
            Some(size) => BlkLogWrites::with_sectors(self.co, file, log, size),
            None => BlkLogWrites::create(self.co, file, log),
        };
        let failed = |source| BlockdevError::Io { node: self.node(), source };
        self.made(filter.map_err(failed)?)
    }

    /// It is not opened: nor is what was opened for it.
    pub(super) fn close_children(&self) {
        for child in self.opened.take() {
            co_close_if_unused(self.co, &child);
        }
    }

    fn node(&self) -> String {
        self.name.to_owned()
    }

    fn invalid(&self, option: &'static str, why: String) -> BlockdevError {
        BlockdevError::Invalid { node: self.node(), option, why }
    }

    fn refused(&self, error: impl std::error::Error + Send + Sync + 'static) -> BlockdevError {
        BlockdevError::Driver { node: self.node(), source: Box::new(error) }
    }

    /// A child that is there, or is opened now.
    fn child(&self, role: ChildRole, child: &NodeRef) -> Result<Arc<BlockNode>, BlockdevError> {
        let wanted = self.own.for_child(role);
        let child = match child {
            NodeRef::Name(name) => {
                let (node, pin) = self.blockdevs.pinned_node(name)?;
                self.pins.borrow_mut().push(pin);
                node
            }
            NodeRef::Options(options) => {
                let node = self.blockdevs.co_open_node(self.co, options, wanted)?;
                self.opened.borrow_mut().push(Arc::clone(&node));
                node
            }
        };
        wanted.check_writable(self.name, &child)?;
        Ok(child)
    }
}

fn null(options: &NullOptions) -> Null {
    let null = Null::new(options.size).read_zeroes(options.read_zeroes);
    null.latency_ns(options.latency_ns)
}

/// Whether an image may be opened, but not for writing.
fn is_refusal(error: &FileOpenError) -> bool {
    let FileOpenError::Open { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM))
}
