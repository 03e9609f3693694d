//! [`Creates`]: a driver that makes images, beside opening them.

use std::marker::PhantomData;

use coblk_qapi::{Deferred, Error, Schema};
use serde::de::DeserializeOwned;

use super::{BlockdevError, Creating};
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
    type Options: DeserializeOwned + Send;

    /// Makes an image, in nodes that [`Creating::co_child`] opens. Runs in a coroutine; what may block is a
    /// worker's job ([`PoolShare::once`](coblk_aio::PoolShare::once)), and what takes long ends with
    /// ECANCELED when the coroutine is not [wanted](coblk_aio::Co::is_wanted) any more.
    ///
    /// # Errors
    /// If the image cannot be made. What is left of it is the driver's to say.
    fn co_create(creating: &Creating<'_, '_>, options: Self::Options) -> Result<(), CreateError>;
}

/// Why an image was not created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The options make no sense. Nothing was touched.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A node cannot be used.
    #[error(transparent)]
    Node(Box<BlockdevError>),
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

impl From<BlockdevError> for CreateError {
    fn from(error: BlockdevError) -> CreateError {
        CreateError::Node(Box::new(error))
    }
}

/// An image that is to be created: options that were read. [`Drivers::creation`](super::Drivers::creation)
/// reads them, and [`Blockdevs::co_create`](crate::Blockdevs::co_create) makes the image.
pub struct Creation(Box<Create>);

type Create = dyn FnOnce(&Creating<'_, '_>) -> Result<(), CreateError> + Send;

impl std::fmt::Debug for Creation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Creation").finish_non_exhaustive()
    }
}

impl Creation {
    /// Makes the image, and gives back the nodes that it took.
    pub(crate) fn co_run(self, creating: &Creating<'_, '_>) -> Result<(), CreateError> {
        let made = (self.0)(creating);
        let closed = creating.co_finish();
        made.and(closed)
    }
}

/// A driver that makes images, whatever the type of its options.
pub(super) trait Creator: Send + Sync {
    fn read(&self, options: Deferred) -> Result<Creation, Error>;

    fn schema(&self) -> Result<Schema, Error>;
}

/// The only place that knows the types.
struct Typed<C>(PhantomData<fn() -> C>);

impl<C: Creates> Creator for Typed<C> {
    fn read(&self, options: Deferred) -> Result<Creation, Error> {
        let options: C::Options = options.take()?;
        Ok(Creation(Box::new(move |creating| C::co_create(creating, options))))
    }

    fn schema(&self) -> Result<Schema, Error> {
        Schema::of::<C::Options>()
    }
}

pub(super) fn creator<C: Creates>() -> impl Creator + 'static {
    Typed::<C>(PhantomData)
}
