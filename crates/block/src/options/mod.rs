//! Options of nodes in QEMU's words: typed ([`NodeOptions`]), as JSON, or as on a command line.
//!
//! ```
//! use coblk_block::options::NodeOptions;
//!
//! let json = r#"{"driver": "raw", "node-name": "d0", "file":
//!     {"driver": "file", "filename": "a.img", "aio": "io_uring", "cache": {"direct": true}}}"#;
//! let line = "driver=raw,node-name=d0,file.driver=file,file.filename=a.img,file.aio=io_uring,\
//!             file.cache.direct=on";
//! let drivers = coblk_block::drivers();
//! let same = [NodeOptions::from_json(json)?, NodeOptions::from_keyval(line)?];
//! let [json, line] = same.map(|options| drivers.resolve(options));
//! assert_eq!(json?, line?);
//! # Ok::<(), coblk_block::options::OptionsError>(())
//! ```
//!
//! [`Blockdevs::open`](crate::Blockdevs::open) makes nodes of them.
//!
//! Options that all nodes have are read here (`text.rs`). The other members are kept as they were
//! written
//! (`driver.rs`), until a set of drivers reads them: only that knows their types.

mod driver;
mod text;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use coblk_qapi::shorten;
use serde_json::Value;

pub(crate) use driver::{AnyOptions, OwnOptions};
pub use driver::{DriverConfig, DriverOptions};
pub(crate) use text::{TAG, common_schema};

use crate::driver::mode::DetectZeroes;

/// Why a text is not the description of a node.
pub type OptionsError = coblk_qapi::Error;

/// The longest name of a node, in bytes; QEMU's.
const MAX_NAME_BYTES: usize = 31;

/// The options of a node.
///
/// A child that is described in them, and not named, inherits `read_only`, `auto_read_only`,
/// `force_share`, `cache_direct` and `cache_no_flush` where its own options do not say; discards
/// reach it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeOptions {
    /// `node-name`: unique among nodes opened together; one is made up if there is none.
    pub node_name: Option<String>,
    /// `read-only`: writes are refused. Off by default.
    pub read_only: Option<bool>,
    /// `auto-read-only`: read-only if the image may not be written to. Off by
    /// default.
    pub auto_read_only: Option<bool>,
    /// `discard`: whether discards reach the driver (`unmap`), or do nothing (`ignore`, the
    /// default).
    pub discard: Option<bool>,
    /// `detect-zeroes`: how a write of only zeroes is carried out. As a write by default.
    pub detect_zeroes: Option<DetectZeroes>,
    /// `force-share`: other processes may use the image in any way; only with `read-only`. Off by
    /// default.
    pub force_share: Option<bool>,
    /// `cache.direct`: no page cache. Off by default.
    pub cache_direct: Option<bool>,
    /// `cache.no-flush`: flushes do nothing, so a crash of the host may lose everything. Off by
    /// default.
    pub cache_no_flush: Option<bool>,
    /// `active`: whether the storage is this process's from the start, see
    /// [`BlockNode::co_set_active`](crate::BlockNode::co_set_active). On by default; a
    /// backing file is inactive if its parent is.
    pub active: Option<bool>,
    /// `x-coblk-bitmaps`: a file in which persistent bitmaps are kept, for drivers that cannot keep any.
    pub bitmaps: Option<PathBuf>,
    /// `driver`, and what belongs to it.
    pub driver: DriverConfig,
}

/// A child of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeRef {
    /// A node that exists, by its name.
    Name(String),
    /// A node that is made for the parent.
    Options(Arc<NodeOptions>),
}

/// What an option says of a [slot](crate::ChildSlot), such as `backing`: a child, or explicitly none. It
/// is an `Option` in a driver's options, as an option that is left out leaves the choice to the driver.
///
/// None is `null` in JSON, and an empty text on a command line (`backing=`) and in JSON, too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeRefOrNull(pub Option<NodeRef>);

impl NodeRefOrNull {
    /// The child, or `None` if there is to be none.
    pub fn node(&self) -> Option<&NodeRef> {
        self.0.as_ref()
    }
}

impl From<NodeRef> for NodeRefOrNull {
    fn from(child: NodeRef) -> NodeRefOrNull {
        NodeRefOrNull(Some(child))
    }
}

