//! Events of drivers: told from workers and other threads, at any time, and received once each.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut, PoolShare};
use coblk_block::options::{DriverOptions, NodeOptions};
use coblk_block::{
    BlockBackend, BlockDriver, Blockdevs, Driver, DriverEvent, Drivers, EventData, EventSink,
    EventType, OpenError, Opening, ReadFlags, WriteFlags,
};
use coblk_qapi::Schema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A disk without bytes whose worker tells of each flush.
struct Teller {
    events: EventSink,
}

#[derive(Deserialize, Serialize)]
struct Opened {}

impl EventData for Opened {
    const NAME: &'static str = "OPENING";
}

#[derive(Deserialize, Serialize)]
struct Flushed {
    bytes: u16,
    offset: Option<u64>,
}

impl EventData for Flushed {
    const NAME: &'static str = "FLUSHED";
}

#[derive(Deserialize, Serialize)]
struct Closed {}

impl EventData for Closed {
    const NAME: &'static str = "CLOSED";

    fn kind(&self) -> &'static str {
        "late"
    }
}

/// One that the driver does not declare.
#[derive(Deserialize, Serialize)]
struct Secret {}

impl EventData for Secret {
    const NAME: &'static str = "SECRET";
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct TellerOptions {}

impl DriverOptions for TellerOptions {}

impl Driver for Teller {
    const NAMES: &'static [&'static str] = &["teller"];
    const EVENTS: &'static [EventType] =
        &[EventType::of::<Opened>(), EventType::of::<Flushed>(), EventType::of::<Closed>()];
    type Options = TellerOptions;

    fn co_open(opening: &Opening<'_, '_>, _: &TellerOptions) -> Result<Teller, OpenError> {
        let events = opening.events();
        events.tell(&Opened {});
        events.tell(&Secret {});
        Ok(Teller { events })
    }
}

impl BlockDriver for Teller {
    fn format_name(&self) -> &'static str {
        "teller"
    }

    fn length(&self) -> u64 {
        4096
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        let events = self.events.clone();
        PoolShare::once(co, || events.tell(&Flushed { bytes: 512, offset: None }));
        Ok(())
    }

    fn needs_close(&self) -> bool {
        true
    }

    fn co_close(&self, _: &Co<'_>) -> io::Result<()> {
        let events = self.events.clone();
        // It outlives the node.
        thread::spawn(move || events.tell(&Closed {}));
        Ok(())
    }
}

type Told = (DriverEvent, thread::ThreadId);

fn set() -> (AioContext, Blockdevs) {
    let mut drivers = Drivers::new();
    drivers.add::<Teller>();
    (AioContext::for_test().unwrap(), Blockdevs::new(drivers))
}

fn listen(blockdevs: &Blockdevs) -> Receiver<Told> {
    let (sender, told) = channel();
    let sender = Arc::new(Mutex::new(sender));
    blockdevs.set_event_listener(move |event| {
        let _ = sender.lock().unwrap().send((event, thread::current().id()));
    });
    told
}

fn open(ctx: &AioContext, blockdevs: &Blockdevs, name: &str) -> BlockBackend {
    let options = NodeOptions::from_keyval(format!("teller,node-name={name}")).unwrap();
    BlockBackend::new(ctx, "drive", blockdevs.open(ctx, options).unwrap())
}

fn write_and_flush(ctx: &AioContext, backend: &BlockBackend) {
    backend.pwritev(ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    backend.flush(ctx).unwrap();
}

#[test]
fn an_event_that_a_worker_tells_arrives_once() {
    let (ctx, blockdevs) = set();
    let told = listen(&blockdevs);
    let (one, two) = (open(&ctx, &blockdevs, "one"), open(&ctx, &blockdevs, "two"));
    write_and_flush(&ctx, &two);
    drop((one, two));
    blockdevs.close(&ctx, "two").unwrap();
    let next = || told.recv().unwrap();
    for node in ["one", "two"] {
        let (event, thread) = next();
        assert_eq!((event.name, &*event.node_name), ("OPENING", node));
        assert_eq!(thread, thread::current().id());
    }
    let (flushed, thread) = next();
    assert_ne!(thread, thread::current().id());
    assert_eq!((flushed.name, &*flushed.node_name), ("FLUSHED", "two"));
    assert_eq!(serde_json::to_value(flushed.data.clone()).unwrap(), json!({"bytes": 512}));
    let (closed, _) = next();
    assert_eq!((closed.name, closed.kind, &*closed.node_name), ("CLOSED", "late", "two"));
    assert!(closed.data.is_empty() && !closed.is_like(&flushed));
    blockdevs.close(&ctx, "one").unwrap();
    assert_eq!((next().0.name, told.try_recv().is_err()), ("CLOSED", true));
}

#[test]
fn events_without_a_listener_are_lost_and_another_listener_takes_its_place() {
    let (ctx, blockdevs) = set();
    let backend = open(&ctx, &blockdevs, "one");
    let first = listen(&blockdevs);
    write_and_flush(&ctx, &backend);
    let second = listen(&blockdevs);
    write_and_flush(&ctx, &backend);
    let names = |told: Receiver<Told>| told.try_iter().map(|it| it.0.name).collect::<Vec<_>>();
    assert_eq!((names(first), names(second)), (vec!["FLUSHED"], vec!["FLUSHED"]));
}

/// A driver that tells an event of another one's with other data.
struct Other;

#[derive(Deserialize, Serialize)]
struct OtherFlushed {
    bytes: String,
}

impl EventData for OtherFlushed {
    const NAME: &'static str = "FLUSHED";
}

impl Driver for Other {
    const NAMES: &'static [&'static str] = &["other"];
    const EVENTS: &'static [EventType] = &[EventType::of::<OtherFlushed>()];
    type Options = TellerOptions;

    fn co_open(_: &Opening<'_, '_>, _: &TellerOptions) -> Result<Other, OpenError> {
        Ok(Other)
    }
}

impl BlockDriver for Other {
    fn format_name(&self) -> &'static str {
        "other"
    }

    fn length(&self) -> u64 {
        0
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn events_have_their_schemas_and_one_name_has_one() {
    let mut drivers = Drivers::new();
    drivers.add::<Teller>();
    let events = drivers.events().unwrap();
    let names: Vec<_> = events.keys().copied().collect();
    assert_eq!(names, ["CLOSED", "FLUSHED", "OPENING"]);
    let Schema::Object(flushed) = &events["FLUSHED"] else { panic!("an object") };
    let members = flushed.members.iter().map(|it| (it.name.as_str(), &it.schema, it.optional));
    let builtin = Schema::Builtin;
    let expected = [
        ("bytes", &builtin("uint16"), false),
        ("offset", &builtin("uint64"), true),
        ("node-name", &builtin("str"), false),
    ];
    assert_eq!(members.collect::<Vec<_>>(), expected);
    drivers.add::<Other>();
    let error = drivers.events().unwrap_err().to_string();
    assert_eq!(error, "two drivers tell 'FLUSHED', and not with the same data");
}
