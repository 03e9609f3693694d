//! [`Station`]: a queue on its context, and the way to it from the thread of the exports.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use async_channel::{Receiver, Sender};
use coblk_aio::{AioHandle, Co, JoinHandle};
use coblk_block::{BackendOptions, BlockNode, Device, ErrorAction, ErrorPolicies, IoStatus};
use coblk_export::{ErrorReporter, ExportError};

use crate::file::{Call, File};
use crate::queue::Queue;
use crate::ring::{Share, Spare};

/// All that a context is given to serve requests.
#[derive(Clone)]
pub struct Plan {
    pub file: Arc<File>,
    pub node: Arc<BlockNode>,
    pub backend: BackendOptions,
    /// That of the backends.
    pub device: Device,
    pub policies: ErrorPolicies,
    pub reporter: ErrorReporter,
    /// No other context serves the file.
    pub is_alone: bool,
    /// Requests of all queues that the kernel may send before they are answered.
    pub max_background: u16,
    /// The kernel's queues that it serves over a ring, if it is to have one.
    pub share: Option<Share>,
}

/// What a queue is told.
enum Command {
    Begin,
    Call(Call),
    Resume,
    ReportErrors,
}

/// A queue that lives in a coroutine of its context, until this is dropped or closed.
pub struct Station {
    commands: Sender<Command>,
    life: JoinHandle<()>,
}

impl Station {
    /// Makes a queue on a context, which does not read yet. Suspends.
    pub fn co_start(
        co: &Co<'_>,
        home: &AioHandle,
        plan: Plan,
        device: OwnedFd,
    ) -> Result<Station, ExportError> {
        let (commands, orders) = async_channel::unbounded();
        let (ready, started) = async_channel::bounded(1);
        let life = home.spawn("fuse export", move |co| match open(co, plan, device) {
            Ok(queue) => {
                let _ = ready.try_send(Ok(()));
                live(co, &queue, &orders);
            }
            Err(refused) => {
                let _ = ready.try_send(Err(refused));
            }
        });
        // Without an answer, the context is gone.
        let gone = || ExportError::of_type(format!("the context '{}' is gone", home.name()));
        co.block_on(started.recv()).map_err(|_| gone())??;
        Ok(Station { commands, life })
    }

    pub fn begin(&self) {
        self.tell(Command::Begin);
    }

    /// What tells the queue, from any thread.
    pub fn caller(&self) -> impl Fn(Call) + Send + Sync + 'static {
        // Not a sender that keeps the station.
        let commands = self.commands.downgrade();
        move |call| {
            if let Some(commands) = commands.upgrade() {
                let _ = commands.try_send(Command::Call(call));
            }
        }
    }

    pub fn resume(&self) {
        self.tell(Command::Resume);
    }

    pub fn report_errors(&self) {
        self.tell(Command::ReportErrors);
    }

    fn tell(&self, command: Command) {
        // Fails if the context is gone, and the queue with it.
        let _ = self.commands.try_send(command);
    }

    /// Has the queue read no more. What this returns is done when all is answered, and the node free.
    pub fn close(self) -> JoinHandle<()> {
        self.life
    }
}

fn open(co: &Co<'_>, plan: Plan, device: OwnedFd) -> Result<Rc<Queue>, ExportError> {
    let Plan { file, node, backend, policies, reporter, is_alone, max_background, share, .. } =
        plan;
    let device = Rc::new(device);
    let ringless = |error| ExportError::of_type(format!("cannot use io_uring: {error}"));
    let spare = share.map(|share| Spare::new(&device, share)).transpose().map_err(ringless)?;
    let backend = backend.co_open(co, node)?;
    backend.set_error_policies(policies);
    let status = Arc::clone(&file);
    backend.set_error_listener(move |_, _, event| {
        if event.action == ErrorAction::Stop {
            let no_space = event.is_no_space();
            status.set_status(if no_space { IoStatus::NoSpace } else { IoStatus::Failed });
        }
        reporter.report(event);
    });
    let ctx = co.context();
    let queue = Queue::new(ctx, file, backend, device, is_alone, max_background, spare.flatten());
    if let Some(lane) = queue.lane() {
        lane.watch(co.context(), &queue).map_err(ringless)?;
    }
    let told = Rc::downgrade(&queue);
    queue.backend.set_length_listener(move |_, _| {
        if let Some(queue) = told.upgrade() {
            queue.forget_attributes();
        }
    });
    Ok(queue)
}

/// Does what it is told, until there is no more; then ends.
fn live(co: &Co<'_>, queue: &Rc<Queue>, orders: &Receiver<Command>) {
    let mut reporting = None;
    while let Ok(command) = co.block_on(orders.recv()) {
        match command {
            Command::Begin => {
                if let Err(error) = queue.begin(co.context()) {
                    let export = queue.backend.name();
                    tracing::error!(export, %error, "cannot wait for FUSE requests");
                }
            }
            Command::Call(Call::UseRing) => {
                queue.lane().into_iter().for_each(|lane| lane.begin());
            }
            Command::Call(Call::Look) => queue.read_all(co.context()),
            Command::Resume => queue.backend.resume(),
            Command::ReportErrors => reporting = Some(queue.backend.report_errors()),
        }
    }
    queue.stop(co.context());
    reporting.get_or_insert_with(|| queue.backend.report_errors());
    queue.co_wait(co);
    queue.lane().into_iter().for_each(|lane| lane.end());
    queue.backend.co_remove_medium(co);
}
