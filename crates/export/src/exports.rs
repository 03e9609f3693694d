//! [`Exports`]: the exports that there are, and their life.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle, Co};
use coblk_block::{BlockNode, Blockdevs, Device};
use coblk_qapi::{is_identifier, shorten};

use crate::error::ExportError;
use crate::export::{Export, ExportInfo, RemoveMode};
use crate::export_type::{ErrorReporter, ExportIoError, Exporting, FindObjects, Tell};
use crate::options::ExportOptions;
use crate::registry::ExportTypes;

/// The exports of one context, by name, and the types of exports that there can be.
pub struct Exports {
    types: ExportTypes,
    running: RefCell<BTreeMap<String, RunningExport>>,
    /// Clients are let in.
    serving: Cell<bool>,
    /// No more are added.
    ended: Cell<bool>,
    on_error: Tell,
    on_deleted: OnDeleted,
}

/// Where the names of those that are gone are told.
type OnDeleted = Box<dyn Fn(&AioContext, &str)>;

/// An export that there is: a handle, which keeps nothing open.
#[derive(Clone)]
pub struct RunningExport(Rc<Inner>);

struct Inner {
    options: ExportOptions,
    kind: &'static str,
    export: Box<dyn Export>,
    shutting_down: Cell<bool>,
}

impl Exports {
    /// None yet. `on_error` is told of requests that fail, on the thread where they do. `on_deleted` is
    /// told, from a coroutine of the exports' context, the name of an export that is gone, with its node
    /// free.
    pub fn new(
        types: ExportTypes,
        on_error: impl Fn(ExportIoError) + Send + Sync + 'static,
        on_deleted: impl Fn(&AioContext, &str) + 'static,
    ) -> Rc<Exports> {
        Rc::new(Exports {
            types,
            running: RefCell::default(),
            serving: Cell::new(false),
            ended: Cell::new(false),
            on_error: Arc::new(on_error),
            on_deleted: Box::new(on_deleted),
        })
    }

    /// The types that there can be.
    pub fn types(&self) -> &ExportTypes {
        &self.types
    }

    /// Shows a node to others. `objects` finds what options name. Suspends.
    ///
    /// # Errors
    /// If the options are wrong, the name is taken, there is no such type, node or thread, or the node
    /// cannot be exported so. While it is made, the name may be taken, the node go, and the exports
    /// [end](Self::end): it is closed then.
    pub fn co_add(
        &self,
        co: &Co<'_>,
        nodes: &Blockdevs,
        objects: &impl FindObjects,
        options: ExportOptions,
    ) -> Result<RunningExport, ExportError> {
        let (kind, make) = self.types.read(&options)?;
        self.check_new(&options.id)?;
        let no_node = || ExportError::NoSuchNode(shorten(&options.node_name));
        // As in QEMU, a job's filter can be exported, too.
        let node = nodes.node_or_hidden(&options.node_name).ok_or_else(no_node)?;
        if options.writable && node.is_read_only() {
            return Err(ExportError::ReadOnlyNode);
        }
        let context = |id: &String| {
            objects.iothread(id).ok_or_else(|| ExportError::NoSuchIothread(shorten(id)))
        };
        let contexts: Vec<AioHandle> =
            options.iothreads.iter().map(context).collect::<Result<_, _>>()?;
        // An object that is held is not deleted; once the export is listed, it is known by its options.
        let _held: Vec<_> = options.iothreads.iter().map(|id| objects.object(id)).collect();
        let reporter = ErrorReporter {
            id: options.id.clone(),
            node_name: options.node_name.clone(),
            tell: Arc::clone(&self.on_error),
        };
        // As QEMU does: an export keeps its node active, or may find it as it is.
        let wakes = !options.allow_inactive && !node.is_active();
        let woken = wakes.then(|| node.co_wake(co)).transpose()?;
        let (common, contexts) = (&options, contexts.as_slice());
        let making =
            Exporting { co, options: common, node: &node, contexts, reporter, objects, nodes };
        let made = make(&making).and_then(|export| {
            let is_same = |now: Arc<BlockNode>| Arc::ptr_eq(&now, &node);
            let is_there = || nodes.node_or_hidden(&options.node_name).is_some_and(is_same);
            let still_fits = self.check_new(&options.id);
            match still_fits.and_then(|()| is_there().then_some(()).ok_or_else(no_node)) {
                Ok(()) => Ok(export),
                Err(refused) => {
                    export.co_close(co);
                    Err(refused)
                }
            }
        });
        let export = made.inspect_err(|_| {
            if let Some(Err(error)) = woken.map(|woken| woken.co_undo(co)) {
                tracing::warn!(%error, "a node that was to be exported stays active");
            }
        })?;
        let id = options.id.clone();
        let running = Inner { options, kind, export, shutting_down: Cell::new(false) };
        let running = RunningExport(Rc::new(running));
        self.running.borrow_mut().insert(id, running.clone());
        if self.serving.get() {
            running.0.export.begin();
        }
        Ok(running)
    }

