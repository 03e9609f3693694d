//! Opening images: [`ImageSpec`] says which and how, [`Images`] has those that are open.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use coblk::drivers::Qcow2Options;
use coblk::options::{NodeOptions, NodeRef, NodeRefOrNull};
use coblk::{BackendOptions, BlockBackend, BlockNode, Blockdevs, Co};

use super::Cache;
use super::name::{Place, below, has_member};
use crate::failure::Failure;

/// Bytes that a format is found by.
const PROBE_BYTES: usize = 2048;
/// The engine that reads and writes files.
const ENGINE: &str = "threads";

/// The backing file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// The one that the image names.
    OfImage,
    /// None.
    None,
    /// The node of this name.
    Node(String),
}

/// Which image is opened, and how.
#[derive(Clone, Debug)]
pub(crate) struct ImageSpec {
    /// A file name, or options of a node.
    pub(crate) name: OsString,
    /// Whether the name is options of a node.
    pub(crate) is_options: bool,
    /// The format; found by the first bytes without one.
    pub(crate) format: Option<String>,
    /// How it is cached.
    pub(crate) cache: Cache,
    /// Whether it is written.
    pub(crate) is_writable: bool,
    /// Whether other programs may write it meanwhile.
    pub(crate) force_share: bool,
    /// Whether the command writes its backing file meanwhile.
    pub(crate) shares_writes: bool,
    /// The backing file.
    pub(crate) backing: Backing,
    /// The name that its node gets, for the options of others.
    pub(crate) node_name: Option<String>,
    /// Whether an encrypted image is opened without its key: it tells of itself only.
    pub(crate) metadata_only: bool,
    /// The id of an internal snapshot that is read instead of the disk.
    pub(crate) snapshot: Option<String>,
    /// What reads and writes files, by its name in options.
    pub(crate) engine: &'static str,
}

impl Backing {
    /// The option that says so, behind others.
    fn option(&self) -> String {
        match self {
            Backing::OfImage => String::new(),
            Backing::None => ",backing=".to_owned(),
            Backing::Node(name) => format!(",backing={name}"),
        }
    }
}

impl ImageSpec {
    /// An image for reads, with its backing files.
    pub(crate) fn new(name: impl Into<OsString>) -> ImageSpec {
        ImageSpec {
            name: name.into(),
            is_options: false,
            format: None,
            cache: Cache::WRITEBACK,
            is_writable: false,
            force_share: false,
            shares_writes: false,
            backing: Backing::OfImage,
            node_name: None,
            metadata_only: false,
            snapshot: None,
            engine: ENGINE,
        }
    }

    /// The name in messages.
    pub(crate) fn label(&self) -> String {
        self.name.display().to_string()
    }

    fn failed(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(format!("Could not open '{}': {why}", self.label()))
    }

    fn check_modes(&self) -> Result<(), Failure> {
        match self.force_share && self.is_writable {
            true => Err(self.failed("an image that is written is not shared (-U)")),
            false => Ok(()),
        }
    }
}

/// An image that is open, and in use: other programs, and other images of this one, respect that.
#[derive(Clone)]
pub(crate) struct Image {
    /// Its node.
    pub(crate) node: Arc<BlockNode>,
    /// How it is used: backends in other contexts are opened with clones.
    pub(crate) options: BackendOptions,
    /// The backend of the main context.
    pub(crate) backend: BlockBackend,
    /// How it was opened.
    pub(crate) spec: ImageSpec,
}

impl Image {
    /// The name of its format's driver.
    pub(crate) fn format(&self) -> &'static str {
        self.node.driver().format_name()
    }
}

/// The images of a command.
pub(crate) struct Images {
    blockdevs: Blockdevs,
    open: RefCell<Vec<Image>>,
}

impl Images {
    /// None so far, of the drivers of this build.
    pub(crate) fn new() -> Images {
        Images { blockdevs: Blockdevs::new(coblk::drivers()), open: RefCell::default() }
    }

    /// The drivers, and what they create and measure.
    pub(crate) fn blockdevs(&self) -> &Blockdevs {
        &self.blockdevs
    }

    /// Opens an image.
    ///
    /// # Errors
    /// Why not, with its name.
    pub(crate) fn co_open(&self, co: &Co<'_>, spec: &ImageSpec) -> Result<Image, Failure> {
        spec.check_modes()?;
        let mut options = self.co_options(co, spec)?;
        if let Some(id) = &spec.snapshot {
            self.set_snapshot(&mut options, id).map_err(|error| spec.failed(error))?;
        }
        self.co_open_options(co, options, spec)
    }

