//! Objects, while what uses them is still being made, or while they are changed by two at once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coblk::block::options::{DriverOptions, NodeRef};
use coblk::block::{Child, ChildRole, Driver, Filter, OpenError, Opening};
use coblk::export::{Export, ExportError, ExportType, Exporting};
use coblk::options::NodeOptions;
use coblk::{AioContext, Co, CoWaker};
use coblk_storage_daemon::daemon::{Daemon, DaemonError};
use coblk_storage_daemon::options::from_argument;
use serde_json::json;

thread_local! {
    /// What is being made waits here for the test.
    static WAITING: RefCell<Option<CoWaker>> = const { RefCell::new(None) };
}

fn co_wait(co: &Co<'_>) {
    co.suspend_for("the test", |waker| _ = WAITING.replace(Some(waker)));
}

/// A type of exports that are not made in the end.
struct SlowExport;

#[derive(serde::Deserialize)]
struct NoOptions {}

impl ExportType for SlowExport {
    const NAME: &'static str = "slow";
    type Options = NoOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        _: NoOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        co_wait(exporting.co);
        Err(ExportError::of_type("not in the end"))
    }
}

/// A filter that takes long to be opened.
struct SlowFilter(Child);

#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
struct SlowOptions {
    file: NodeRef,
}

impl DriverOptions for SlowOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
}

impl Driver for SlowFilter {
    const NAMES: &'static [&'static str] = &["slow"];
    type Options = SlowOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &SlowOptions) -> Result<SlowFilter, OpenError> {
        co_wait(opening.co());
        Ok(SlowFilter(opening.co_child("file", ChildRole::FILTER, &options.file)?))
    }
}

impl Filter for SlowFilter {
    fn name(&self) -> &'static str {
        "slow"
    }
    fn child(&self) -> &Child {
        &self.0
    }
}

struct Bench {
    ctx: AioContext,
    daemon: Rc<Daemon>,
}

type Outcome = Rc<Cell<Option<Result<(), DaemonError>>>>;

impl Bench {
    fn new(object: &str) -> Bench {
        let ctx = AioContext::for_test().unwrap();
        let daemon = Daemon::builder().driver::<SlowFilter>().export_type(SlowExport).build(&ctx);
        let options = from_argument(object, "qom-type").unwrap();
        ctx.run(|co| daemon.object_add(co, options)).unwrap();
        Bench { ctx, daemon }
    }

    /// Begins a command.
    fn begin(
        &self,
        command: impl FnOnce(&Daemon, &Co<'_>) -> Result<(), DaemonError> + 'static,
    ) -> Outcome {
        let (daemon, outcome) = (Rc::clone(&self.daemon), Outcome::default());
        let own = Rc::clone(&outcome);
        self.ctx.spawn("command", move |co| own.set(Some(command(&daemon, co))));
        outcome
    }

    fn end(&self, outcome: &Outcome) -> Result<(), DaemonError> {
        let mut result = None;
        self.ctx.run_until(|| {
            result = outcome.take();
            result.is_some()
        });
        result.expect("it has ended")
    }

    /// The object is in use while `command` waits in the middle.
    fn keeps(
        &self,
        id: &str,
        command: impl FnOnce(&Daemon, &Co<'_>) -> Result<(), DaemonError> + 'static,
    ) -> Result<(), DaemonError> {
        let outcome = self.begin(command);
        self.ctx.run_until(|| WAITING.with_borrow(Option::is_some));
        let deleted = self.delete(id);
        WAITING.take().expect("it waits").wake();
        let ended = self.end(&outcome);
        let refused = deleted.expect_err("it is deleted while it is in use").to_string();
        assert_eq!(refused, format!("object '{id}' is in use, can not be deleted"));
        ended
    }

    fn delete(&self, id: &str) -> Result<(), DaemonError> {
        self.ctx.run(|co| self.daemon.object_del(co, id))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ctx.run(|co| self.daemon.co_shutdown(co));
        }
    }
}

fn add_null(bench: &Bench) {
    let options = NodeOptions::from_keyval("null-co,node-name=disk").unwrap();
    bench.ctx.run(|co| bench.daemon.blockdev_add(co, options)).unwrap();
}

#[test]
fn an_iothread_of_an_export_in_the_making_is_in_use() {
    let bench = Bench::new("iothread,id=t0");
    add_null(&bench);
    let made = bench.keeps("t0", |daemon, co| {
        daemon.export_add(co, from_argument("slow,id=e0,node-name=disk,iothread=t0", "type")?)
    });
    assert_eq!(made.unwrap_err().to_string(), "not in the end");
    bench.delete("t0").unwrap();
}

#[test]
fn a_throttle_group_of_a_node_that_is_being_opened_is_in_use() {
    let bench = Bench::new("throttle-group,id=g0");
    let line = "throttle,node-name=t,throttle-group=g0,file.driver=slow,file.file.driver=null-co";
    let opened = bench.keeps("g0", move |daemon, co| {
        daemon.blockdev_add(co, NodeOptions::from_keyval(line)?).map(drop)
    });
    opened.unwrap();
    bench.ctx.run(|co| bench.daemon.blockdev_del(co, "t")).unwrap();
    bench.delete("g0").unwrap();
}

/// Each suspends until the thread has taken the new values.
#[test]
fn two_changes_of_an_object_at_once_both_count() {
    let bench = Bench::new("iothread,id=t0");
    let set = |property: &'static str| {
        bench.begin(move |daemon, co| daemon.object_set(co, "t0", property, json!(3)))
    };
    let outcomes = ["poll-max-ns", "poll-grow", "poll-shrink"].map(set);
    outcomes.iter().for_each(|outcome| bench.end(outcome).unwrap());
    let (_, values) = bench.daemon.object_properties("t0").unwrap();
    for property in ["poll-max-ns", "poll-grow", "poll-shrink"] {
        assert_eq!(values[property], 3, "{property}");
    }
    let infos = bench.ctx.run(|co| bench.daemon.iothread_infos(co)).unwrap();
    assert_eq!(infos[0].properties.poll_grow, Some(3));
}

/// One thread is asked while another one goes: the answer has those that are there.
#[test]
fn iothreads_are_queried_while_one_is_deleted() {
    let bench = Bench::new("iothread,id=t0");
    let other = from_argument("iothread,id=t1", "qom-type").unwrap();
    bench.ctx.run(|co| bench.daemon.object_add(co, other)).unwrap();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let handles = bench.daemon.iothread_handles();
    let busy = handles.iter().find(|(id, _)| id == "t0").unwrap();
    // Over when the test says so, or has failed.
    busy.1.schedule(move |_| _ = goes_on.recv());
    let ids = Rc::new(RefCell::new(Vec::new()));
    let own = Rc::clone(&ids);
    let outcome = bench.begin(move |daemon, co| {
        let infos = daemon.iothread_infos(co)?;
        own.borrow_mut().extend(infos.into_iter().map(|info| info.id));
        Ok(())
    });
    bench.ctx.try_poll();
    bench.delete("t1").unwrap();
    assert!(outcome.take().is_none(), "the first one has not answered");
    drop(go_on);
    bench.end(&outcome).unwrap();
    assert_eq!(ids.borrow().first().map(String::as_str), Some("t0"));
}
