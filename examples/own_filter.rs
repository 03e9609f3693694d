//! A filter: it refuses to change the beginning of its child. Part of `own_driver.rs`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk::block::options::{DriverOptions, NodeRef};
use coblk::block::{Child, ChildRole, Driver, Filter, OpenError, Opening, Reopen, Reopening};
use coblk::block::{Truncate, WriteFlags, ZeroFlags};
use coblk::qapi::Size;
use coblk::{Co, IoVector};
use serde::{Deserialize, Serialize};

/// The filter. Hooks that it does not implement go to the child.
pub struct Protect {
    child: Child,
    bytes: AtomicU64,
}

/// What options say of it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ProtectOptions {
    file: NodeRef,
    bytes: Size,
}

impl DriverOptions for ProtectOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
}

impl Driver for Protect {
    const NAMES: &'static [&'static str] = &["protect"];
    const CHANGEABLE: &'static [&'static str] = &["bytes"];
    type Options = ProtectOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &ProtectOptions) -> Result<Protect, OpenError> {
        let child = opening.co_child("file", ChildRole::FILTER, &options.file)?;
        Ok(Protect { child, bytes: options.bytes.0.into() })
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        _: &Reopening<'_, '_>,
        options: &ProtectOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        let mut other = options.bytes.0;
        Ok(Box::new(move || other = self.bytes.swap(other, Ordering::Relaxed)))
    }
}

impl Protect {
    fn check(&self, first: u64) -> io::Result<()> {
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        if first < self.bytes.load(Ordering::Relaxed) { refused() } else { Ok(()) }
    }
}

impl Filter for Protect {
    fn name(&self) -> &'static str {
        "protect"
    }

    fn child(&self) -> &Child {
        &self.child
    }

    fn write(&self, co: &Co<'_>, at: u64, from: &IoVector<'_>, how: WriteFlags) -> io::Result<()> {
        self.check(at)?;
        self.child.co_pwritev(co, at, from, how)
    }

    fn zero(&self, co: &Co<'_>, at: u64, bytes: u64, how: ZeroFlags) -> io::Result<()> {
        self.check(at)?;
        self.child.co_pwrite_zeroes(co, at, bytes, how)
    }

    fn discard(&self, co: &Co<'_>, at: u64, bytes: u64) -> io::Result<()> {
        self.check(at)?;
        self.child.co_pdiscard(co, at, bytes)
    }

    fn truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.check(length)?;
        self.child.co_truncate(co, length, how)
    }
}
