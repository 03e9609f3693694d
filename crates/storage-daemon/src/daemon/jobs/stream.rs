//! `block-stream`.

use std::rc::Rc;
use std::sync::Arc;

use coblk::jobs::{JobOptions, Stream, StreamError};
use coblk::{BlockNode, Co};

use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

impl Daemon {
    /// The node of the chain below `node` whose file has this name.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn backing_by_file(
        &self,
        node: &Arc<BlockNode>,
        file: &str,
    ) -> Result<Arc<BlockNode>, DaemonError> {
        let below = node.chain().into_iter().skip(1);
        let mut images = below.filter(|it| it.filter_child().is_none());
        let found = images.find(|it| it.driver().filename().is_some_and(|name| name == file));
        let missing = || OptionError::other(format!("Can't find '{file}' in the backing chain"));
        Ok(found.ok_or_else(missing)?)
    }

    /// A node that an argument names as one of a chain.
    ///
    /// # Errors
    /// If there is none of this name.
    pub(crate) fn node_of_chain(&self, name: &str) -> Result<Arc<BlockNode>, DaemonError> {
        self.blockdevs.node(name).ok_or_else(|| DaemonError::NoSuchDevice {
            device: String::new(),
            node_name: name.to_owned(),
        })
    }

    /// `block-stream`: copies what backing files of a node have to the node, in a job. It is running, or over, when
    /// this returns.
    ///
    /// # Errors
    /// If the options are wrong, the id is none or is taken, or other users of the nodes do not agree.
    pub fn block_stream(
        self: &Rc<Self>,
        co: &Co<'_>,
        stream: Stream,
        options: JobOptions,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("block-stream")?;
        stream.co_start(co, &self.jobs, options, &self.blockdevs)?;
        Ok(())
    }
}

impl From<StreamError> for DaemonError {
    fn from(error: StreamError) -> DaemonError {
        match error {
            StreamError::Blockdev(error) => error.into(),
            StreamError::Job(error) => error.into(),
            other => DaemonError::Stream(other),
        }
    }
}
