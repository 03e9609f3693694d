//! New images: `blockdev-create` of the driver `rbd`.

use std::io;

use coblk_aio::PoolShare;
use coblk_block::{CreateError, Creates, Creating, Secret};
use coblk_qapi::Size;
use serde::Deserialize;

use crate::connect::{Connect, ConnectError, Failure, failed};
use crate::driver::Rbd;
use crate::ffi::{Image, Luks, NewImage, OpenImage, Pool};
use crate::length;
use crate::options::{EncryptionFormat, RbdOptions};

/// The objects that an image may have, as powers of two.
const ORDERS: std::ops::RangeInclusive<u32> = 12..=25;

/// Most bytes of a header of encryption: that of LUKS2 has 16 MiB, which is rounded up to whole objects.
const HEADER_ROOM: u64 = 64 << 20;

/// Options of a new image: QAPI's `BlockdevCreateOptionsRbd`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RbdCreateOptions {
    /// `location`: where it is to be. It has no snapshot, and no `encrypt`.
    pub location: RbdOptions,
    /// `size`: its length in bytes.
    pub size: Size,
    /// `cluster-size`: the bytes of an object, a power of two; by default what the cluster has, 4 MiB as a
    /// rule.
    pub cluster_size: Option<Size>,
    /// `encrypt`: the format, and the passphrase.
    pub encrypt: Option<RbdCreateEncryption>,
}

/// How a new image is encrypted: QAPI's `RbdEncryptionCreateOptions`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RbdCreateEncryption {
    /// `format`: `luks` or `luks2`.
    pub format: EncryptionFormat,
    /// `key-secret`: the id of a [`Secret`], the passphrase.
    pub key_secret: String,
    /// `cipher-alg`: `aes-128` or `aes-256`, the default.
    pub cipher_alg: Option<CipherAlgorithm>,
}

/// The ciphers of librbd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CipherAlgorithm {
    /// AES with keys of 128 bits.
    #[serde(rename = "aes-128")]
    Aes128 = 0,
    /// AES with keys of 256 bits.
    #[serde(rename = "aes-256")]
    Aes256 = 1,
}

/// An image is made where there is none of its name. If that fails later than that, it is removed.
impl Creates for Rbd {
    const NAME: &'static str = "rbd";
    type Options = RbdCreateOptions;

    fn co_create(
        creating: &Creating<'_, '_>,
        options: RbdCreateOptions,
    ) -> Result<(), CreateError> {
        let order = order(&options)?;
        let encryption = encryption(creating, &options)?;
        let connect = Connect::new(&options.location, true, |id| creating.object(id))?;
        let made = PoolShare::once(creating.co(), || {
            let bytes = options.size.0;
            make(&connect, bytes, order, encryption.as_ref())
        });
        made.map_err(CreateError::of_driver)
    }
}

struct Encryption {
    luks: Luks,
    algorithm: CipherAlgorithm,
    secret: std::sync::Arc<Secret>,
}

fn order(options: &RbdCreateOptions) -> Result<u8, CreateError> {
    let location = &options.location;
    if location.snapshot.is_some() || location.encrypt.is_some() {
        let why = "option 'location': a new image has no 'snapshot', and 'encrypt' is beside it";
        return Err(CreateError::of_driver(why));
    }
    let Some(Size(bytes)) = options.cluster_size else { return Ok(0) };
    match bytes.is_power_of_two() && ORDERS.contains(&bytes.trailing_zeros()) {
        true => Ok(bytes.trailing_zeros() as u8),
        false => Err(CreateError::of_driver(
            "option 'cluster-size': an object has from 4 KiB to 32 MiB, a power of two",
        )),
    }
}

fn encryption(
    creating: &Creating<'_, '_>,
    options: &RbdCreateOptions,
) -> Result<Option<Encryption>, CreateError> {
    let Some(encrypt) = &options.encrypt else { return Ok(None) };
    let luks = match encrypt.format {
        EncryptionFormat::Luks => Luks::V1,
        EncryptionFormat::Luks2 => Luks::V2,
        EncryptionFormat::LuksAny => {
            return Err(CreateError::of_driver("option 'encrypt': 'luks' or 'luks2' is made"));
        }
    };
    let algorithm = encrypt.cipher_alg.unwrap_or(CipherAlgorithm::Aes256);
    let secret = creating.object::<Secret>(&encrypt.key_secret)?;
    Ok(Some(Encryption { luks, algorithm, secret }))
}

/// Makes the image. Blocks.
fn make(
    connect: &Connect<'_>,
    bytes: u64,
    order: u8,
    encryption: Option<&Encryption>,
) -> Result<(), Failure> {
    let (pool, name) = (connect.pool()?, &connect.options.image);
    let room = encryption.map_or(0, |_| HEADER_ROOM);
    let bytes = bytes.checked_add(room).ok_or("option 'size': it is too large")?;
    let made = Image::create(&pool, &NewImage { name, bytes, order });
    made.map_err(|error| match error.raw_os_error() {
        Some(libc::EEXIST) => {
            format!("there is an image '{name}' in pool '{}' already", connect.options.pool).into()
        }
        _ => failed(format!("image '{name}'"), &error),
    })?;
    let Some(encryption) = encryption else { return Ok(()) };
    let Err(error) = encrypt(pool, name, bytes - room, encryption) else { return Ok(()) };
    let removed = connect.pool().and_then(|pool| Ok(Image::remove(&pool, name)?));
    if let Err(error) = removed {
        tracing::warn!(error, image = name, "an image that was made in part is left");
    }
    Err(failed(format!("encryption of image '{name}'"), &error))
}

/// Makes the header in an image that has room for it, and gives it its length.
fn encrypt(pool: Pool, name: &str, bytes: u64, encryption: &Encryption) -> io::Result<()> {
    let open = OpenImage { name, snapshot: None, read_only: false };
    let image = Image::open(pool, &open).map_err(|(_, error)| error)?;
    let secret = encryption.secret.bytes();
    image.format_encryption(encryption.luks, encryption.algorithm as i32, secret)?;
    length::set(&image, bytes, (bytes + HEADER_ROOM).saturating_sub(image.length()?))?;
    image.close()
}

impl From<ConnectError<CreateError>> for CreateError {
    fn from(error: ConnectError<CreateError>) -> CreateError {
        match error {
            ConnectError::Option(option, why) => {
                CreateError::of_driver(format!("option 'location.{option}': {why}"))
            }
            ConnectError::Secret(error) => error,
        }
    }
}
