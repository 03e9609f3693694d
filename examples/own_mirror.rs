//! A storage daemon with a driver of its own that has a list of children: what is written goes to all of them,
//! what is read comes from the first that can be read. They are added and removed while it is in use.
//!
//! ```sh
//! cargo run --example own_mirror -- --blockdev null-co,node-name=a --blockdev null-co,node-name=b \
//!     --blockdev mirror,node-name=m,children.0=a,children.1=b \
//!     --chardev socket,id=c0,path=/tmp/qmp.sock,server=on,wait=off --monitor c0
//! ```

use std::io;
use std::process::ExitCode;

use coblk::block::options::{DriverOptions, NodeRef};
use coblk::block::{
    BlockDriver, ChildList, ChildRole, Driver, EdgeInfo, ListId, NewChild, OpenError, Opening,
    ReadFlags, WriteFlags,
};
use coblk::{Co, IoVector, IoVectorMut};
use coblk_storage_daemon::builder::DaemonBuilder;
use coblk_storage_daemon::daemon::Daemon;
use coblk_storage_daemon::run;
use serde::{Deserialize, Serialize};

fn main() -> ExitCode {
    run::main_with(builder(), std::env::args_os())
}

/// The daemon with the driver.
pub fn builder() -> DaemonBuilder {
    Daemon::builder().driver::<Mirror>()
}

/// What options say of it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct MirrorOptions {
    /// One or more nodes of the same length.
    children: Vec<NodeRef>,
}

impl DriverOptions for MirrorOptions {
    fn visit_list(&mut self, visit: &mut dyn FnMut(&str, &mut Vec<NodeRef>)) {
        visit("children", &mut self.children);
    }
}

/// The driver. During a request its children stay the same.
struct Mirror {
    children: ChildList,
    length: u64,
}

impl Driver for Mirror {
    const NAMES: &'static [&'static str] = &["mirror"];
    type Options = MirrorOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &MirrorOptions) -> Result<Mirror, OpenError> {
        let children = opening.co_list("children", ChildRole::FILTERED, &options.children)?;
        let lengths: Vec<u64> = children.load().iter().map(|child| child.length()).collect();
        match lengths[..] {
            [] => Err(OpenError::option("children", "there is none")),
            [length, ref others @ ..] if others.iter().all(|other| *other == length) => {
                Ok(Mirror { children, length })
            }
            _ => Err(OpenError::option("children", "they differ in length")),
        }
    }
}

impl BlockDriver for Mirror {
    fn format_name(&self) -> &'static str {
        "mirror"
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn child_list(&self) -> Option<ListId> {
        Some(self.children.id())
    }

    fn check_child(&self, edge: &EdgeInfo, new: Option<NewChild<'_>>) -> Result<(), String> {
        match new {
            Some(new) if new.length != self.length => Err("it differs in length".to_owned()),
            None if self.children.load().iter().all(|child| child.info() == edge) => {
                Err("it is the last one".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let mut result = Err(io::Error::from_raw_os_error(libc::EIO));
        for child in &*self.children.load() {
            result = child.co_preadv(co, offset, target, flags);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let children = self.children.load();
        children.iter().try_for_each(|child| child.co_pwritev(co, offset, source, flags))
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.children.load().iter().try_for_each(|child| child.co_flush(co))
    }
}