impl From<NodeOptions> for NodeRef {
    fn from(options: NodeOptions) -> NodeRef {
        NodeRef::Options(Arc::new(options))
    }
}

impl From<&str> for NodeRef {
    fn from(name: &str) -> NodeRef {
        NodeRef::Name(name.to_owned())
    }
}

impl NodeOptions {
    /// A node of `driver` with every option as it is by default.
    pub fn new(driver: impl Into<DriverConfig>) -> NodeOptions {
        NodeOptions {
            node_name: None,
            read_only: None,
            auto_read_only: None,
            discard: None,
            detect_zeroes: None,
            force_share: None,
            cache_direct: None,
            cache_no_flush: None,
            active: None,
            bitmaps: None,
            driver: driver.into(),
        }
    }

    /// `node-name`.
    pub fn named(self, name: impl Into<String>) -> NodeOptions {
        NodeOptions { node_name: Some(name.into()), ..self }
    }

    /// `read-only`.
    pub fn read_only(self, read_only: bool) -> NodeOptions {
        NodeOptions { read_only: Some(read_only), ..self }
    }

    /// `auto-read-only`.
    pub fn auto_read_only(self, auto_read_only: bool) -> NodeOptions {
        NodeOptions { auto_read_only: Some(auto_read_only), ..self }
    }

    /// `discard`: `unmap` if true.
    pub fn discard(self, unmap: bool) -> NodeOptions {
        NodeOptions { discard: Some(unmap), ..self }
    }

    /// `detect-zeroes`.
    pub fn detect_zeroes(self, detect_zeroes: DetectZeroes) -> NodeOptions {
        NodeOptions { detect_zeroes: Some(detect_zeroes), ..self }
    }

    /// `force-share`.
    pub fn force_share(self, force_share: bool) -> NodeOptions {
        NodeOptions { force_share: Some(force_share), ..self }
    }

    /// `cache.direct`.
    pub fn cache_direct(self, direct: bool) -> NodeOptions {
        NodeOptions { cache_direct: Some(direct), ..self }
    }

    /// `cache.no-flush`.
    pub fn cache_no_flush(self, no_flush: bool) -> NodeOptions {
        NodeOptions { cache_no_flush: Some(no_flush), ..self }
    }

    /// `active`.
    pub fn active(self, active: bool) -> NodeOptions {
        NodeOptions { active: Some(active), ..self }
    }

    /// `x-coblk-bitmaps`.
    pub fn bitmaps(self, file: impl Into<PathBuf>) -> NodeOptions {
        NodeOptions { bitmaps: Some(file.into()), ..self }
    }

    /// Reads a JSON object, with QEMU's names and types; those that belong to the driver are read later,
    /// by [`Drivers::resolve`](crate::Drivers::resolve).
    ///
    /// # Errors
    /// Which parameter is wrong, in QEMU's words.
    pub fn from_json(text: &str) -> Result<NodeOptions, OptionsError> {
        coblk_qapi::from_json(text)
    }

    /// Reads a JSON object that has been parsed.
    ///
    /// # Errors
    /// Which parameter is wrong, in QEMU's words.
    pub fn from_value(value: Value) -> Result<NodeOptions, OptionsError> {
        coblk_qapi::from_value(value)
    }

    /// Reads options as on a command line: `driver=raw,file.driver=file,file.filename=a.img`. A
    /// comma in a value is written twice; the first word may be the driver alone, `raw`. A file
    /// name may have any bytes.
    ///
    /// # Errors
    /// Which parameter is wrong, in QEMU's words.
    pub fn from_keyval(text: impl AsRef<OsStr>) -> Result<NodeOptions, OptionsError> {
        coblk_qapi::from_keyval(text, "driver")
    }
}

/// A name that a user may give: QEMU's rule, so that ours, which begin with `#`, are never taken.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let good = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
    let begins = name.starts_with(|it: char| it.is_ascii_alphabetic());
    if begins && name.chars().all(good) && name.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    Err(format!(
        "'{}' is not a name: a letter, and then letters, digits, '-', '.' and '_', \
         {MAX_NAME_BYTES} in all",
        shorten(name)
    ))
}

#[cfg(test)]
mod tests;
