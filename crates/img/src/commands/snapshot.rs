//! `snapshot`: internal snapshots of an image.

use std::ffi::OsString;

use coblk::block::{Image as Operations, ImageSnapshot};
use coblk::{BlockBackend, Co};

use super::options::Named;
use super::{Tool, snapshot_list};
use crate::failure::{Failure, words};
use crate::image::{Backing, ImageSpec};
use crate::output::print;

/// List, make, apply or delete internal snapshots
#[derive(clap::Args, Debug)]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// List the snapshots: what is done without any of these
    #[arg(short, long, conflicts_with_all = ["create", "apply", "delete"])]
    list: bool,
    /// Make a snapshot of this name
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["apply", "delete"])]
    create: Option<String>,
    /// Give the image what the snapshot of this id or name has
    #[arg(short, long, value_name = "SNAPSHOT", conflicts_with = "delete")]
    apply: Option<String>,
    /// Delete the snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    delete: Option<String>,
    /// The image
    filename: OsString,
}

impl Snapshot {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let changes = self.create.is_some() || self.apply.is_some() || self.delete.is_some();
        let named = self.named.spec(&self.filename);
        let backing = if changes { Backing::OfImage } else { Backing::None };
        let spec = ImageSpec { is_writable: changes, backing, metadata_only: !changes, ..named };
        let image = tool.images.co_open(tool.co, &spec)?;
        match (&self.create, &self.apply, &self.delete) {
            (Some(name), _, _) => self.co_change(tool, &image.node, "create", name, |image, co| {
                image.co_create_snapshot(co, name).map(drop)
            }),
            (_, Some(name), _) => self.co_apply(tool, &image.node, &image.backend, name),
            (_, _, Some(name)) => self.co_change(tool, &image.node, "delete", name, |image, co| {
                co_delete(image, co, name)
            }),
            _ => self.co_list(tool, &image.node),
        }?;
        tool.images.co_close(tool.co, image)
    }

    fn co_list(&self, tool: &Tool<'_, '_>, node: &coblk::BlockNode) -> Result<(), Failure> {
        let snapshots = node.co_image(tool.co).and_then(|image| image.co_snapshots(tool.co));
        match snapshots {
            Ok(snapshots) if !snapshots.is_empty() => Ok(print(&snapshot_list::table(&snapshots))?),
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(()),
            Err(error) => Err(Failure::new(format!("Could not list snapshots: {}", words(&error)))),
        }
    }

    fn co_change(
        &self,
        tool: &Tool<'_, '_>,
        node: &coblk::BlockNode,
        verb: &str,
        name: &str,
        change: impl Fn(&Operations<'_>, &Co<'_>) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let changed = node.co_image(tool.co).and_then(|image| change(&image, tool.co));
        changed.map_err(|error| failed(verb, name, &error))
    }

    /// The image is made as long as the snapshot first.
    fn co_apply(
        &self,
        tool: &Tool<'_, '_>,
        node: &coblk::BlockNode,
        backend: &BlockBackend,
        name: &str,
    ) -> Result<(), Failure> {
        let wrong = |error: std::io::Error| failed("apply", name, &error);
        let found = node.co_image(tool.co).and_then(|image| co_find(&image, tool.co, name));
        let found = found.map_err(wrong)?;
        if found.length != node.length() {
            backend.co_truncate(tool.co, found.length).map_err(wrong)?;
        }
        self.co_change(tool, node, "apply", name, |image, co| {
            image.co_apply_snapshot(co, &found.id)
        })
    }
}

fn failed(verb: &str, name: &str, error: &std::io::Error) -> Failure {
    let why = match error.raw_os_error() {
        Some(libc::ENOENT) => "snapshot not found".to_owned(),
        _ => words(error),
    };
    Failure::new(format!("Could not {verb} snapshot '{name}': {why}"))
}

/// Deletes by the name alone: a name that looks like an id is not to cost another snapshot.
fn co_delete(image: &Operations<'_>, co: &Co<'_>, name: &str) -> std::io::Result<()> {
    let found = image.co_snapshots(co)?.into_iter().find(|it| it.name == name);
    let found = found.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOENT))?;
    image.co_delete_snapshot(co, &found.id)
}

/// The snapshot of an id, or else of a name.
fn co_find(image: &Operations<'_>, co: &Co<'_>, name: &str) -> std::io::Result<ImageSnapshot> {
    let snapshots = image.co_snapshots(co)?;
    let by_id = snapshots.iter().find(|it| it.id == name);
    let found = by_id.or_else(|| snapshots.iter().find(|it| it.name == name));
    found.cloned().ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOENT))
}