    /// Opens what has the bytes of an image, but not the image: the child `file` of its node, if its format has
    /// one. With the name of the format.
    ///
    /// # Errors
    /// Why not, with the image's name.
    pub(crate) fn co_open_file(
        &self,
        co: &Co<'_>,
        spec: &ImageSpec,
    ) -> Result<(String, Image), Failure> {
        spec.check_modes()?;
        let options = self.co_options(co, spec)?;
        let options = self.blockdevs.drivers().resolve(options);
        let options = options.map_err(|error| spec.failed(error))?;
        let format = options.driver.name().to_owned();
        let options = match options.driver.options::<Qcow2Options>() {
            Some(Qcow2Options { file: NodeRef::Options(file), .. }) => below_modes(&options, file),
            Some(Qcow2Options { file: NodeRef::Name(name), .. }) => {
                return Err(spec.failed(format!("Cannot find node '{name}'")));
            }
            None => options,
        };
        Ok((format, self.co_open_options(co, options, spec)?))
    }

    fn co_open_options(
        &self,
        co: &Co<'_>,
        options: NodeOptions,
        spec: &ImageSpec,
    ) -> Result<Image, Failure> {
        let opened = self.blockdevs.co_open(co, set_modes(options, spec));
        let node = opened.map_err(|error| spec.failed(error))?;
        let options = BackendOptions::new(spec.label());
        let options = options.read_only(!spec.is_writable).share_rw(spec.shares_writes);
        match options.co_open(co, Arc::clone(&node)) {
            Ok(backend) => {
                let image = Image { node, options, backend, spec: spec.clone() };
                self.open.borrow_mut().push(image.clone());
                Ok(image)
            }
            Err(error) => {
                let name = node.name().to_owned();
                drop(node);
                // It has not been used.
                let _ = self.blockdevs.co_close(co, &name);
                Err(spec.failed(error))
            }
        }
    }

    /// Closes an image before the others.
    ///
    /// # Errors
    /// If what it has in memory cannot be written.
    pub(crate) fn co_close(&self, co: &Co<'_>, image: Image) -> Result<(), Failure> {
        let Image { node, spec, backend, .. } = image;
        self.open.borrow_mut().retain(|open| !Arc::ptr_eq(&open.node, &node));
        let failed = |why: &dyn std::fmt::Display| {
            Failure::new(format!("Could not close '{}': {why}", spec.label()))
        };
        let name = node.name().to_owned();
        let ended = backend.co_close(co).map_err(|error| failed(&error));
        drop(node);
        let closed = self.blockdevs.co_close(co, &name).map_err(|error| failed(&error));
        ended.and(closed)
    }

    /// Closes all images, those that were opened last first.
    ///
    /// # Errors
    /// The first one of those that cannot be closed.
    pub(crate) fn co_close_all(&self, co: &Co<'_>) -> Result<(), Failure> {
        let mut result = Ok(());
        while let Some(image) = { self.open.borrow_mut().pop() } {
            let closed = self.co_close(co, image);
            result = result.and(closed);
        }
        result
    }

    /// The options of an image's node.
    fn co_options(&self, co: &Co<'_>, spec: &ImageSpec) -> Result<NodeOptions, Failure> {
        let failed = |error: coblk::qapi::Error| spec.failed(error);
        if spec.is_options {
            return self.co_listed_options(co, spec);
        }
        if let Some(json) = spec.name.as_bytes().strip_prefix(b"json:") {
            let json = std::str::from_utf8(json).map_err(|_| spec.failed("it is not UTF-8"))?;
            return NodeOptions::from_json(json).map_err(failed);
        }
        let place = Place::of(&spec.name)?;
        let format = match &spec.format {
            Some(format) => format.clone(),
            None => {
                let bytes = place.options("", spec.engine);
                self.co_probe(co, spec, &bytes)?.to_owned()
            }
        };
        if matches!(&*format, "file" | "host_device" | "nbd" | "rbd") {
            let text = place.options("", spec.engine);
            return NodeOptions::from_keyval(text).map_err(failed);
        }
        if format == "qcow2" && spec.metadata_only {
            let file = NodeOptions::from_keyval(place.options("", spec.engine));
            let mut options = Qcow2Options::new(file.map_err(failed)?);
            options.backing = Some(NodeRefOrNull(None));
            options.metadata_only = true;
            return Ok(NodeOptions::new(options));
        }
        let mut text = OsString::from(format!("driver={format},"));
        text.push(place.options("file.", spec.engine));
        if format == "qcow2" {
            text.push(spec.backing.option());
        }
        NodeOptions::from_keyval(text).map_err(failed)
    }

