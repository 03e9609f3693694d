//! [`Creates`]: a driver that makes images, beside opening them.

use std::marker::PhantomData;

use coblk_aio::Co;
use coblk_qapi::Deferred;
use serde::de::DeserializeOwned;

use crate::options::OptionsError;

/// Any error of a driver's.
type DriverError = Box<dyn std::error::Error + Send + Sync>;

/// A driver that makes images. [`Drivers::add_creates`](super::Drivers::add_creates) makes it known.
///
/// It need not be a [`Driver`](super::Driver): making an image opens no node.
pub trait Creates: 'static {
    /// The name that `driver` has in the options.
    const NAME: &'static str;

    /// The other options, in QEMU's words; derive `Deserialize`, see [`coblk_qapi`].
    type Options: DeserializeOwned;

    /// Makes an image. Runs in a coroutine; what may block is a worker's job
    /// ([`PoolShare::once`](coblk_aio::PoolShare::once)), and what takes long ends with ECANCELED when the
    /// coroutine is not [wanted](Co::is_wanted) any more.
    ///
    /// # Errors
    /// If the image cannot be made. What is left of it is the driver's to say.
    fn co_create(co: &Co<'_>, options: Self::Options) -> Result<(), CreateError>;
}

/// Why an image was not created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The options make no sense. Nothing was touched.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The driver has failed.
    #[error(transparent)]
    Driver(DriverError),
}

impl CreateError {
    /// A reason of the driver's own.
    pub fn of_driver(error: impl Into<DriverError>) -> CreateError {
        CreateError::Driver(error.into())
    }
}

/// A driver that makes images, whatever the type of its options.
pub(super) trait Creator: Send + Sync {
    fn co_create(&self, co: &Co<'_>, options: Deferred) -> Result<(), CreateError>;
}

/// The only place that knows the types.
struct Typed<C>(PhantomData<fn() -> C>);

impl<C: Creates> Creator for Typed<C> {
    fn co_create(&self, co: &Co<'_>, options: Deferred) -> Result<(), CreateError> {
        C::co_create(co, options.take()?)
    }
}

pub(super) fn creator<C: Creates>() -> impl Creator + 'static {
    Typed::<C>(PhantomData)
}
