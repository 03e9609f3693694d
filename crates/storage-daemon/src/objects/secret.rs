//! `secret`: a password or a key, for options that name it by its id.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use coblk::aio::PoolShare;
use coblk::block::Secret;
use coblk::qapi::path;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::object_type::{ObjectPlace, ObjectType, Property};
use crate::error::DaemonError;
use crate::options::OptionError;

/// Most bytes of a secret, as it is given.
const MAX_BYTES: u64 = 1 << 20;

/// Padding may be missing, as in QEMU.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Bytes = Zeroizing<Vec<u8>>;

/// The type `secret`. Its object is a [`Secret`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SecretType;

/// Where a secret is.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SecretOptions {
    /// `data`: the secret itself. Others can see it in the list of processes.
    pub data: Option<String>,
    /// `file`: has the secret, all of it: a newline at its end is a part of it.
    #[serde(default, with = "path::option")]
    pub file: Option<PathBuf>,
    /// `format`: how the secret is written.
    #[serde(default)]
    pub format: SecretFormat,
    /// `keyid`: another secret, of 32 bytes, that this one is encrypted with: AES-256 in CBC mode.
    pub keyid: Option<String>,
    /// `iv`: the 16 bytes with which that begins, in base64.
    pub iv: Option<String>,
}

/// How a secret is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretFormat {
    /// As it is.
    #[default]
    Raw,
    /// In base64.
    Base64,
}

impl fmt::Debug for SecretOptions {
    /// All but the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SecretOptions { file, format, keyid, .. } = self;
        let mut options = f.debug_struct("SecretOptions");
        options.field("file", file).field("format", format).field("keyid", keyid);
        options.finish_non_exhaustive()
    }
}

impl ObjectType for SecretType {
    const NAME: &'static str = "secret";
    type Options = SecretOptions;
    type Object = Arc<Secret>;

    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &SecretOptions,
    ) -> Result<Arc<Secret>, DaemonError> {
        let given = match (&options.data, &options.file) {
            (Some(_), Some(_)) => return Err(refused("'file' and 'data' are mutually exclusive")),
            (None, None) => return Err(refused("Either 'file' or 'data' must be provided")),
            (Some(data), None) => Zeroizing::new(data.as_bytes().to_vec()),
            (None, Some(file)) => PoolShare::once(place.co, || read(file))?,
        };
        let bytes = match options.format {
            SecretFormat::Raw => given,
            SecretFormat::Base64 => from_base64(&given)?,
        };
        let bytes = match &options.keyid {
            Some(keyid) => unseal(place, keyid, options.iv.as_deref(), &bytes)?,
            None => bytes,
        };
        let secret = Arc::new(Secret::new(bytes));
        place.blockdevs.add_object(place.id, Arc::clone(&secret))?;
        Ok(secret)
    }

    fn release(&self, place: &ObjectPlace<'_, '_>, _: &Arc<Secret>) -> Result<(), DaemonError> {
        Ok(place.blockdevs.remove_object::<Secret>(place.id)?)
    }

    fn properties(&self) -> Vec<Property> {
        vec![
            Property::new("data", "string"),
            Property::new("file", "string"),
            Property::new("format", "QCryptoSecretFormat"),
            Property::new("keyid", "string"),
            Property::new("iv", "string"),
        ]
    }
}

fn refused(why: impl fmt::Display) -> DaemonError {
    OptionError::other(why).into()
}

fn read(path: &Path) -> Result<Bytes, DaemonError> {
    let failed =
        |why: &dyn fmt::Display| refused(format!("Unable to read {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(failed(&format_args!("it has more than {MAX_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

/// Lines may end, as in a file.
fn from_base64(text: &[u8]) -> Result<Bytes, DaemonError> {
    let text: Bytes = Zeroizing::new(text.iter().copied().filter(|byte| *byte != b'\n').collect());
    let bytes = BASE64.decode(&*text);
    bytes.map(Zeroizing::new).map_err(|_| refused("Base64 data contains invalid characters"))
}

#[cfg(feature = "encryption")]
fn unseal(
    place: &ObjectPlace<'_, '_>,
    keyid: &str,
    iv: Option<&str>,
    bytes: &[u8],
) -> Result<Bytes, DaemonError> {
    let key = place.blockdevs.object::<Secret>(keyid);
    let key = key.ok_or_else(|| refused(format!("No secret with id '{keyid}'")))?;
    let iv = iv.ok_or_else(|| refused("IV is required to decrypt secret"))?;
    let iv = from_base64(iv.as_bytes())?;
    coblk::crypto::unseal(key.bytes(), &iv, bytes).map_err(DaemonError::of_object)
}

#[cfg(not(feature = "encryption"))]
fn unseal(
    _: &ObjectPlace<'_, '_>,
    _: &str,
    _: Option<&str>,
    _: &[u8],
) -> Result<Bytes, DaemonError> {
    Err(DaemonError::Unsupported("'keyid' is not supported: built without encryption"))
}
