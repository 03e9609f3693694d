//! A type of exports of the test's own: how its options are read, and the life of its exports.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, AioHandle, Co, CoWaker, IoVector, IoVectorMut};
use coblk_block::drivers::Raw;
use coblk_block::options::NodeOptions;
use coblk_block::{
    BlockBackend, BlockDriver, BlockNode, Blockdevs, Device, ErrorAction, IoStatus, ReadFlags,
    WriteFlags,
};
use coblk_export::{
    Export, ExportBackend, ExportError, ExportIoError, ExportOptions, ExportType, ExportTypes,
    Exporting, Exports, FindObjects, RemoveMode, SharedObject,
};
use coblk_qapi::{Schema, Size, from_argument, from_json};

/// What the test sees of its exports, and does with them.
#[derive(Default)]
struct Shared {
    clients: Cell<usize>,
    begun: Cell<usize>,
    closed: Cell<usize>,
    /// The last one's.
    backend: RefCell<Option<Rc<ExportBackend>>>,
    options: RefCell<Option<ToyOptions>>,
    banner: RefCell<Option<Arc<String>>>,
    /// The coroutine that makes an export, or closes one, waits here if this is set.
    is_slow: Cell<bool>,
    waiting: RefCell<Option<CoWaker>>,
}

impl Shared {
    fn co_pass(&self, co: &Co<'_>) {
        if self.is_slow.get() {
            co.suspend_for("the test", |waker| _ = self.waiting.replace(Some(waker)));
        }
    }

    fn go_on(&self) {
        self.is_slow.set(false);
        self.waiting.take().expect("it waits").wake();
    }
}

struct Toy(Rc<Shared>);

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ToyOptions {
    #[serde(default)]
    is_loud: bool,
    chunk: Option<Size>,
    /// An object that is a text.
    banner: Option<String>,
}

/// One iothread, `main`, and one object, `text`.
struct Found(AioHandle);

impl FindObjects for Found {
    fn iothread(&self, id: &str) -> Option<AioHandle> {
        (id == "main").then(|| self.0.clone())
    }

    fn object(&self, id: &str) -> Option<SharedObject> {
        (id == "text").then(|| Arc::new("hello".to_owned()) as SharedObject)
    }
}

impl ExportType for Toy {
    const NAME: &'static str = "toy";
    type Options = ToyOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: ToyOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        exporting.refuse_iothreads(Self::NAME)?;
        if let Some(id) = &options.banner {
            let banner = exporting.object::<String>(id)?;
            assert!(exporting.object::<u32>(id).is_err());
            self.0.banner.replace(Some(banner));
        }
        self.0.options.replace(Some(options));
        let backend = Rc::new(exporting.co_open_backend()?);
        self.0.backend.replace(Some(Rc::clone(&backend)));
        self.0.co_pass(exporting.co);
        Ok(Box::new(ToyExport { shared: Rc::clone(&self.0), backend }))
    }
}

struct ToyExport {
    shared: Rc<Shared>,
    backend: Rc<ExportBackend>,
}

impl Export for ToyExport {
    fn device(&self) -> Device {
        self.backend.device()
    }
    fn begin(&self) {
        self.shared.begun.set(self.shared.begun.get() + 1);
    }
    fn is_in_use(&self) -> bool {
        self.shared.clients.get() > 0
    }
    fn io_status(&self) -> IoStatus {
        self.backend.io_status()
    }
    fn resume(&self) {
        self.backend.resume();
    }
    fn report_errors(&self) {
        self.backend.report_errors();
    }
    fn co_close(&self, co: &Co<'_>) {
        self.shared.co_pass(co);
        self.backend.co_close(co);
        self.shared.closed.set(self.shared.closed.get() + 1);
    }
}

/// Exports with that type, and a node `disk` whose first write fails.
struct Place {
    ctx: AioContext,
    nodes: Rc<Blockdevs>,
    exports: Rc<Exports>,
    shared: Rc<Shared>,
    deleted: Rc<RefCell<Vec<String>>>,
    failed: Receiver<ExportIoError>,
}

