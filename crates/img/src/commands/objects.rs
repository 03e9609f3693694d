//! `--object`: secrets that options name.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use coblk::aio::PoolShare;
use coblk::block::Secret;
use coblk::qapi::{from_argument, path};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Tool;
use crate::failure::Failure;

/// Most bytes of a secret, as it is given.
const MAX_BYTES: u64 = 1 << 20;
/// Padding may be missing, as in QEMU.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A secret.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SecretOptions {
    qom_type: Kind,
    id: String,
    /// Others can see it in the list of processes.
    data: Option<String>,
    #[serde(default, with = "path::option")]
    file: Option<PathBuf>,
    #[serde(default)]
    format: Format,
}

/// The types of objects.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Secret,
}

/// How a secret is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Raw,
    Base64,
}

/// Makes the objects of a command line.
///
/// # Errors
/// If one cannot be made: which.
pub(crate) fn co_make(tool: &Tool<'_, '_>, texts: &[OsString]) -> Result<(), Failure> {
    // Their texts are not told: they may have secrets in them.
    let failed = |why: &dyn Display| Failure::new(format!("--object: {why}"));
    for text in texts {
        let options: SecretOptions =
            from_argument(OsStr::new(text), "qom-type").map_err(|error| failed(&error))?;
        let Kind::Secret = options.qom_type;
        let given = match (options.data, options.file) {
            (Some(data), None) => Zeroizing::new(data.into_bytes()),
            (None, Some(file)) => {
                PoolShare::once(tool.co, || read(&file)).map_err(|error| failed(&error))?
            }
            (Some(_), Some(_)) => return Err(failed(&"'file' and 'data' are mutually exclusive")),
            (None, None) => return Err(failed(&"Either 'file' or 'data' must be provided")),
        };
        let bytes = match options.format {
            Format::Raw => given,
            Format::Base64 => from_base64(&given).map_err(|error| failed(&error))?,
        };
        let added = tool.images.blockdevs().add_object(&options.id, Arc::new(Secret::new(bytes)));
        added.map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |why: &dyn Display| format!("Unable to read {}: {why}", path.display());
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(failed(&format_args!("it has more than {MAX_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

/// Lines may end, as in a file.
fn from_base64(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let text: Zeroizing<Vec<u8>> =
        Zeroizing::new(text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect());
    let bytes = BASE64.decode(&*text).map(Zeroizing::new);
    bytes.map_err(|_| "Base64 data contains invalid characters".to_owned())
}
