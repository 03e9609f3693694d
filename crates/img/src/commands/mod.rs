//! The commands, one a file: options, and what is done with them.

pub(crate) mod amend;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod info;
pub(crate) mod map;
pub(crate) mod measure;
mod options;
pub(crate) mod resize;
pub(crate) mod snapshot;
mod snapshot_list;

use coblk::Co;

use crate::image::Images;
use crate::interrupt::Interrupt;

/// What a command works with.
pub(crate) struct Tool<'a, 'co> {
    /// The coroutine that it runs in, of the main context.
    pub(crate) co: &'a Co<'co>,
    /// Its images.
    pub(crate) images: &'a Images,
    /// Whether it shall stop.
    pub(crate) interrupt: &'a Interrupt,
}