impl Place {
    fn new() -> Place {
        let (shared, deleted) = (Rc::<Shared>::default(), Rc::<RefCell<Vec<String>>>::default());
        let (tell, failed) = channel();
        let mut types = ExportTypes::new();
        types.add(Toy(Rc::clone(&shared)));
        let told = Rc::clone(&deleted);
        let exports = Exports::new(
            types,
            move |error| tell.send(error).unwrap(),
            move |_, id| told.borrow_mut().push(id.to_owned()),
        );
        let ctx = AioContext::for_test().unwrap();
        let place = Place {
            ctx,
            nodes: Rc::new(Blockdevs::new(coblk_block::drivers())),
            exports,
            shared,
            deleted,
            failed,
        };
        place.open(
            "blkdebug,node-name=disk,image.driver=null-co,inject-error.0.iotype=write,\
             inject-error.0.errno=28,inject-error.0.once=on",
        );
        place
    }

    fn open(&self, node: &str) {
        let options = NodeOptions::from_keyval(node).unwrap();
        self.ctx.run(|co| self.nodes.co_open(co, options).map(drop)).unwrap();
    }

    fn close_node(&self) {
        self.ctx.run(|co| self.nodes.co_close(co, "disk")).unwrap();
    }

    fn add(&self, options: &str) -> Result<(), ExportError> {
        let options: ExportOptions = from_argument(options, "type")?;
        let found = Found(self.ctx.handle());
        let add = |co: &Co<'_>| self.exports.co_add(co, &self.nodes, &found, options);
        self.ctx.run(add).map(drop)
    }

    fn refused(&self, options: &str) -> String {
        self.add(options).unwrap_err().to_string()
    }

    /// Begins to add an export, which waits for the test.
    fn begin_to_add(&self) -> Rc<RefCell<Option<Result<(), ExportError>>>> {
        self.shared.is_slow.set(true);
        let (exports, nodes) = (Rc::clone(&self.exports), Rc::clone(&self.nodes));
        let result = Rc::<RefCell<Option<_>>>::default();
        let own = Rc::clone(&result);
        self.ctx.spawn("add", move |co| {
            let options = from_argument("toy,id=e0,node-name=disk", "type").unwrap();
            let added = exports.co_add(co, &nodes, &|_: &str| None, options);
            own.replace(Some(added.map(drop)));
        });
        self.ctx.run_until(|| self.shared.waiting.borrow().is_some());
        result
    }

    /// The end of what [`begin_to_add`](Self::begin_to_add) began.
    fn go_on(&self, result: &RefCell<Option<Result<(), ExportError>>>) -> Result<(), ExportError> {
        self.shared.go_on();
        self.ctx.run_until(|| result.borrow().is_some());
        result.take().unwrap()
    }

    fn remove(&self, mode: RemoveMode) -> Result<(), ExportError> {
        self.exports.remove(&self.ctx, "e0", mode)
    }

    fn until_deleted(&self) {
        self.ctx.run_until(|| !self.deleted.borrow().is_empty());
        assert_eq!(self.deleted.take(), ["e0"]);
        assert!(self.exports.all().is_empty());
    }
}

