//! Another backing file in the header.

use std::io;

use coblk_aio::Co;
use coblk_block::BackingName;

use crate::image::Image;
use crate::layout::{Autoclear, FormatError, Header};

/// Longest name of a format in bytes.
const MAX_FORMAT_BYTES: usize = 15;

impl Image {
    /// Has the header name another backing file, or none. The image has the old name or the new one, whenever
    /// the host crashes.
    ///
    /// # Errors
    /// EINVAL for a name or a format that is too long, and if the data file is raw, which has all that the
    /// disk has; ENOSPC if the name does not fit into cluster 0 beside the old one. All is as before then.
    /// Those of writing.
    pub(crate) fn co_name_backing(
        &self,
        co: &Co<'_>,
        backing: Option<&BackingName>,
    ) -> io::Result<()> {
        // The header is not changed beside a repair.
        let _turn = self.co_turn(co)?;
        let backing = backing.filter(|backing| !backing.name.is_empty());
        let header = self.header();
        if backing.is_some() && header.autoclear.contains(Autoclear::RAW_DATA_FILE) {
            let why = "an image whose data file is raw cannot have a backing file";
            return Err(FormatError::invalid(why).into());
        }
        let format = backing.and_then(|it| it.format.as_deref()).filter(|it| !it.is_empty());
        if format.is_some_and(|format| format.len() > MAX_FORMAT_BYTES) {
            let why = "the name of the backing format is longer than 15 bytes";
            return Err(FormatError::invalid(why).into());
        }
        self.co_update_header(co, |header: &mut Header| {
            header.backing = backing.map(|it| it.name.as_bytes().to_vec());
            header.extensions.set_backing_format(format);
        })
    }
}
