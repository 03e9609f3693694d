//! [`Measures`]: a driver that says how many bytes an image would have, before there is one.

use std::marker::PhantomData;

use coblk_aio::Co;
use coblk_qapi::Deferred;
use serde::de::DeserializeOwned;

use super::CreateError;
use crate::backend::BlockBackend;

/// A driver that measures images. [`Drivers::add_measures`](super::Drivers::add_measures) makes it known.
///
/// It stands beside [`Creates`](super::Creates), and is no operation of [`ImageFormat`](crate::ImageFormat):
/// the image that is measured is not there yet, and what it is to have may be on a node of any driver.
pub trait Measures: 'static {
    /// The name that `driver` has in the options.
    const NAME: &'static str;

    /// The other options: those that the image would be created with; derive `Deserialize`, see
    /// [`coblk_qapi`].
    type Options: DeserializeOwned;

    /// Says how many bytes an image would have that has what `source` has: as long, with its data, of which
    /// [`BlockBackend::co_status_above`] tells. Without a source it is empty, and the options say how long
    /// it is. Runs in a coroutine; what takes long ends with ECANCELED when the coroutine is not
    /// [wanted](Co::is_wanted) any more.
    ///
    /// # Errors
    /// If there could be no such image.
    fn co_measure(
        co: &Co<'_>,
        options: Self::Options,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError>;
}

/// How many bytes an image would have, in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measure {
    /// When it was just made, with what the source has.
    pub required: u64,
    /// When all of it has been written.
    pub fully_allocated: u64,
    /// For the bitmaps of the source, if it has such, and the image could have them.
    pub bitmaps: Option<u64>,
}

impl Measure {
    /// So many bytes at first, and when all of it has been written.
    pub fn new(required: u64, fully_allocated: u64) -> Measure {
        Measure { required, fully_allocated, bitmaps: None }
    }
}

/// A driver that measures images, whatever the type of its options.
pub(super) trait Measurer: Send + Sync {
    fn co_measure(
        &self,
        co: &Co<'_>,
        options: Deferred,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError>;
}

/// The only place that knows the types.
struct Typed<M>(PhantomData<fn() -> M>);

impl<M: Measures> Measurer for Typed<M> {
    fn co_measure(
        &self,
        co: &Co<'_>,
        options: Deferred,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError> {
        M::co_measure(co, options.take()?, source)
    }
}

pub(super) fn measurer<M: Measures>() -> impl Measurer + 'static {
    Typed::<M>(PhantomData)
}
