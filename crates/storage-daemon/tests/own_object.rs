//! What another program adds to the daemon: the type of objects of an example.

use std::process::{Command, ExitCode};

use coblk::AioContext;
use coblk_storage_daemon::daemon::{Daemon, DaemonError};
use coblk_storage_daemon::objects::iothread::IothreadType;
use coblk_storage_daemon::options::{ObjectOptions, from_argument};
use rustix::process::Signal;
use serde_json::{Value, json};
use util::Place;
use util::qmp::Client;

#[allow(dead_code, reason = "its main function is for programs")]
#[path = "../../../examples/own_object.rs"]
mod own_object;
mod util;

/// This test program is the daemon where it is told to be.
const ROLE: &str = "COBLK_TEST_OWN_OBJECT";

/// Runs the example's program with the arguments of the environment, in a process of its own.
#[test]
fn the_program_of_the_example() {
    let Some(arguments) = std::env::var_os(ROLE) else { return };
    let arguments = arguments.into_string().unwrap();
    let words = ["own_object"].into_iter().chain(arguments.split_whitespace());
    let code = coblk_storage_daemon::run::main_with(
        own_object::builder(),
        words.map(std::ffi::OsString::from),
    );
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}

fn program(place: &Place, arguments: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_program_of_the_example", "--nocapture"]);
    command.env(ROLE, place.fill_in(arguments));
    command
}

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 --pidfile @/pid";

#[test]
fn an_object_of_an_embedder_is_made_found_changed_and_deleted() {
    let place = Place::new();
    let line = format!("{MONITOR} --object counter,id=c,start=10,step=5");
    let daemon = place.start_command(program(&place, &line));
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let count =
        |qmp: &mut Client, id: &str| qmp.ask("x-count", json!({ "id": id }))["return"].clone();
    assert_eq!((count(&mut qmp, "c"), count(&mut qmp, "c")), (json!(15), json!(20)));
    qmp.run("qom-set", json!({"path": "c", "property": "step", "value": 1}));
    assert_eq!(count(&mut qmp, "c"), 21);
    for (property, value, why) in [
        ("start", json!(0), "Property 'start' cannot be set after initialization"),
        ("step", json!(0), "a counter has a step"),
        ("step", json!("x"), "Invalid parameter type for 'step', expected: integer"),
        ("frob", json!(1), "Property 'counter.frob' not found"),
    ] {
        let set = json!({"path": "/objects/c", "property": property, "value": value});
        assert_eq!(qmp.refused("qom-set", set), why);
    }
    assert_eq!(qmp.run("qom-get", json!({"path": "c", "property": "step"})), 1);
    let types = qmp.run("qom-list-types", json!({"implements": "user-creatable"}));
    let names: Vec<&Value> = types.as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(
        names,
        [
            "authz-list",
            "authz-list-file",
            "authz-simple",
            "counter",
            "iothread",
            "secret",
            "throttle-group",
            "tls-creds-x509"
        ]
    );
    let properties = json!([{"name": "type", "type": "string"}, {"name": "start", "type": "int"},
        {"name": "step", "type": "int"}]);
    assert_eq!(qmp.run("qom-list-properties", json!({"typename": "counter"})), properties);
    assert_eq!(qmp.run("qom-list", json!({"path": "c"})), properties);
    let config = qmp.run("x-coblk-config", json!({}));
    assert!(config.to_string().contains("counter,id=c,start=10,step=1"), "{config}");

    let add = |more: Value| {
        let mut object = json!({"qom-type": "counter", "id": "d"});
        object.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        object
    };
    for (more, why) in [
        (json!({"frob": 1}), "Parameter 'frob' is unexpected"),
        (json!({"step": 0}), "a counter has a step"),
        (json!({"start": -1}), "Value '-1' is out of range for parameter 'start'"),
        (json!({"id": "c"}), "attempt to add duplicate property 'c' to object (type 'container')"),
        (
            json!({"qom-type": "rng-random"}),
            "Parameter 'qom-type' does not accept value 'rng-random'; there is authz-list, \
             authz-list-file, authz-simple, counter, iothread, secret, throttle-group, tls-creds-x509",
        ),
    ] {
        assert!(qmp.refused("object-add", add(more)).contains(why), "{why}");
    }
    qmp.run("object-add", add(json!({"start": 1})));
    assert_eq!(count(&mut qmp, "d"), 2);
    qmp.run("object-del", json!({"id": "d"}));
    assert_eq!(qmp.refused("x-count", json!({"id": "d"})), "there is no counter 'd'");
    assert_eq!(qmp.refused("object-del", json!({"id": "d"})), "object 'd' not found");
    daemon.stop(Signal::TERM);
}

#[test]
fn the_schema_and_the_help_have_the_types_of_an_embedder() {
    let place = Place::new();
    let printed = |option: &str| {
        let output = program(&place, &format!("--object {option}")).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(printed("help").contains("  authz-simple\n  counter\n  iothread\n"));
    assert!(printed("counter,help").contains("counter options:\n  start=<int>\n  step=<int>\n"));
    let schema = own_object::builder().build(&AioContext::for_test().unwrap());
    let schema = schema.object_types().schema().unwrap();
    let coblk::qapi::Schema::Object(shape) = schema else { panic!("{schema:?}") };
    assert_eq!(shape.tag, Some("qom-type"));
    let counter = shape.variants.iter().find(|(word, _)| word == "counter");
    let (_, counter) = counter.expect("a type of the program");
    assert_eq!(counter.members[1].name, "step");
    assert!(counter.members[1].optional);
}

#[test]
fn an_object_that_is_held_is_in_use() {
    let ctx = AioContext::for_test().unwrap();
    let daemon = own_object::builder().build(&ctx);
    let add = |line: &str| -> ObjectOptions { from_argument(line, "qom-type").unwrap() };
    ctx.run(|co| daemon.object_add(co, add("counter,id=c"))).unwrap();
    let held = daemon.object::<own_object::Counter>("c").unwrap();
    assert!(daemon.object::<coblk::IoThread>("c").is_none());
    let refused = ctx.run(|co| daemon.object_del(co, "c")).unwrap_err();
    assert!(matches!(refused, DaemonError::ObjectInUse(id) if id == "c"));
    drop(held);
    ctx.run(|co| daemon.object_del(co, "c")).unwrap();
    assert!(daemon.object::<own_object::Counter>("c").is_none());
    ctx.run(|co| daemon.co_shutdown(co));
}

#[test]
#[should_panic(expected = "two types of objects are called 'iothread'")]
fn a_type_of_objects_cannot_be_replaced() {
    let _ = Daemon::builder().object_type(IothreadType);
}