#[test]
fn a_type_reads_its_own_options_in_either_notation() {
    let place = Place::new();
    let read = |expected: ToyOptions| {
        assert_eq!(place.shared.options.take(), Some(expected));
        place.remove(RemoveMode::Safe).unwrap();
        place.until_deleted();
    };
    place.add("toy,id=e0,node-name=disk,is-loud=on,chunk=4k").unwrap();
    read(ToyOptions { is_loud: true, chunk: Some(Size(4096)), banner: None });
    place.add("{'type': 'toy', 'id': 'e0', 'node-name': 'disk', 'chunk': 512}").unwrap();
    read(ToyOptions { is_loud: false, chunk: Some(Size(512)), banner: None });
    let text = "{'type': 'toy', 'id': 'e0', 'node-name': 'disk', 'is-loud': 'on'}";
    assert!(place.refused(text).contains("'is-loud'"));
    for (wrong, text) in [
        ("toy,id=e0,node-name=disk,name=x", "Parameter 'name' is unexpected"),
        ("toy,id=e0,node-name=disk,is-loud=7", "Parameter 'is-loud' expects 'on' or 'off'"),
        ("fax,id=e0,node-name=disk", "Parameter 'type' does not accept value 'fax'; there is toy"),
        // What is wrong with options comes before what they name.
        ("toy,id=e0,node-name=no,name=x", "Parameter 'name' is unexpected"),
        ("toy,id=e0,node-name=no", "Cannot find device='' nor node-name='no'"),
        ("toy,id=0e,node-name=disk", "Invalid block export id"),
        ("toy,id=e0,node-name=disk,iothread=t", "iothread \"t\" not found"),
        (
            "toy,id=e0,node-name=disk,iothread=main,fixed-iothread=on",
            "exports of type toy are served by the main thread, and cannot be fixed to an iothread",
        ),
    ] {
        assert_eq!(place.refused(wrong), text, "{wrong}");
    }
    place.add("toy,id=e0,node-name=disk,iothread=main").unwrap();
    assert_eq!(place.refused("toy,id=e0,node-name=disk"), "Block export id 'e0' is already in use");
    place.open("null-co,node-name=ro,read-only=on");
    let text = "Cannot export read-only node as writable";
    assert_eq!(place.refused("toy,id=e1,node-name=ro,writable=on"), text);
}

#[test]
fn options_are_written_as_they_were_given() {
    let text = "toy,chunk=4k,id=e0,node-name=disk,werror=stop,writable=on";
    let options: ExportOptions = from_argument(text, "type").unwrap();
    let written = coblk_qapi::to_argument(&options, "type");
    assert_eq!(from_argument::<ExportOptions>(&written, "type").unwrap(), options, "{written:?}");
    let json = "{'type': 'toy', 'id': 'e0', 'node-name': 'disk', 'iothread': ['a', 'b']}";
    let options: ExportOptions = from_json(json).unwrap();
    assert_eq!(options.iothreads, ["a", "b"]);
}

#[test]
fn clients_are_let_in_once_it_begins() {
    let place = Place::new();
    place.add("toy,id=e0,node-name=disk").unwrap();
    assert_eq!(place.shared.begun.get(), 0);
    place.exports.begin();
    place.exports.begin();
    assert_eq!(place.shared.begun.get(), 1);
    place.add("toy,id=e1,node-name=disk").unwrap();
    assert_eq!(place.shared.begun.get(), 2);
}

#[test]
fn c86_an_export_is_listed_until_its_last_request_is_done() {
    let place = Place::new();
    place.add("toy,id=e0,node-name=disk").unwrap();
    place.shared.clients.set(1);
    let refused = place.remove(RemoveMode::Safe).unwrap_err();
    assert!(matches!(&refused, ExportError::InUse(id) if id == "e0"), "{refused}");
    assert!(!place.exports.all()[0].is_shutting_down());
    place.shared.is_slow.set(true);
    place.remove(RemoveMode::Hard).unwrap();
    place.ctx.run_until(|| place.shared.waiting.borrow().is_some());
    let info = place.exports.get("e0").unwrap().info();
    assert!(info.shutting_down && place.deleted.borrow().is_empty());
    assert_eq!((info.kind, info.node_name.as_str()), ("toy", "disk"));
    for mode in [RemoveMode::Safe, RemoveMode::Hard] {
        let refused = place.remove(mode).unwrap_err();
        assert_eq!(refused.to_string(), "Export 'e0' is already shutting down");
    }
    place.shared.go_on();
    place.until_deleted();
    place.close_node();
    assert_eq!(place.remove(RemoveMode::Safe).unwrap_err().to_string(), "Export 'e0' is not found");
    assert_eq!(place.shared.closed.get(), 1);
}