    /// The options of a list, which may leave out drivers.
    fn co_listed_options(&self, co: &Co<'_>, spec: &ImageSpec) -> Result<NodeOptions, Failure> {
        let mut text = spec.name.clone();
        if has_member(&text, b"filename") && !has_member(&text, b"driver") {
            let named = spec.name.as_bytes().strip_prefix(b"filename=");
            let name =
                named.ok_or_else(|| spec.failed("a file name and other options need a driver"))?;
            let name = OsStr::from_bytes(name).to_owned();
            let plain = ImageSpec { name, is_options: false, ..spec.clone() };
            return self.co_options(co, &plain);
        }
        if has_member(&below(&text, b"file."), b"filename")
            && !has_member(&below(&text, b"file."), b"driver")
        {
            text.push(",file.driver=file");
        }
        if !has_member(&text, b"driver") && text.as_bytes().contains(&b'=') {
            let format = self.co_probe(co, spec, &below(&text, b"file."))?;
            let options = std::mem::replace(&mut text, OsString::from(format!("driver={format},")));
            text.push(options);
        }
        if !has_member(&text, b"backing") && has_member(&text, b"driver=qcow2") {
            text.push(spec.backing.option());
        }
        NodeOptions::from_keyval(text).map_err(|error| spec.failed(error))
    }

    /// Has a snapshot read, of an image whose format has any.
    fn set_snapshot(&self, options: &mut NodeOptions, id: &str) -> Result<(), coblk::qapi::Error> {
        *options = self.blockdevs.drivers().resolve(options.clone())?;
        if let Some(own) = options.driver.options::<Qcow2Options>() {
            let mut own = own.clone();
            own.snapshot = Some(id.to_owned());
            options.driver = own.into();
        }
        Ok(())
    }

    /// Finds the format of the bytes of a node.
    fn co_probe(
        &self,
        co: &Co<'_>,
        spec: &ImageSpec,
        options: &OsStr,
    ) -> Result<&'static str, Failure> {
        let failed = |error: coblk::qapi::Error| spec.failed(error);
        let spec = &ImageSpec { is_writable: false, node_name: None, ..spec.clone() };
        let options = NodeOptions::from_keyval(options).map_err(failed)?;
        let image = self.co_open_options(co, options, spec)?;
        let mut bytes = vec![0; PROBE_BYTES.min(image.node.length() as usize)];
        let read = image.backend.co_read(co, 0, &mut bytes);
        self.co_close(co, image)?;
        read.map_err(|error| {
            spec.failed(format!("Could not read image for determining its format: {error}"))
        })?;
        match coblk::qcow2::probe_format(&bytes) {
            None => Ok("raw"),
            Some("qcow2") => Ok("qcow2"),
            Some(other) => {
                let why = "has no driver; -f raw takes its bytes as they are";
                Err(spec.failed(format!("it looks like '{other}', which {why}")))
            }
        }
    }
}

/// The options of a child, with the modes that it has from its parent.
fn below_modes(parent: &NodeOptions, child: &NodeOptions) -> NodeOptions {
    let mut child = child.clone();
    child.read_only = child.read_only.or(parent.read_only);
    child.force_share = child.force_share.or(parent.force_share);
    child.cache_direct = child.cache_direct.or(parent.cache_direct);
    child.cache_no_flush = child.cache_no_flush.or(parent.cache_no_flush);
    child
}

/// Adds the modes of the command line, where the options do not say.
fn set_modes(mut options: NodeOptions, spec: &ImageSpec) -> NodeOptions {
    options.read_only.get_or_insert(!spec.is_writable);
    options.cache_direct.get_or_insert(spec.cache.direct);
    options.cache_no_flush.get_or_insert(spec.cache.no_flush);
    if spec.is_writable {
        options.discard.get_or_insert(true);
    }
    if let Some(name) = &spec.node_name {
        options.node_name.get_or_insert(name.clone());
    }
    if spec.force_share {
        options.force_share = Some(true);
    }
    options
}
