//! `authz-list-file`: an [`authz-list`](super::AuthzListType) in a file, as JSON.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coblk::aio::PoolShare;
use coblk::qapi::path;
use serde::{Deserialize, Serialize};

use super::list::AuthzListOptions;
use super::{Authz, Decides};
use crate::error::DaemonError;
use crate::objects::object_type::{ObjectPlace, ObjectType, Property};

/// A longer file is refused.
const MAX_BYTES: u64 = 1 << 20;

/// The type `authz-list-file`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthzListFileType;

/// Rules in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct AuthzListFileOptions {
    /// `filename`.
    #[serde(with = "path")]
    pub filename: PathBuf,
    /// `refresh`: the file is read again when it has changed; on by default.
    pub refresh: Option<bool>,
}

struct ListFile {
    path: PathBuf,
    refresh: bool,
    read: Mutex<Reading>,
}

/// What was read last, and of which file.
struct Reading {
    stamp: Stamp,
    list: AuthzListOptions,
}

/// Device, inode, length and time of the last change: one of them is another for a file that has changed.
type Stamp = [i64; 5];

impl Reading {
    fn new(path: &Path) -> io::Result<Reading> {
        let file = File::open(path)?;
        let stamp = stamp(&file.metadata()?);
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::other("it has more than 1 MiB"));
        }
        let list = coblk::qapi::from_json(&text).map_err(io::Error::other)?;
        Ok(Reading { stamp, list })
    }
}

fn stamp(file: &fs::Metadata) -> Stamp {
    [file.dev() as i64, file.ino() as i64, file.len() as i64, file.ctime(), file.ctime_nsec()]
}

impl Decides for ListFile {
    fn allows(&self, identity: &str) -> bool {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed =
            || fs::metadata(&self.path).map_or(true, |file| stamp(&file) != read.stamp);
        if self.refresh && has_changed() {
            match Reading::new(&self.path) {
                Ok(again) => *read = again,
                // As QEMU does: what was read last holds.
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "a list cannot be read again");
                }
            }
        }
        read.list.allows(identity)
    }
}

impl ObjectType for AuthzListFileType {
    const NAME: &'static str = "authz-list-file";
    type Options = AuthzListFileOptions;
    type Object = Authz;

    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &AuthzListFileOptions,
    ) -> Result<Authz, DaemonError> {
        let (path, refresh) = (options.filename.clone(), options.refresh.unwrap_or(true));
        let read = PoolShare::once(place.co, || Reading::new(&path));
        let read = read.map_err(|error| {
            let path = path.display();
            crate::options::OptionError::other(format!("Unable to read '{path}': {error}"))
        })?;
        Ok(Authz::new(ListFile { path, refresh, read: Mutex::new(read) }))
    }

    fn properties(&self) -> Vec<Property> {
        vec![Property::new("filename", "string"), Property::new("refresh", "bool")]
    }
}
