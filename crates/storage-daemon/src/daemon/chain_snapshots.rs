//! External snapshots: overlays above nodes; and the names of backing files in headers.

use std::sync::Arc;

use coblk::block::{BackingName, ChangeLock, Parent, PreparedSnapshot, SnapshotError};
use coblk::options::NodeOptions;
use coblk::{BlockNode, Co};
use serde_json::{Value, json};

use super::{Daemon, DaemonError};
use crate::options::OptionError;

/// A new overlay for a node, in a file.
#[derive(Clone, Debug)]
pub struct NewOverlay {
    /// The node that gets it.
    pub node_name: String,
    /// The path of its file.
    pub file: String,
    /// The name of its node.
    pub overlay_name: Option<String>,
    /// The driver of its node.
    pub format: String,
    /// Whether its file is there, and has been made for this.
    pub exists: bool,
}

/// A snapshot that is prepared, as part of a command. It is committed or aborted.
#[must_use = "it is committed or aborted"]
pub struct PreparedOverlay {
    prepared: PreparedSnapshot,
    /// The node that was opened for it.
    opened: Option<String>,
}

impl PreparedOverlay {
    /// The snapshot stays, and its node becomes read-only.
    pub fn co_commit(self, co: &Co<'_>, change: &ChangeLock, daemon: &Daemon) {
        self.prepared.co_commit(co, change, &daemon.blockdevs);
    }

    /// The users turn back. A file that was made stays.
    pub fn co_abort(self, co: &Co<'_>, change: &ChangeLock, daemon: &Daemon) {
        self.prepared.co_abort(co, change);
        daemon.co_close_overlay(co, self.opened);
    }
}

fn refused(why: impl Into<String>) -> DaemonError {
    OptionError::other(why.into()).into()
}

impl Daemon {
    /// Prepares a snapshot of a node by an overlay that is open.
    ///
    /// # Errors
    /// If one of both is not there; as of [`coblk::Blockdevs::co_prepare_snapshot`].
    pub fn co_prepare_snapshot(
        &self,
        co: &Co<'_>,
        change: &ChangeLock,
        (node, overlay): (&str, &str),
    ) -> Result<PreparedOverlay, DaemonError> {
        let (node, overlay) = (self.device_node(node)?, self.device_node(overlay)?);
        let prepared = self.blockdevs.co_prepare_snapshot(co, change, &node, &overlay)?;
        Ok(PreparedOverlay { prepared, opened: None })
    }

    /// Prepares a snapshot of a node by a new overlay.
    ///
    /// # Errors
    /// If there is no such node, or the name of the overlay is taken, or it cannot be made or opened; as of
    /// [`coblk::Blockdevs::co_prepare_snapshot`].
    pub fn co_prepare_new_overlay(
        &self,
        co: &Co<'_>,
        change: &ChangeLock,
        new: &NewOverlay,
    ) -> Result<PreparedOverlay, DaemonError> {
        let node = self.snapshot_node(new)?;
        let overlay = self.co_make_overlay(co, &node, new)?;
        let opened = new.overlay_name.clone();
        self.co_prepare_made(co, change, (&node, &overlay), opened)
    }

    fn co_prepare_made(
        &self,
        co: &Co<'_>,
        change: &ChangeLock,
        (node, overlay): (&Arc<BlockNode>, &Arc<BlockNode>),
        opened: Option<String>,
    ) -> Result<PreparedOverlay, DaemonError> {
        match self.blockdevs.co_prepare_snapshot(co, change, node, overlay) {
            Ok(prepared) if overlay.length() < node.length() => {
                prepared.co_abort(co, change);
                self.co_close_overlay(co, opened);
                Err(refused(format!("Node '{}' has become longer meanwhile", node.name())))
            }
            Ok(prepared) => Ok(PreparedOverlay { prepared, opened }),
            Err(error) => {
                self.co_close_overlay(co, opened);
                Err(error.into())
            }
        }
    }

    fn co_close_overlay(&self, co: &Co<'_>, opened: Option<String>) {
        if let Some(name) = opened
            && let Err(error) = self.blockdevs.co_close(co, &name)
        {
            tracing::error!(node = name, %error, "an overlay that is not needed stays open");
        }
    }

    /// The node that is to have a new overlay.
    fn snapshot_node(&self, new: &NewOverlay) -> Result<Arc<BlockNode>, DaemonError> {
        let node = self.blockdevs.node(&new.node_name);
        let missing = || DaemonError::NoSuchDevice {
            device: String::new(),
            node_name: new.node_name.clone(),
        };
        let node = node.ok_or_else(missing)?;
        self.blockdevs.check_snapshot(&node)?;
        let Some(name) = &new.overlay_name else {
            return Err(refused("New overlay node-name missing"));
        };
        match self.blockdevs.nodes().iter().any(|it| it.name() == name) {
            true => Err(refused("New overlay node-name already in use")),
            false => Ok(node),
        }
    }

