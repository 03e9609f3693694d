//! One node on its way from options.

use std::sync::Arc;

use coblk_aio::Co;

use super::Blockdevs;
use crate::drivers::{File, FileOpenError, Null, Raw};
use crate::filters::blkdebug::{BlkDebug, Rules};
use crate::filters::blklogwrites::BlkLogWrites;
use crate::filters::throttle::Throttle;
use crate::node::BlockNode;
use crate::node_info::CacheMode;
use crate::options::{BlockdevError, DriverOptions, NodeOptions, NodeRef, shorten};

/// What a child has from its parent, unless it says otherwise.
#[derive(Clone, Copy, Default)]
pub(super) struct Inherited {
    pub(super) read_only: bool,
    pub(super) auto_read_only: bool,
    pub(super) cache_direct: bool,
    pub(super) cache_no_flush: bool,
    pub(super) unmap: bool,
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
    pub(super) fn co_open(&self, options: NodeOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let node = match options.driver {
            DriverOptions::File { filename, aio, locking, device } => {
                let file = File::options().direct(self.own.cache_direct).engine(aio);
                let file = file.locking(locking).no_flush(self.own.cache_no_flush);
                let file = if device { file.on_device() } else { file };
                let open = |read_only| {
                    let options = file.read_only(read_only);
                    let pool = self.co.context().thread_pool();
                    pool.submit_co(self.co, || options.open(&filename))
                };
                let opened = match open(self.own.read_only) {
                    Err(error) if self.own.auto_read_only && is_refusal(&error) => open(true),
                    opened => opened,
                };
                let file =
                    opened.map_err(|source| BlockdevError::File { node: self.node(), source });
                BlockNode::new(self.name, file?)
            }
            DriverOptions::Raw { file, offset, size } => {
                let raw = Raw::part(self.child(file)?, offset, size);
                BlockNode::new(self.name, raw.map_err(|error| self.refused(error))?)
            }
            DriverOptions::Null { size, read_zeroes, latency_ns, deferred } => {
                let null = Null::new(size).read_zeroes(read_zeroes).latency_ns(latency_ns);
                BlockNode::new(self.name, null.deferred(deferred))
            }
            DriverOptions::Throttle { file, throttle_group } => {
                let group = self.blockdevs.throttle_group(&throttle_group);
                let group =
                    group.ok_or_else(|| BlockdevError::NoSuchGroup(shorten(&throttle_group)))?;
                BlockNode::new(self.name, Throttle::new(self.child(file)?, &group))
            }
            DriverOptions::BlkDebug { image, inject_error } => {
                let rules = Rules::new(0);
                for inject in &inject_error {
                    rules.add(inject.rule());
                }
                BlockNode::new(self.name, BlkDebug::new(self.child(image)?, rules))
            }
            DriverOptions::BlkLogWrites { file, log } => {
                let (file, log) = (self.child(file)?, self.writable_child(log)?);
                let filter = BlkLogWrites::create(self.co, file, log);
                let failed = |source| BlockdevError::Io { node: self.node(), source };
                BlockNode::new(self.name, filter.map_err(failed)?)
            }
        };
        node.set_discard_enabled(self.own.unmap);
        let (direct, no_flush) = (self.own.cache_direct, self.own.cache_no_flush);
        node.set_cache_mode(CacheMode { direct, no_flush });
        if self.own.read_only {
            node.make_read_only();
        }
        Ok(node)
    }

    fn node(&self) -> String {
        self.name.to_owned()
    }

    fn refused(&self, error: impl std::error::Error + Send + Sync + 'static) -> BlockdevError {
        BlockdevError::Driver { node: self.node(), source: Box::new(error) }
    }

    /// A child that is there, or is opened now.
    fn child(&self, child: NodeRef) -> Result<Arc<BlockNode>, BlockdevError> {
        self.child_with(child, self.own)
    }

    /// A child that is written to, whatever is done with the node itself.
    fn writable_child(&self, child: NodeRef) -> Result<Arc<BlockNode>, BlockdevError> {
        self.child_with(child, Inherited { read_only: false, auto_read_only: false, ..self.own })
    }

    fn child_with(
        &self,
        child: NodeRef,
        wanted: Inherited,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        let child = match child {
            NodeRef::Name(name) => self
                .blockdevs
                .node(&name)
                .ok_or_else(|| BlockdevError::NoSuchNode(shorten(&name)))?,
            // What reaches this node shall reach what it stands on.
            NodeRef::Options(options) => self.blockdevs.co_open_node(
                self.co,
                *options,
                Inherited { unmap: true, ..wanted },
            )?,
        };
        if child.is_read_only() && !wanted.read_only && !wanted.auto_read_only {
            let (node, child) = (self.node(), child.name().to_owned());
            return Err(BlockdevError::ReadOnlyChild { node, child });
        }
        Ok(child)
    }
}

/// Whether an image may be opened, but not for writing.
fn is_refusal(error: &FileOpenError) -> bool {
    let FileOpenError::Open { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM))
}