    /// That there may be a new one of this name.
    fn check_new(&self, id: &str) -> Result<(), ExportError> {
        if self.ended.get() {
            return Err(ExportError::Ended);
        }
        if !is_identifier(id) {
            return Err(ExportError::Id);
        }
        match self.running.borrow().contains_key(id) {
            true => Err(ExportError::Duplicate(shorten(id))),
            false => Ok(()),
        }
    }

    /// Lets clients in, also of exports to come. Clients that have connected before were waiting.
    pub fn begin(&self) {
        if !self.serving.replace(true) {
            self.all().iter().for_each(|running| running.0.export.begin());
        }
    }

    /// No more exports are added. Those that there are stay.
    pub fn end(&self) {
        self.ended.set(true);
    }

    /// All of them, by name; those on their way out too.
    pub fn all(&self) -> Vec<RunningExport> {
        self.running.borrow().values().cloned().collect()
    }

    /// The one of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, id: &str) -> Result<RunningExport, ExportError> {
        let running = self.running.borrow().get(id).cloned();
        running.ok_or_else(|| ExportError::NotFound(shorten(id)))
    }

    /// Begins to remove an export (contract: C86). It is listed until its last request is done. With
    /// [`RemoveMode::Hard`] requests to its node that wait for something outside of the process, such as
    /// a reconnect, fail, also those of others ([`BlockNode::cancel_in_flight`]).
    ///
    /// # Errors
    /// If there is none, if it has clients and the mode is [`RemoveMode::Safe`], or if it is on its way
    /// out.
    pub fn remove(
        self: &Rc<Self>,
        ctx: &AioContext,
        id: &str,
        mode: RemoveMode,
    ) -> Result<(), ExportError> {
        let running = self.get(id)?;
        if running.is_shutting_down() {
            return Err(ExportError::ShuttingDown(shorten(id)));
        }
        if mode == RemoveMode::Safe && running.is_in_use() {
            return Err(ExportError::InUse(shorten(id)));
        }
        self.close(ctx, &running);
        if mode == RemoveMode::Hard
            && let Some(node) = running.0.export.node()
        {
            // The end of the export would wait for what waits for a server to come back.
            node.cancel_in_flight();
        }
        Ok(())
    }

    /// Begins to remove an export, clients or not. Without effect on one that is on its way out.
    pub fn close(self: &Rc<Self>, ctx: &AioContext, running: &RunningExport) {
        if running.0.shutting_down.replace(true) {
            return;
        }
        let (exports, running) = (Rc::clone(self), running.clone());
        ctx.spawn("close export", move |co| {
            running.0.export.co_close(co);
            let id = running.id().to_owned();
            exports.running.borrow_mut().remove(&id);
            // What it still has goes before it is told that it is gone.
            drop(running);
            (exports.on_deleted)(co.context(), &id);
        });
    }
}

impl RunningExport {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.0.options.id
    }

    /// Its type, as in options.
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }

    /// What it was made of.
    pub fn options(&self) -> &ExportOptions {
        &self.0.options
    }

    /// Its device in the block graph.
    pub fn device(&self) -> Device {
        self.0.export.device()
    }

    /// The node that it shows at this moment; `None` once it is closed.
    pub fn node(&self) -> Option<Arc<BlockNode>> {
        self.0.export.node()
    }

    /// How it is at this moment.
    pub fn info(&self) -> ExportInfo {
        let Inner { options, kind, export, shutting_down } = &*self.0;
        let node = export.node();
        ExportInfo {
            id: options.id.clone(),
            kind,
            node_name: node.map_or(options.node_name.clone(), |node| node.name().to_owned()),
            device: export.device(),
            shutting_down: shutting_down.get(),
            io_status: export.io_status(),
        }
    }

    /// Whether it is on its way out, or gone.
    pub fn is_shutting_down(&self) -> bool {
        self.0.shutting_down.get()
    }

    /// Whether it has clients.
    pub fn is_in_use(&self) -> bool {
        self.0.export.is_in_use()
    }

    /// Requests that an error stopped are tried again.
    pub fn resume(&self) {
        self.0.export.resume();
    }

    /// Requests that an error stopped fail, and those to come.
    pub fn report_errors(&self) {
        self.0.export.report_errors();
    }
}

impl fmt::Debug for RunningExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info().fmt(f)
    }
}

impl fmt::Debug for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}