    /// Makes the image of an overlay, unless it exists, and opens it, as long as the node and without a backing file.
    fn co_make_overlay(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        new: &NewOverlay,
    ) -> Result<Arc<BlockNode>, DaemonError> {
        let file = json!({"driver": "file", "filename": new.file});
        if !new.exists {
            self.co_create_overlay(co, node, new, &file)?;
        }
        let described = node.describe();
        let mut options = json!({
            "driver": new.format,
            "node-name": new.overlay_name,
            "file": file,
            "read-only": described.read_only,
            "cache": {"direct": described.cache.direct, "no-flush": described.cache.no_flush},
            "discard": if described.discard { "unmap" } else { "ignore" },
        });
        if new.format == "qcow2" {
            options["backing"] = Value::Null;
        }
        let options: NodeOptions = coblk::qapi::from_value(options)?;
        Ok(self.blockdevs.co_open(co, options)?)
    }

    fn co_create_overlay(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        new: &NewOverlay,
        file: &Value,
    ) -> Result<(), DaemonError> {
        if new.format != "qcow2" {
            let format = coblk::qapi::shorten(&new.format);
            return Err(refused(format!("Backing file not supported for file format '{format}'")));
        }
        let below = node.skip_filters();
        let Some(backing) = below.driver().filename() else {
            return Err(refused(format!("Node '{}' has no file name", node.name())));
        };
        let image = json!({
            "driver": "qcow2",
            "file": file,
            "size": node.length(),
            "backing-file": backing,
            "backing-fmt": below.driver().format_name(),
        });
        let empty = json!({"driver": "file", "filename": new.file, "size": 0});
        for options in [empty, image] {
            let Value::Object(options) = options else { continue };
            let creation = self.blockdevs.drivers().creation(options);
            let created = self.blockdevs.co_create(co, creation.map_err(refused_option)?);
            created.map_err(|error| refused(error.to_string()))?;
        }
        Ok(())
    }

    /// `blockdev-snapshot`: a node becomes the backing file of an overlay that is open, and read-only; its users turn
    /// to the overlay.
    ///
    /// # Errors
    /// If one of both is not there; as of [`coblk::Blockdevs::co_prepare_snapshot`].
    pub fn blockdev_snapshot(
        &self,
        co: &Co<'_>,
        node: &str,
        overlay: &str,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-snapshot")?;
        let change = ChangeLock::co_take(co).map_err(SnapshotError::from)?;
        self.co_prepare_snapshot(co, &change, (node, overlay))?.co_commit(co, &change, self);
        Ok(())
    }

    /// `blockdev-snapshot-sync`: makes an overlay, and takes a snapshot with it. The node of the overlay is one that
    /// `blockdev-del` closes. Requests go on while it is made.
    ///
    /// # Errors
    /// If there is no such node, or the name of the overlay is taken, or it cannot be made or opened; as of
    /// [`coblk::Blockdevs::co_prepare_snapshot`].
    pub fn blockdev_snapshot_sync(&self, co: &Co<'_>, new: &NewOverlay) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-snapshot-sync")?;
        let node = self.snapshot_node(new)?;
        let overlay = self.co_make_overlay(co, &node, new)?;
        let opened = new.overlay_name.clone();
        let change = match ChangeLock::co_take(co) {
            Ok(change) => change,
            Err(error) => {
                drop(overlay);
                self.co_close_overlay(co, opened);
                return Err(SnapshotError::from(error).into());
            }
        };
        let prepared = self.co_prepare_made(co, &change, (&node, &overlay), opened)?;
        prepared.co_commit(co, &change, self);
        Ok(())
    }

    /// `change-backing-file`: the header of an image in the chain of a device names another backing file. The node
    /// reads as before.
    ///
    /// # Errors
    /// If there is no such device or node, or the node is in another chain, or has no backing file; those of the
    /// format.
    pub fn change_backing_file(
        &self,
        co: &Co<'_>,
        device: &str,
        image: &str,
        backing_file: &str,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("change-backing-file")?;
        let root = self.device_node(device)?;
        if root.parents().iter().any(|it| matches!(it, Parent::Node { .. })) {
            return Err(refused("Need a root block node"));
        }
        let missing =
            || DaemonError::NoSuchDevice { device: String::new(), node_name: image.to_owned() };
        let node = self.blockdevs.node(image).ok_or_else(missing)?;
        let Some(backing) = node.backing_child() else {
            return Err(refused(
                "not allowing backing file change on an image without a backing file",
            ));
        };
        if !root.chain().iter().any(|it| Arc::ptr_eq(it, &node)) {
            return Err(refused(format!("'{device}' and image file are not in the same chain")));
        }
        let format = backing.skip_filters().driver().format_name().to_owned();
        let name = BackingName::new(backing_file, Some(format));
        self.blockdevs.co_name_backing(co, &node, Some(&name)).map_err(|error| {
            refused(format!("Could not change backing file to '{backing_file}': {error}"))
        })
    }
}

fn refused_option(error: coblk::qapi::Error) -> DaemonError {
    refused(error.to_string())
}

impl From<SnapshotError> for DaemonError {
    fn from(error: SnapshotError) -> DaemonError {
        DaemonError::Snapshot(error)
    }
}
