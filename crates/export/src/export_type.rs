//! [`ExportType`]: a type of exports, and what it is given to make one.

use std::any::Any;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co};
use coblk_block::{BackendOptions, BlockNode, Blockdevs, ErrorEvent};
use coblk_qapi::shorten;
use serde::de::DeserializeOwned;

use crate::backend::ExportBackend;
use crate::error::ExportError;
use crate::export::Export;
use crate::options::ExportOptions;

/// A type of exports: a value in [`ExportTypes`](crate::ExportTypes), which may hold what its exports
/// share.
///
/// Its options are a struct of its own; derive `Deserialize`, see [`coblk_qapi`]. A parameter that is
/// neither among them nor among those of all types is refused.
pub trait ExportType: 'static {
    /// Its name: `type` in options.
    const NAME: &'static str;

    /// Its own options.
    type Options: DeserializeOwned + 'static;

    /// Makes an export whose clients wait until it [begins](Export::begin). It may suspend. What it gives
    /// back is at once listed, or closed if it cannot be kept.
    ///
    /// # Errors
    /// If it cannot be made. Nothing is left of it then.
    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: Self::Options,
    ) -> Result<Box<dyn Export>, ExportError>;
}

/// For a type that its owner keeps a handle to.
impl<T: ExportType> ExportType for Rc<T> {
    const NAME: &'static str = T::NAME;
    type Options = T::Options;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: T::Options,
    ) -> Result<Box<dyn Export>, ExportError> {
        T::co_make(self, exporting, options)
    }
}

/// An object that options name, whatever it is.
pub type SharedObject = Arc<dyn Any + Send + Sync>;

/// Finds what the options of an export refer to by an id. A closure finds iothreads alone.
pub trait FindObjects {
    /// The context of an iothread.
    fn iothread(&self, id: &str) -> Option<AioHandle>;

    /// An object of any type.
    fn object(&self, _id: &str) -> Option<SharedObject> {
        None
    }
}

impl<F: Fn(&str) -> Option<AioHandle>> FindObjects for F {
    fn iothread(&self, id: &str) -> Option<AioHandle> {
        self(id)
    }
}

/// An export in the making: what is known of it whatever its type.
#[non_exhaustive]
pub struct Exporting<'a, 'co> {
    /// The coroutine that makes it, in the context of the exports.
    pub co: &'a Co<'co>,
    /// The options that all types have.
    pub options: &'a ExportOptions,
    /// The node. It can be written to if the options say so.
    pub node: &'a Arc<BlockNode>,
    /// The contexts that are to serve it; none for that of the exports.
    pub contexts: &'a [AioHandle],
    /// To be told of requests that fail.
    pub reporter: ErrorReporter,
    pub(crate) objects: &'a dyn FindObjects,
    pub(crate) nodes: &'a Blockdevs,
}

impl fmt::Debug for Exporting<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporting").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Exporting<'_, '_> {
    /// The object of an id that an option of the type names.
    ///
    /// # Errors
    /// If there is none, or it is something else.
    pub fn object<T: Send + Sync + 'static>(&self, id: &str) -> Result<Arc<T>, ExportError> {
        let object = self.objects.object(id);
        let object = object.ok_or_else(|| ExportError::NoSuchObject(shorten(id)))?;
        object.downcast().map_err(|_| ExportError::OtherObject(shorten(id)))
    }

    /// The node of a name that an option of the type says.
    pub fn find_node(&self, name: &str) -> Option<Arc<BlockNode>> {
        self.nodes.node_or_hidden(name)
    }

    /// How the backends of the export use its node. As QEMU's exports they let others write.
    pub fn backend_options(&self) -> BackendOptions {
        let ExportOptions { id, writable, allow_inactive, .. } = self.options;
        BackendOptions::new(id).read_only(!writable).share_rw(true).allow_inactive(*allow_inactive)
    }

    /// A backend in the context of the exports, with the policies that the options want, whose errors are
    /// reported. Suspends.
    ///
    /// # Errors
    /// If other users of the node do not agree.
    pub fn co_open_backend(&self) -> Result<ExportBackend, ExportError> {
        let options = self.backend_options();
        let device = options.device();
        let backend = options.co_open(self.co, Arc::clone(self.node))?;
        backend.set_error_policies(self.options.error_policies());
        let reporter = self.reporter.clone();
        backend.set_error_listener(move |_, _, event| reporter.report(event));
        Ok(ExportBackend::new(backend, device))
    }

    /// For types that only the context of the exports can serve: others are ignored, with a word in the
    /// log.
    ///
    /// # Errors
    /// If the options want no other.
    pub fn refuse_iothreads(&self, kind: &'static str) -> Result<(), ExportError> {
        if self.contexts.is_empty() {
            return Ok(());
        }
        if self.options.fixed_iothread {
            return Err(ExportError::MainThreadOnly(kind));
        }
        tracing::warn!(export = self.options.id, "is served by the main thread");
        Ok(())
    }
}

/// A request of an export that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportIoError {
    /// The export.
    pub id: String,
    /// The node that it was made for.
    pub node_name: String,
    /// What failed, and what was done about it.
    pub event: ErrorEvent,
}

/// Tells of failed requests of one export. Any thread.
#[derive(Clone)]
pub struct ErrorReporter {
    pub(crate) id: String,
    pub(crate) node_name: String,
    pub(crate) tell: Tell,
}

/// Where errors of all exports are told.
pub(crate) type Tell = Arc<dyn Fn(ExportIoError) + Send + Sync>;

impl ErrorReporter {
    /// Tells of one.
    pub fn report(&self, event: ErrorEvent) {
        let (id, node_name) = (self.id.clone(), self.node_name.clone());
        (self.tell)(ExportIoError { id, node_name, event });
    }
}

impl fmt::Debug for ErrorReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorReporter").field("id", &self.id).finish_non_exhaustive()
    }
}
