//! From options to an image: [`Connect`] is what a worker needs for that, and what goes wrong is said in
//! words.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coblk_block::{BlockdevError, OpenError, Secret};
use zeroize::Zeroizing;

use crate::ffi::{Cluster, Image, Luks, NoCluster, OpenImage, Pool};
use crate::options::{EncryptionFormat, RbdOptions};

/// An error of a step, in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connection that is to be made: options, and the secrets that they name.
pub struct Connect<'a> {
    pub options: &'a RbdOptions,
    /// In the base64 of Ceph's own files.
    key: Option<Zeroizing<String>>,
    passphrase: Option<Zeroizing<Vec<u8>>>,
    /// Whether librbd may cache.
    cache: bool,
}

impl<'a> Connect<'a> {
    /// `find` finds a secret by its id.
    ///
    /// # Errors
    /// If an option makes no sense, or there is no such secret.
    pub fn new<E: From<BlockdevError>>(
        options: &'a RbdOptions,
        cache: bool,
        find: impl Fn(&str) -> Result<std::sync::Arc<Secret>, E>,
    ) -> Result<Connect<'a>, ConnectError<E>> {
        check(options)?;
        let key = options.key_secret.as_deref().map(&find).transpose();
        let key = key.map_err(ConnectError::Secret)?;
        let key = key.map(|key| Zeroizing::new(STANDARD.encode(key.bytes())));
        let passphrase = options.encrypt.as_ref().map(|encrypt| find(&encrypt.key_secret));
        let passphrase = passphrase.transpose().map_err(ConnectError::Secret)?;
        let passphrase = passphrase.map(|secret| Zeroizing::new(secret.bytes().to_vec()));
        Ok(Connect { options, key, passphrase, cache })
    }

    fn user(&self) -> &str {
        self.options.user.as_deref().unwrap_or("admin")
    }

    /// Connects with the cluster. Blocks.
    ///
    /// # Errors
    /// In words.
    pub fn pool(&self) -> Result<Pool, Failure> {
        let options = self.options;
        let mut cluster = match Cluster::new(options.user.as_deref()) {
            Ok(cluster) => cluster,
            Err(NoCluster::Library(missing)) => return Err(missing.into()),
            Err(NoCluster::Io(error)) => {
                return Err(failed(format!("no client '{}' of Ceph", self.user()), &error));
            }
        };
        self.configure(&mut cluster)?;
        cluster.connect().map_err(|error| {
            let user = self.user();
            let what = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => {
                    format!("the cluster does not let user '{user}' in")
                }
                Some(libc::ENOENT) => {
                    format!(
                        "no monitor of the cluster is known, or there is no key of user '{user}'"
                    )
                }
                _ => "no connection with the cluster".to_owned(),
            };
            failed(what, &error)
        })?;
        let namespace = options.namespace.as_deref().unwrap_or("");
        cluster.into_pool(&options.pool, namespace).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => format!("there is no pool '{}'", options.pool).into(),
            _ => failed(format!("pool '{}'", options.pool), &error),
        })
    }

    fn configure(&self, cluster: &mut Cluster) -> Result<(), Failure> {
        let options = self.options;
        let read = cluster.read_conf(options.conf.as_deref());
        // That there is none where Ceph looks for it is no error: options may say all.
        if let (Err(error), Some(path)) = (read, &options.conf) {
            return Err(failed(format!("configuration '{path}'"), &error));
        }
        let mut set = |name: &str, value: &str| {
            let set = cluster.set(name, value);
            set.map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT) => format!("Ceph has no option '{name}'").into(),
                _ => failed(format!("Ceph's option '{name}'"), &error),
            })
        };
        // An older library, or a newer one, may not know it: then there is no cache to speak of.
        let _: Result<(), Failure> = set("rbd_cache", if self.cache { "true" } else { "false" });
        for setting in options.x_coblk_settings.iter().flatten() {
            set(&setting.name, &setting.value)?;
        }
        if let Some(key) = &self.key {
            set("key", key)?;
        }
        if let Some(modes) = &options.auth_client_required {
            let modes: Vec<&str> = modes.iter().map(|mode| mode.name()).collect();
            set("auth_client_required", &modes.join(";"))?;
        }
        if let Some(servers) = &options.server {
            let servers = servers.iter().map(|server| match server.host.contains(':') {
                true => format!("[{}]:{}", server.host, server.port),
                false => format!("{}:{}", server.host, server.port),
            });
            set("mon_host", &servers.collect::<Vec<_>>().join(";"))?;
        }
        Ok(())
    }

    /// Opens the image. Blocks.
    ///
    /// # Errors
    /// In words; with `may_fall_back` an image that may not be written is opened for reading.
    pub fn image(&self, read_only: bool, may_fall_back: bool) -> Result<(Image, bool), Failure> {
        let options = self.options;
        let open =
            OpenImage { name: &options.image, snapshot: options.snapshot.as_deref(), read_only };
        let denied = |error: &io::Error| {
            matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS))
        };
        let (image, read_only) = match Image::open(self.pool()?, &open) {
            Ok(image) => (image, read_only),
            Err((pool, error)) if may_fall_back && !read_only && denied(&error) => {
                let open = OpenImage { read_only: true, ..open };
                let opened = Image::open(pool, &open);
                (opened.map_err(|(pool, error)| self.not_opened(pool, &error))?, true)
            }
            Err((pool, error)) => return Err(self.not_opened(pool, &error)),
        };
        Ok((image, read_only))
    }

    fn not_opened(&self, pool: Pool, error: &io::Error) -> Failure {
        let options = self.options;
        let place = match options.namespace.as_deref().filter(|it| !it.is_empty()) {
            Some(namespace) => format!("namespace '{namespace}' of pool '{}'", options.pool),
            None => format!("pool '{}'", options.pool),
        };
        let image = &options.image;
        let (Some(libc::ENOENT), snapshot) = (error.raw_os_error(), &options.snapshot) else {
            return failed(format!("image '{image}' in {place}"), error);
        };
        if let Some(snapshot) = snapshot {
            let open = OpenImage { name: image, snapshot: None, read_only: true };
            if Image::open(pool, &open).is_ok() {
                return format!("image '{image}' in {place} has no snapshot '{snapshot}'").into();
            }
        }
        format!("there is no image '{image}' in {place}").into()
    }

    /// Has librbd encrypt and decrypt, if the options say so. Returns how many bytes the image has before its
    /// first one. Blocks.
    ///
    /// # Errors
    /// In words.
    pub fn decrypt(&self, image: &Image) -> Result<u64, Failure> {
        let (Some(encrypt), Some(passphrase)) = (&self.options.encrypt, &self.passphrase) else {
            return Ok(0);
        };
        let all = image.length()?;
        let formats: &[Luks] = match encrypt.format {
            EncryptionFormat::Luks => &[Luks::V1],
            EncryptionFormat::Luks2 => &[Luks::V2],
            EncryptionFormat::LuksAny => &[Luks::V2, Luks::V1],
        };
        let mut loaded = Ok(());
        for luks in formats {
            loaded = image.load_encryption(*luks, passphrase);
            // What is no header of one format may be one of the next.
            if !matches!(&loaded, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
                break;
            }
        }
        loaded.map_err(|error| -> Failure {
            match error.raw_os_error() {
                Some(libc::EPERM) => {
                    format!("the secret '{}' does not open the image", encrypt.key_secret).into()
                }
                Some(libc::EINVAL) => "the image is not encrypted in this format".into(),
                _ => failed("encryption of the image".to_owned(), &error),
            }
        })?;
        Ok(all.saturating_sub(image.length()?))
    }
}

