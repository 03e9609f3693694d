//! A monitor on a thread of its own, and a client.

#![allow(dead_code, reason = "each test program uses its part")]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use coblk_aio::{AioContext, AioHandle};
use coblk_qmp::{CommandTable, Event, Monitor, QmpError, QmpOptions, SocketAddress};
use serde::Deserialize;
use serde_json::{Value, json};

/// After this long a test that waits has failed. Nothing else depends on it.
const HANG: Duration = Duration::from_secs(60);

pub struct Served {
    pub dir: tempfile::TempDir,
    pub address: SocketAddress,
    /// How many events were made.
    pub emitted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    handle: AioHandle,
    thread: Option<JoinHandle<()>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Echo {
    text: String,
    #[serde(default)]
    times: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Events {
    count: u32,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    limited: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    ms: u64,
}

/// Commands to test with.
fn table(monitor: &Rc<RefCell<Option<Monitor>>>, emitted: Arc<AtomicUsize>) -> CommandTable {
    let mut table = CommandTable::new();
    table.command("echo", |_, echo: Echo| {
        Ok(json!({"text": echo.text.repeat(usize::from(echo.times.unwrap_or(1)))}))
    });
    table.command("panic", |_, ()| -> Result<(), QmpError> { panic!("as it was told to") });
    table.command("refuse", |_, ()| Err::<(), _>(QmpError::generic("no")));
    let own = Rc::downgrade(monitor);
    table.command("emit", move |_, events: Events| {
        let Some(own) = own.upgrade() else { return Err(QmpError::generic("gone")) };
        for number in 0..events.count {
            let event = Event::new("TEST").with("number", number);
            let event = event.with("fill", "x".repeat(events.bytes));
            let event = if events.limited { event.limited("") } else { event };
            own.borrow().as_ref().expect("a monitor").emit(event);
            emitted.fetch_add(1, Ordering::Release);
        }
        Ok(())
    });
    table.command("wait", |co, wait: Wait| {
        co.sleep(Duration::from_millis(wait.ms));
        Ok(())
    });
    table
}

impl Served {
    pub fn new() -> Served {
        Served::with(QmpOptions::default(), None)
    }

    /// With options; and at a TCP port that the system chooses, or at a unix socket.
    pub fn with(options: QmpOptions, tcp: Option<std::net::SocketAddr>) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let address = match tcp {
            Some(tcp) => SocketAddress::tcp(tcp),
            None => SocketAddress::unix(dir.path().join("qmp.sock")),
        };
        Served::run(dir, move |ctx, table| Monitor::listen(ctx, &address, table, options).unwrap())
    }

    /// One that connects to the socket "client.sock" in its directory, again and again.
    pub fn connecting() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddress::unix(dir.path().join("client.sock"));
        let pause = Some(Duration::from_millis(1));
        Served::run(dir, move |ctx, table| {
            Monitor::connect(ctx, &address, pause, table, QmpOptions::default()).unwrap()
        })
    }

    fn run(
        dir: tempfile::TempDir,
        make: impl FnOnce(&AioContext, Rc<CommandTable>) -> Monitor + Send + 'static,
    ) -> Served {
        let (stop, emitted) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (tell, told) = mpsc::channel();
        let (flag, counter) = (Arc::clone(&stop), Arc::clone(&emitted));
        let thread = std::thread::spawn(move || {
            let ctx = AioContext::for_test().unwrap();
            let place = Rc::new(RefCell::new(None));
            let monitor = make(&ctx, table(&place, counter).into());
            tell.send((monitor.addresses()[0].clone(), ctx.handle())).unwrap();
            *place.borrow_mut() = Some(monitor);
            ctx.run_until(|| flag.load(Ordering::Acquire));
            let monitor = place.take().expect("a monitor");
            ctx.run(|co| monitor.co_shutdown(co, Duration::from_secs(10)));
        });
        let (address, handle) = told.recv().unwrap();
        Served { dir, address, emitted, stop, handle, thread: Some(thread) }
    }

    pub fn path(&self) -> PathBuf {
        self.address.path().expect("a unix socket").to_owned()
    }

    /// A client that has read the greeting.
    pub fn greeted(&self) -> Client {
        let mut client = Client::new(connect(&self.path()));
        let greeting = client.receive();
        assert_eq!(greeting["QMP"]["capabilities"], json!([]), "{greeting}");
        client
    }

    /// A client that has negotiated.
    pub fn client(&self) -> Client {
        let mut client = self.greeted();
        assert_eq!(client.ask(br#"{"execute": "qmp_capabilities"}"#), json!({"return": {}}));
        client
    }

    /// Asks it to end, which it does when the client has its answer.
    pub fn begin_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.handle.schedule(|_| ());
    }

    /// Whether a client is served as if nothing had ever happened.
    #[track_caller]
    pub fn check(&self) {
        let answer =
            self.client().ask(br#"{"execute": "echo", "arguments": {"text": "a"}, "id": 1}"#);
        assert_eq!(answer, json!({"return": {"text": "a"}, "id": 1}));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.begin_stop();
        let result = self.thread.take().expect("a thread").join();
        if !std::thread::panicking() {
            result.expect("the monitor's thread");
        }
    }
}

pub fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

pub struct Client {
    pub stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Client {
        let lines = BufReader::new(stream.try_clone().unwrap());
        Client { stream, lines }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next line, or none if the other side has closed.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(bytes) => (bytes > 0).then_some(line),
            // It has closed with something unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("reading an answer: {error}"),
        }
    }

    #[track_caller]
    pub fn receive(&mut self) -> Value {
        let line = self.line().expect("a message and not the end");
        assert!(line.ends_with("\r\n"), "{line:?}");
        assert!(line.is_ascii(), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    #[track_caller]
    pub fn ask(&mut self, bytes: &[u8]) -> Value {
        self.send(bytes);
        self.receive()
    }

    /// The class and text of the error that answers this.
    #[track_caller]
    pub fn error(&mut self, bytes: &[u8]) -> (String, String) {
        let answer = self.ask(bytes);
        let part = |name: &str| answer["error"][name].as_str().expect("an error").to_owned();
        (part("class"), part("desc"))
    }
}
