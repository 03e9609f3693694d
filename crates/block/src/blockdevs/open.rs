//! One node on its way from options.

use std::sync::Arc;

use coblk_aio::Co;

use super::Blockdevs;
use crate::drivers::{File, FileOpenError, FileOptions, Null, Raw};
use crate::filters::blkdebug::{BlkDebug, Rules};
use crate::filters::blklogwrites::BlkLogWrites;
use crate::filters::throttle::Throttle;
use crate::node::{BlockNode, NodeState};
use crate::node_info::{CacheMode, DetectZeroes};
use crate::options::{
    BlockdevError, DriverOptions, NodeOptions, NodeRef, NullOptions, check_log_sector,
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
    pub(super) fn for_child(self, role: &str) -> Inherited {
        // What reaches this node shall reach what it stands on.
        let child = Inherited { unmap: true, ..self };
        match role {
            // It is written to, whatever is done with the node itself.
            "log" => Inherited { read_only: false, auto_read_only: false, ..child },
            _ => child,
        }
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
}

impl Opening<'_, '_> {
    pub(super) fn co_open(&self, options: &NodeOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let node = match &options.driver {
            DriverOptions::File(file) | DriverOptions::HostDevice(file) => {
                let filename = &file.filename;
                if filename.as_os_str().is_empty() {
                    return Err(self.invalid("filename", "a file has a name".to_owned()));
                }
                let pool = self.co.context().thread_pool();
                let file = self.own.open_file(&options.driver, |options| {
                    pool.submit_co(self.co, || options.open(filename))
                });
                let file = file.map_err(|source| BlockdevError::File { node: self.node(), source });
                BlockNode::new(self.name, file?)
            }
            DriverOptions::Raw(raw) => {
                let raw = Raw::part(self.child("file", &raw.file)?, raw.offset, raw.size);
                BlockNode::new(self.name, raw.map_err(|error| self.refused(error))?)
            }
            DriverOptions::NullCo(options) => BlockNode::new(self.name, null(options)),
            DriverOptions::NullAio(options) => {
                BlockNode::new(self.name, null(options).deferred(true))
            }
            DriverOptions::Throttle(throttle) => {
                let group = self.blockdevs.known_group(&throttle.throttle_group)?;
                BlockNode::new(
                    self.name,
                    Throttle::new(self.child("file", &throttle.file)?, &group),
                )
            }
            DriverOptions::BlkDebug(debug) => {
                let rules = Rules::new(0);
                for inject in &debug.inject_error {
                    rules.add(inject.rule());
                }
                let constraints = &debug.constraints;
                let (take, unshare) = (constraints.take, constraints.unshare);
                let limits =
                    constraints.limits().map_err(|(option, why)| self.invalid(option, why))?;
                let filter = BlkDebug::new(self.child("image", &debug.image)?, rules);
                BlockNode::new(self.name, filter.constrained(limits, take, unshare))
            }
            DriverOptions::BlkLogWrites(options) => {
                let log_sector_size = options.log_sector_size;
                check_log_sector(log_sector_size.map(u64::from))
                    .map_err(|why| self.invalid("log-sector-size", why))?;
                let file = self.child("file", &options.file)?;
                let log = self.child("log", &options.log)?;
                let filter = match log_sector_size {
                    Some(size) => BlkLogWrites::with_sectors(self.co, file, log, size),
                    None => BlkLogWrites::create(self.co, file, log),
                };
                let failed = |source| BlockdevError::Io { node: self.node(), source };
                BlockNode::new(self.name, filter.map_err(failed)?)
            }
        };
        node.swap_state(self.own.node_state());
        Ok(node)
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
    fn child(&self, role: &str, child: &NodeRef) -> Result<Arc<BlockNode>, BlockdevError> {
        let wanted = self.own.for_child(role);
        let child = match child {
            NodeRef::Name(name) => self.blockdevs.known_node(name)?,
            NodeRef::Options(options) => {
                self.blockdevs.co_open_node(self.co, (**options).clone(), wanted)?
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
