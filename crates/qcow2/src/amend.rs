//! Changes properties of an image: fields of its header, and the keys of an encrypted one.

use std::io;

use coblk_aio::Co;
use coblk_block::Amend;
use serde::Deserialize;

use crate::create::Version;
use crate::encryption::{EncryptAmendOptions, EncryptFormat};
use crate::image::Image;
use crate::layout::{Autoclear, Compatible, Crypt, FormatError, Header, Incompatible};

/// Properties of an image that can be changed, QAPI's `BlockdevAmendOptionsQcow2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2AmendOptions {
    /// `version`: version 2 becomes version 3, or the other way. What version 2 does not know is refused; zeroes get
    /// data there, where something lies below.
    pub version: Option<Version>,
    /// `refcount-bits`: the width of refcounts, a power of two up to 64.
    pub refcount_bits: Option<u64>,
    /// `lazy-refcounts`: whether refcounts may be written late.
    pub lazy_refcounts: Option<bool>,
    /// `data-file`: where the data file is, which stays as it is.
    pub data_file: Option<String>,
    /// `data-file-raw`: `false`, as the data file does not have to be raw any more.
    pub data_file_raw: Option<bool>,
    /// `encrypt`: the keys of an image of LUKS.
    pub encrypt: Option<EncryptAmendOptions>,
}

impl Image {
    /// Changes what is asked for.
    ///
    /// # Errors
    /// EINVAL, with a text, for options that make no sense, or that there are not. Those of each change.
    pub(crate) fn co_amend_image(&self, co: &Co<'_>, amend: Amend<'_>) -> io::Result<()> {
        // Tables, and the header, are changed by one at a time.
        let _turn = self.co_turn(co)?;
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let options: Qcow2AmendOptions = amend.options.take().map_err(invalid)?;
        let old = self.header();
        let mut new = Header::clone(&old);
        self.change_fields(&mut new, &options)?;
        let order = refcount_order(&new, &options)?;
        let becomes_v2 = options.version == Some(Version::V2) && old.version > 2;
        if becomes_v2 {
            let mut then = new.clone();
            then.refcount_order = order.unwrap_or(new.refcount_order);
            self.check_downgrade(&then)?;
        }
        (amend.progress)(0, 1);
        if let Some(change) = &options.encrypt {
            self.co_amend_keys(co, change, amend.force)?;
        }
        // What changed beside this stays as it is now. If nothing changes, a change that has failed before may have to
        // be taken back in the file.
        let change = |header: &mut Header| drop(self.change_fields(header, &options));
        self.co_update_header(co, change)?;
        if let Some(order) = order {
            self.co_change_width(co, order, amend.progress)?;
        }
        if becomes_v2 {
            self.co_downgrade(co, amend.progress)?;
        }
        (amend.progress)(1, 1);
        Ok(())
    }

    /// Changes the fields of a header, if all of what is asked for can be. Another width, and version 2, come
    /// later.
    fn change_fields(
        &self,
        header: &mut Header,
        options: &Qcow2AmendOptions,
    ) -> Result<(), FormatError> {
        if options.version == Some(Version::V3) {
            self.upgrade(header)?;
        }
        if let Some(is_lazy) = options.lazy_refcounts {
            if is_lazy && (header.version == 2 || options.version == Some(Version::V2)) {
                let why = "'lazy_refcounts': it needs version 3 (compat=1.1)";
                return Err(FormatError::invalid(why));
            }
            header.compatible.set(Compatible::LAZY_REFCOUNTS, is_lazy);
        }
        if let Some(name) = &options.data_file {
            if !header.incompatible.contains(Incompatible::DATA_FILE) {
                let why = "'data_file': the image has no data file";
                return Err(FormatError::invalid(why));
            }
            let name = Some(name.as_bytes()).filter(|name| !name.is_empty());
            header.extensions.set_data_file(name);
        }
        let is_raw = header.autoclear.contains(Autoclear::RAW_DATA_FILE);
        match options.data_file_raw {
            Some(true) if !is_raw => {
                let why = "'data_file_raw': it cannot be set in an image that has it off";
                return Err(FormatError::invalid(why));
            }
            Some(false) => header.autoclear.remove(Autoclear::RAW_DATA_FILE),
            Some(true) | None => {}
        }
        Ok(())
    }

    /// Has version 3, if it is not so already. Tables of version 2 mean the same there; this node goes on with
    /// what both know.
    fn upgrade(&self, header: &mut Header) -> Result<(), FormatError> {
        if self.snapshots().iter().any(|snapshot| snapshot.disk_bytes.is_none()) {
            let why = "'compat': a snapshot does not tell its size, which version 3 needs";
            return Err(FormatError::invalid(why));
        }
        header.upgrade();
        Ok(())
    }

    fn co_amend_keys(
        &self,
        co: &Co<'_>,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> io::Result<()> {
        let format = match self.header().crypt()? {
            Crypt::None => None,
            Crypt::Aes => Some(EncryptFormat::Aes),
            Crypt::Luks => Some(EncryptFormat::Luks),
        };
        let (Some(encryption), Some(format)) = (&self.encryption, format) else {
            return Err(FormatError::invalid("'encrypt': the image is not encrypted").into());
        };
        if change.format.is_some_and(|told| told != format) {
            let why = format!("'encrypt.format': the image is encrypted by '{}'", format.name());
            return Err(FormatError::invalid(why).into());
        }
        Ok(encryption.co_amend(co, &self.file, change, force)?)
    }
}

/// The width that refcounts are to have, as a logarithm, if it is another one.
fn refcount_order(
    header: &Header,
    options: &Qcow2AmendOptions,
) -> Result<Option<u32>, FormatError> {
    let Some(bits) = options.refcount_bits else { return Ok(None) };
    if !bits.is_power_of_two() || bits > 64 {
        let why = "'refcount_bits': it is a power of two up to 64";
        return Err(FormatError::invalid(why));
    }
    let order = bits.trailing_zeros();
    if header.version == 2 && order != header.refcount_order {
        let why = "'refcount_bits': other widths than 16 need version 3 (compat=1.1)";
        return Err(FormatError::invalid(why));
    }
    Ok(Some(order).filter(|order| *order != header.refcount_order))
}