/// Why there is nothing to connect with.
pub enum ConnectError<E> {
    Option(&'static str, String),
    Secret(E),
}

impl From<ConnectError<OpenError>> for OpenError {
    fn from(error: ConnectError<OpenError>) -> OpenError {
        match error {
            ConnectError::Option(option, why) => OpenError::option(option, why),
            ConnectError::Secret(error) => error,
        }
    }
}

/// What librados would take for something else.
fn check<E>(options: &RbdOptions) -> Result<(), ConnectError<E>> {
    let refused = |option, why: &str| Err(ConnectError::Option(option, why.to_owned()));
    let texts = [
        ("pool", Some(&options.pool)),
        ("image", Some(&options.image)),
        ("namespace", options.namespace.as_ref()),
        ("snapshot", options.snapshot.as_ref()),
        ("conf", options.conf.as_ref()),
        ("user", options.user.as_ref()),
    ];
    for (option, text) in texts {
        match text {
            Some(text) if text.contains('\0') => return refused(option, "there is a zero in it"),
            Some(text) if text.is_empty() && option != "namespace" => {
                return refused(option, "it is empty");
            }
            _ => {}
        }
    }
    for server in options.server.iter().flatten() {
        // One monitor would become several.
        let is_list = |text: &str| text.contains([';', ',', ' ', '\0']);
        if is_list(&server.host) || is_list(&server.port) {
            return refused("server", "host and port are those of one monitor");
        }
    }
    Ok(())
}

/// What failed, and the error of the library.
pub fn failed(what: String, error: &io::Error) -> Failure {
    format!("{what}: {error}").into()
}
