//! Events of drivers: told from workers and other threads, at any time, and received once each.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut, PoolShare};
use coblk_block::options::{DriverOptions, NodeOptions};
use coblk_block::{
    BlockBackend, BlockDriver, Blockdevs, Driver, DriverEvent, Drivers, EventSink, OpenError,
    Opening, ReadFlags, WriteFlags,
};
use serde::{Deserialize, Serialize};

/// A disk without bytes whose worker tells of each flush.
struct Teller {
    events: EventSink,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct TellerOptions {}

impl DriverOptions for TellerOptions {}

impl Driver for Teller {
    const NAMES: &'static [&'static str] = &["teller"];
    type Options = TellerOptions;

    fn co_open(opening: &Opening<'_, '_>, _: &TellerOptions) -> Result<Teller, OpenError> {
        let events = opening.events();
        events.tell(DriverEvent::new("OPENING"));
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
        PoolShare::once(co, || events.tell(DriverEvent::new("FLUSHED").with("bytes", 512)));
        Ok(())
    }

    fn needs_close(&self) -> bool {
        true
    }

    fn co_close(&self, _: &Co<'_>) -> io::Result<()> {
        let events = self.events.clone();
        // It outlives the node.
        thread::spawn(move || events.tell(DriverEvent::new("CLOSED").kind("late")));
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
    assert_eq!(flushed.data["bytes"], 512);
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