#[test]
fn options_of_a_type_name_objects() {
    let place = Place::new();
    let missing = "object 'other' not found";
    assert_eq!(place.refused("toy,id=e0,node-name=disk,banner=other"), missing);
    place.add("toy,id=e0,node-name=disk,banner=text").unwrap();
    assert_eq!(*place.shared.banner.take().unwrap(), "hello");
    place.remove(RemoveMode::Safe).unwrap();
    place.until_deleted();
}

#[test]
fn an_inactive_node_is_made_active_for_an_export_that_can_be_made() {
    let place = Place::new();
    place.open("null-co,node-name=i,active=off");
    let node = place.nodes.node("i").unwrap();
    place.refused("toy,id=e0,node-name=i,banner=other");
    assert!(!node.is_active(), "an export that is refused leaves it active");
    place.add("toy,id=e0,node-name=i,writable=on,allow-inactive=on").unwrap();
    assert!(!node.is_active());
    place.add("toy,id=e1,node-name=i").unwrap();
    assert!(node.is_active());
}

#[test]
fn an_export_that_is_refused_makes_no_more_inactive_than_it_has_made_active() {
    let place = Place::new();
    place.open("null-co,node-name=low");
    place.open("raw,node-name=top,file=low,active=off");
    let is_active = |name| place.nodes.node(name).unwrap().is_active();
    place.refused("toy,id=e0,node-name=top,banner=other");
    assert!(is_active("low") && !is_active("top"));
    // Another export has come meanwhile.
    place.ctx.run(|co| place.nodes.node("disk").unwrap().co_set_active(co, false)).unwrap();
    let result = place.begin_to_add();
    place.shared.is_slow.set(false);
    place.add("toy,id=e0,node-name=disk").unwrap();
    place.go_on(&result).unwrap_err();
    assert!(is_active("disk"), "clients of the other are refused");
}

#[test]
fn what_does_not_fit_any_more_once_it_is_made_is_closed() {
    let place = Place::new();
    let result = place.begin_to_add();
    // Another one is faster.
    place.shared.is_slow.set(false);
    place.add("toy,id=e0,node-name=disk").unwrap();
    let refused = place.go_on(&result).unwrap_err();
    assert!(matches!(refused, ExportError::Duplicate(_)), "{refused}");
    assert_eq!(place.shared.closed.get(), 1);
    place.remove(RemoveMode::Safe).unwrap();
    place.until_deleted();

    let result = place.begin_to_add();
    place.exports.end();
    let refused = place.go_on(&result).unwrap_err();
    assert!(matches!(refused, ExportError::Ended), "{refused}");
    assert_eq!(place.shared.closed.get(), 3);
    assert!(place.exports.all().is_empty());
    place.close_node();
}

#[test]
fn errors_are_told_and_those_that_are_held_end_with_the_export() {
    let place = Place::new();
    place.add("toy,id=e0,node-name=disk,writable=on,werror=enospc").unwrap();
    let written = Rc::new(Cell::new(None));
    let write = || {
        let backend = place.shared.backend.borrow().clone().unwrap();
        let own = Rc::clone(&written);
        place.ctx.spawn("write", move |co| {
            let data = IoVector::from(&[1; 512][..]);
            let result = backend.backend().co_pwritev(co, 0, &data, WriteFlags::empty());
            own.set(Some(result.map_err(|error| error.raw_os_error())));
        });
    };
    let status = || place.exports.get("e0").unwrap().info().io_status;
    write();
    place.ctx.run_until(|| status() == IoStatus::NoSpace);
    let told = place.failed.try_recv().unwrap();
    assert_eq!((told.id.as_str(), told.node_name.as_str()), ("e0", "disk"));
    assert_eq!((told.event.errno, told.event.action), (28, ErrorAction::Stop));
    assert_eq!(written.get(), None);
    place.exports.get("e0").unwrap().resume();
    place.ctx.run_until(|| written.get().is_some());
    assert_eq!((written.take(), status()), (Some(Ok(())), IoStatus::Ok));

    place.remove(RemoveMode::Safe).unwrap();
    place.until_deleted();
    place.close_node();
    place.open("blkdebug,node-name=disk,image.driver=null-co,inject-error.0.iotype=write");
    place.add("toy,id=e0,node-name=disk,writable=on,werror=stop").unwrap();
    write();
    place.ctx.run_until(|| status() == IoStatus::Failed);
    place.remove(RemoveMode::Safe).unwrap();
    place.until_deleted();
    assert_eq!(written.get(), Some(Err(Some(5))));
    place.close_node();
}

