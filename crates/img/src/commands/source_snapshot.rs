//! `-l`: an internal snapshot that is read instead of the disk of an image.

use std::ffi::OsStr;

use coblk::block::ImageSnapshot;
use coblk::qapi::from_keyval;
use serde::Deserialize;

use super::Tool;
use crate::failure::{Failure, words};
use crate::image::{Backing, Image, ImageSpec};

/// A snapshot as the command line names it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Named {
    #[serde(rename = "snapshot")]
    snapshot: Members,
}

/// By its id, its name, or both.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Members {
    id: Option<String>,
    name: Option<String>,
}

/// Opens an image, or the snapshot `wanted` of it: an id or a name, or `snapshot.id=ID,snapshot.name=NAME`.
///
/// # Errors
/// If the image cannot be opened, or has no such snapshot.
pub(super) fn co_open(
    tool: &Tool<'_, '_>,
    spec: &ImageSpec,
    wanted: Option<&str>,
) -> Result<Image, Failure> {
    let Some(wanted) = wanted else { return tool.images.co_open(tool.co, spec) };
    let failed = |why: &str| {
        Failure::new(format!("Failed to load snapshot '{wanted}' of '{}': {why}", spec.label()))
    };
    let id = co_id(tool, spec, wanted, &failed)?;
    let spec = ImageSpec { snapshot: Some(id), ..spec.clone() };
    tool.images.co_open(tool.co, &spec)
}

/// The id of the snapshot.
fn co_id(
    tool: &Tool<'_, '_>,
    spec: &ImageSpec,
    wanted: &str,
    failed: &impl Fn(&str) -> Failure,
) -> Result<String, Failure> {
    let members = match wanted.starts_with("snapshot.") {
        true => {
            let named = from_keyval::<Named>(OsStr::new(wanted), "");
            Some(named.map_err(|error| failed(&error.to_string()))?.snapshot)
        }
        false => None,
    };
    let plain = ImageSpec { backing: Backing::None, metadata_only: true, ..spec.clone() };
    let image = tool.images.co_open(tool.co, &plain)?;
    let listed = image.node.co_image(tool.co).and_then(|image| image.co_snapshots(tool.co));
    tool.images.co_close(tool.co, image)?;
    let listed = listed.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTSUP) => failed("the format has no internal snapshots"),
        _ => failed(&words(&error)),
    })?;
    let found = match &members {
        Some(members) => listed.iter().find(|it| members.fit(it)),
        None => {
            let by_id = listed.iter().find(|it| it.id == wanted);
            by_id.or_else(|| listed.iter().find(|it| it.name == wanted))
        }
    };
    found.map(|it| it.id.clone()).ok_or_else(|| failed("there is no such snapshot"))
}

impl Members {
    fn fit(&self, snapshot: &ImageSnapshot) -> bool {
        let fits = |wanted: &Option<String>, it: &String| wanted.as_ref().is_none_or(|id| id == it);
        let is_named = self.id.is_some() || self.name.is_some();
        is_named && fits(&self.id, &snapshot.id) && fits(&self.name, &snapshot.name)
    }
}
