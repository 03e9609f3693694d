//! Checks of images that nodes have open.

use std::io::ErrorKind;
use std::sync::Arc;

use coblk::Co;
use coblk::block::{CheckReport, NodeUse, NodeUser, Permissions, Repair};

use super::{Daemon, DaemonError};
use crate::options::OptionError;

/// The check, as a user of its node.
struct Check;

impl NodeUser for Check {
    fn name(&self) -> String {
        "x-coblk-check".to_owned()
    }
}

impl Daemon {
    /// `x-coblk-check`: checks the image of a node, and mends what `repair` names. Requests go on
    /// meanwhile, as far as the format can bear them; drains of the node interrupt it, and it begins again. The end of
    /// the daemon ends it.
    ///
    /// # Errors
    /// If there is no such node, or its driver is no format; if it is to be mended and is read-only; of a
    /// check that does not come to its end.
    pub fn check(
        &self,
        co: &Co<'_>,
        node_name: &str,
        repair: Repair,
    ) -> Result<CheckReport, DaemonError> {
        let _command = self.begin_command("x-coblk-check")?;
        let node = self.blockdevs.node(node_name).ok_or_else(|| DaemonError::NoSuchDevice {
            device: String::new(),
            node_name: node_name.to_owned(),
        })?;
        if repair != Repair::None && node.is_read_only() {
            return Err(OptionError::other(format!("Node '{node_name}' is read-only")).into());
        }
        let held = match repair {
            Repair::None => Permissions::CONSISTENT_READ,
            Repair::Leaks | Repair::All => Permissions::CONSISTENT_READ | Permissions::WRITE,
        };
        let used = NodeUse::co_new(co, Arc::new(Check), &node, held, Permissions::all());
        let used = used.map_err(|error| OptionError::other(error.to_string()))?;
        let checked = node
            .co_image(co)
            .and_then(|image| co.while_wanted(&self.checks, || image.co_check(co, repair)));
        used.co_end(co);
        checked.map_err(|source| match source.kind() {
            ErrorKind::Unsupported => {
                let why = format!("Node '{node_name}' has no image format that can do that");
                OptionError::other(why).into()
            }
            _ => DaemonError::Io { what: "the image cannot be checked", source },
        })
    }
}