const ENOTCONN: i32 = 107;

/// A disk whose server is away. Requests wait for it until they are given up.
#[derive(Default)]
struct Away(Arc<Mutex<Vec<CoWaker>>>);

impl BlockDriver for Away {
    fn format_name(&self) -> &'static str {
        "away"
    }
    fn length(&self) -> u64 {
        1 << 20
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        co.suspend_for("a reconnect", |waker| self.0.lock().unwrap().push(waker));
        Err(io::Error::from_raw_os_error(ENOTCONN))
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
    fn cancel_in_flight(&self) {
        let waiting = std::mem::take(&mut *self.0.lock().unwrap());
        waiting.into_iter().for_each(CoWaker::wake);
    }
}

#[test]
fn a_hard_removal_gives_up_what_waits_for_a_reconnect() {
    let place = Place::new();
    let away = Away::default();
    let waiting = Arc::clone(&away.0);
    place.add("toy,id=e0,node-name=disk").unwrap();
    // Below the node that the export is on.
    let disk = place.nodes.node("disk").unwrap();
    let away = BlockNode::new("away", away);
    let raw = BlockNode::new("raw", Raw::new(Arc::clone(&away)));
    place.ctx.run(|co| disk.co_replace(co, &raw)).unwrap();
    let read = Rc::new(Cell::new(None));
    let start = |backend: BlockBackend| {
        let own = Rc::clone(&read);
        place.ctx.spawn("read", move |co| {
            let result = backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut [0; 512][..]));
            own.set(Some(result.map_err(|error| error.raw_os_error())));
        });
    };
    // A safe removal leaves the requests of others alone.
    let other = BlockBackend::new(&place.ctx, "other", away);
    start(other.clone());
    place.remove(RemoveMode::Safe).unwrap();
    place.until_deleted();
    assert_eq!((read.get(), waiting.lock().unwrap().len()), (None, 1));

    place.add("toy,id=e0,node-name=disk").unwrap();
    place.ctx.run(|co| disk.co_replace(co, &raw)).unwrap();
    start(place.shared.backend.borrow().as_ref().unwrap().backend().clone());
    place.ctx.run_until(|| waiting.lock().unwrap().len() == 2);
    place.shared.clients.set(1);
    place.remove(RemoveMode::Hard).unwrap();
    place.until_deleted();
    assert_eq!(read.get(), Some(Err(Some(ENOTCONN))));
    drop(other);
    drop(disk);
    place.close_node();
}

#[test]
fn the_schema_has_what_every_type_takes() {
    let place = Place::new();
    let Schema::Object(shape) = place.exports.types().schema().unwrap() else { panic!() };
    assert_eq!(shape.tag, Some("type"));
    let find = |name: &str| shape.members.iter().find(|member| member.name == name).unwrap();
    assert_eq!(find("type").schema, Schema::Enum(vec!["toy".to_owned()]));
    assert!(find("writable").optional && !find("node-name").optional && !find("type").optional);
    let [(word, own)] = shape.variants.as_slice() else { panic!("{shape:?}") };
    let names: Vec<&str> = own.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!((word.as_str(), names), ("toy", vec!["is-loud", "chunk", "banner"]));
}

#[test]
#[should_panic(expected = "two types of exports are called 'toy'")]
fn names_of_types_are_unique() {
    let mut types = ExportTypes::new();
    types.add(Toy(Rc::default()));
    types.add(Rc::new(Toy(Rc::default())));
}
