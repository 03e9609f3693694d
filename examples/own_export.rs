//! A storage daemon with a type of exports, and a command, of its own.
//!
//! The type is `dump`: each client of a unix socket is sent the bytes of a node, from the first to the last.
//! The command tells how many it was.
//!
//! ```sh
//! cargo run --example own_export -- --blockdev file,node-name=disk,filename=disk.img \
//!     --export dump,id=e0,node-name=disk,path=/tmp/dump.sock \
//!     --chardev socket,id=c0,path=/tmp/qmp.sock,server=on,wait=off --monitor c0
//! socat -u unix:/tmp/dump.sock - | cmp - disk.img
//! ```

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use coblk::aio::PoolShare;
use coblk::aio::net::{AcceptOptions, Acceptor, Listener, Slot, SocketAddress, Stream};
use coblk::aio::sync::CoSleep;
use coblk::block::{Device, IoStatus};
use coblk::export::{Export, ExportBackend, ExportError, ExportType, Exporting};
use coblk::{Co, CoWaker, FdInterest, IoVectorMut};
use coblk_storage_daemon::builder::DaemonBuilder;
use coblk_storage_daemon::daemon::Daemon;
use coblk_storage_daemon::run;

/// After how long a client that takes nothing is looked at again.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    run::main_with(builder(), std::env::args_os())
}

/// The daemon, with one line for the type and one for the command.
pub fn builder() -> DaemonBuilder {
    let served = Rc::<Cell<u64>>::default();
    let told = Rc::clone(&served);
    Daemon::builder()
        .export_type(Dump { served })
        .command("x-dumps-served", move |_daemon, _co, ()| Ok(told.get()))
}

/// The type.
struct Dump {
    /// How many clients have got all of a node.
    served: Rc<Cell<u64>>,
}

/// What it has beside the options of all types.
#[derive(serde::Deserialize)]
struct DumpOptions {
    /// Where clients connect.
    path: PathBuf,
}

impl ExportType for Dump {
    const NAME: &'static str = "dump";
    type Options = DumpOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: DumpOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        exporting.refuse_iothreads(Self::NAME)?;
        let address = SocketAddress::unix(options.path);
        // To bind a path may block.
        let listener = PoolShare::once(exporting.co, || Listener::bind(&address));
        let listener = listener.map_err(ExportError::of_type)?;
        let shared = Rc::new(Shared {
            backend: exporting.co_open_backend()?,
            served: Rc::clone(&self.served),
            clients: RefCell::default(),
            closing: RefCell::default(),
        });
        let mut accept = AcceptOptions::new("a client of a dump");
        accept.paused = true;
        let own = Rc::clone(&shared);
        let acceptor =
            Acceptor::start(exporting.co.context(), listener, accept, move |co, stream, slot| {
                own.adopt(co, stream, slot);
            });
        match acceptor {
            Ok(acceptor) => Ok(Box::new(DumpExport { shared, acceptor })),
            Err(error) => {
                shared.backend.co_close(exporting.co);
                Err(ExportError::of_type(error))
            }
        }
    }
}

/// An export of that type.
struct DumpExport {
    shared: Rc<Shared>,
    acceptor: Acceptor,
}

struct Shared {
    backend: ExportBackend,
    served: Rc<Cell<u64>>,
    clients: RefCell<Vec<Rc<Client>>>,
    /// Waits for the last client to go.
    closing: RefCell<Option<CoWaker>>,
}

struct Client {
    stream: Stream,
    /// Woken when there may be room in the socket.
    room: CoSleep,
}

impl Export for DumpExport {
    fn device(&self) -> Device {
        self.shared.backend.device()
    }

    fn begin(&self) {
        self.acceptor.begin();
    }

    fn is_in_use(&self) -> bool {
        !self.shared.clients.borrow().is_empty()
    }

    fn io_status(&self) -> IoStatus {
        self.shared.backend.io_status()
    }

    fn resume(&self) {
        self.shared.backend.resume();
    }

    fn report_errors(&self) {
        self.shared.backend.report_errors();
    }

    fn co_close(&self, co: &Co<'_>) {
        self.acceptor.stop();
        // The listener closes in a turn of the loop.
        while self.acceptor.is_running() {
            co.yield_now();
        }
        self.shared.backend.report_errors();
        for client in self.shared.clients.borrow().iter() {
            client.stream.shutdown();
            client.room.wake();
        }
        while self.is_in_use() {
            co.suspend_for("the end of dumps", |waker| {
                self.shared.closing.replace(Some(waker));
            });
        }
        self.shared.backend.co_close(co);
    }
}

impl Shared {
    /// Serves a client in a coroutine of its own.
    fn adopt(self: &Rc<Self>, co: &Co<'_>, stream: Stream, slot: Slot) {
        let (shared, client) = (Rc::clone(self), Rc::new(Client { stream, room: CoSleep::new() }));
        self.clients.borrow_mut().push(Rc::clone(&client));
        co.context().spawn("dump", move |co| {
            let _slot = slot;
            match shared.dump(co, &client) {
                Ok(()) => shared.served.set(shared.served.get() + 1),
                Err(error) => eprintln!("a dump has not reached its end: {error}"),
            }
            shared.clients.borrow_mut().retain(|other| !Rc::ptr_eq(other, &client));
            shared.closing.take().into_iter().for_each(CoWaker::wake);
        });
    }

    fn dump(&self, co: &Co<'_>, client: &Client) -> io::Result<()> {
        let room = client.room.clone();
        let wake = move |_: &_, _| room.wake();
        let _watched = co.context().fd_handler(&client.stream, FdInterest::ReadWrite, wake)?;
        let backend = self.backend.backend();
        let (length, mut buffer) = (backend.length()?, vec![0; CHUNK_BYTES]);
        for offset in (0..length).step_by(CHUNK_BYTES) {
            let bytes = (length - offset).min(CHUNK_BYTES as u64) as usize;
            let chunk = &mut buffer[..bytes];
            backend.co_preadv(co, offset, &mut IoVectorMut::from(&mut *chunk))?;
            client.send(co, chunk)?;
        }
        Ok(())
    }
}

impl Client {
    fn send(&self, co: &Co<'_>, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.stream.write(&[IoSlice::new(rest)]) {
                Ok(bytes) => rest = &rest[bytes..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.room.sleep(co, PATIENCE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
