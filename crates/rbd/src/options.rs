//! [`RbdOptions`]: QAPI's `BlockdevOptionsRbd`.

use coblk_block::options::{DriverConfig, DriverOptions};
use serde::{Deserialize, Serialize};

use crate::name;

/// Options of `rbd`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RbdOptions {
    /// `pool`: its name.
    pub pool: String,
    /// `namespace`: one of the pool; by default the one without a name.
    pub namespace: Option<String>,
    /// `image`: its name.
    pub image: String,
    /// `snapshot`: one of the image, which is read only. By default the image as it is now.
    pub snapshot: Option<String>,
    /// `conf`: path of a configuration file of Ceph; by default those that Ceph looks for, such as
    /// `/etc/ceph/ceph.conf`.
    pub conf: Option<String>,
    /// `user`: the name of the client, without `client.`; by default `admin`.
    pub user: Option<String>,
    /// `server`: monitors of the cluster; by default those of the configuration.
    pub server: Option<Vec<MonitorAddress>>,
    /// `auth-client-required`: the ways in which the client may authenticate.
    pub auth_client_required: Option<Vec<AuthMode>>,
    /// `key-secret`: the id of a [`Secret`](coblk_block::Secret), the key of the user. Its bytes, not those
    /// of base64 that Ceph shows: such a secret has `format=base64`.
    pub key_secret: Option<String>,
    /// `encrypt`: the format, and the passphrase.
    pub encrypt: Option<RbdEncryption>,
    /// `x-coblk-settings`: options of Ceph's configuration, such as `rados_osd_op_timeout`.
    pub x_coblk_settings: Option<Vec<Setting>>,
}

/// A monitor: QAPI's `InetSocketAddressBase`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MonitorAddress {
    /// `host`: a name or an address.
    pub host: String,
    /// `port`: a number.
    pub port: String,
}

/// A way to authenticate the client: QAPI's `RbdAuthMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// By a key.
    Cephx,
    /// Not at all.
    None,
}

impl AuthMode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            AuthMode::Cephx => "cephx",
            AuthMode::None => "none",
        }
    }
}

/// The formats of encrypted images: QAPI's `RbdImageEncryptionFormat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionFormat {
    /// LUKS 1.
    Luks,
    /// LUKS 2.
    Luks2,
    /// The one that the image has.
    LuksAny,
}

/// How an image is decrypted: QAPI's `RbdEncryptionOptions`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RbdEncryption {
    /// `format`.
    pub format: EncryptionFormat,
    /// `key-secret`: the id of a [`Secret`](coblk_block::Secret), the passphrase.
    pub key_secret: String,
}

/// One option of Ceph's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Setting {
    /// `name`.
    pub name: String,
    /// `value`.
    pub value: String,
}

impl RbdOptions {
    /// Options of the image `image` of a pool, with every option as it is by default.
    pub fn new(pool: impl Into<String>, image: impl Into<String>) -> RbdOptions {
        RbdOptions { pool: pool.into(), image: image.into(), ..RbdOptions::default() }
    }

    /// Reads a file name of RBD, as QEMU does: `rbd:POOL/NAMESPACE/IMAGE@SNAPSHOT`, of which namespace and
    /// snapshot may be left out, with `:id=USER`, `:conf=PATH` and other options of Ceph's configuration
    /// behind. A backslash makes the next letter a part of the name. `None` if the name is of another
    /// protocol, or of none.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// ```
    /// use coblk_rbd::RbdOptions;
    ///
    /// let options = RbdOptions::from_filename("rbd:vms/disk@monday:id=guest").unwrap()?;
    /// assert_eq!((&*options.pool, &*options.image), ("vms", "disk"));
    /// assert_eq!(options.snapshot.as_deref(), Some("monday"));
    /// assert_eq!(options.user.as_deref(), Some("guest"));
    /// assert!(RbdOptions::from_filename("disk.img").is_none());
    /// # Ok::<(), String>(())
    /// ```
    pub fn from_filename(text: &str) -> Option<Result<RbdOptions, String>> {
        name::parse(text)
    }
}

impl DriverOptions for RbdOptions {}

impl From<RbdOptions> for DriverConfig {
    fn from(options: RbdOptions) -> DriverConfig {
        DriverConfig::new("rbd", options)
    }
}
