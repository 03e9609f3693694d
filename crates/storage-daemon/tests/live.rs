//! What changes by QMP while clients are served: properties of objects, and thresholds of nodes.

mod util;

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, wait_until};

fn start(place: &Place, arguments: &str) -> (Daemon, Client) {
    let monitor = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";
    let daemon = place.start(&format!("{monitor} {arguments}"));
    let client = Client::new(&place.path("qmp.sock"));
    (daemon, client)
}

fn property(qmp: &mut Client, path: &str, property: &str) -> Value {
    qmp.run("qom-get", json!({"path": path, "property": property}))
}

#[test]
fn a_request_that_a_throttle_group_holds_back_goes_by_new_limits() {
    let place = Place::new();
    // The second read would wait for 18 hours.
    let (daemon, mut qmp) = start(
        &place,
        "--object throttle-group,id=g,limits.bps-total=1 \
         --blockdev throttle,node-name=disk,throttle-group=g,file.driver=null-co \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock --export nbd,id=e0,node-name=disk",
    );
    let mut client = tools::command("qemu-io");
    client.args(["-r", "-f", "raw", "-c", "read 0 64k", "-c", "read 0 64k", &place.uri("disk")]);
    let mut client = client.spawn().unwrap();
    wait_until("the first read is done", || {
        let stats = qmp.run("query-blockstats", json!({}));
        stats[0]["stats"]["rd_operations"].as_u64().is_some_and(|reads| reads > 0)
    });
    let set = |value: Value| json!({"path": "/objects/g", "property": "limits", "value": value});
    let refused = qmp.refused("qom-set", set(json!({"bps-total": -1})));
    assert!(refused.contains("bps/iops/max values must be within"), "{refused}");
    qmp.refused("qom-set", set(json!({"bps-read": 5})));
    assert_eq!(property(&mut qmp, "g", "x-bps-total"), 1, "what is refused changes nothing");
    qmp.run("qom-set", set(json!({"bps-total": 0, "iops-total": 1_000_000})));
    assert!(client.wait().unwrap().success());
    let limits = property(&mut qmp, "/objects/g", "limits");
    assert_eq!((&limits["bps-total"], &limits["iops-total"]), (&json!(0), &json!(1_000_000)));
    // Limits that are not mentioned stay.
    qmp.run("qom-set", set(json!({"iops-total-max": 2_000_000})));
    assert_eq!(property(&mut qmp, "g", "limits")["iops-total"], 1_000_000);
    daemon.stop(Signal::TERM);
}

#[test]
fn an_iothread_changes_and_is_one_of_the_process() {
    let place = Place::new();
    let never = "--object iothread,id=t2,poll-max-ns=0";
    let (daemon, mut qmp) =
        start(&place, &format!("--object iothread,id=t0 --object iothread,id=t1 {never}"));
    let set =
        |name: &str, value: Value| json!({"path": "/objects/t0", "property": name, "value": value});
    for (name, value) in [("poll-max-ns", 0), ("poll-grow", 3), ("thread-pool-max", 7)] {
        qmp.run("qom-set", set(name, json!(value)));
        assert_eq!(property(&mut qmp, "t0", name), value);
    }
    for (name, value, expected) in [
        ("poll-max-ns", json!(-1), "poll-max-ns value must be in range"),
        ("poll-max-ns", json!("5"), "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("thread-pool-min", json!(8), "bad thread-pool-min/thread-pool-max values"),
        ("nonsense", json!(1), "Property 'iothread.nonsense' not found"),
    ] {
        let refused = qmp.refused("qom-set", set(name, value));
        assert!(refused.contains(expected), "{refused}");
    }
    assert_eq!(property(&mut qmp, "t0", "thread-pool-min"), 0);
    let threads = qmp.run("query-iothreads", json!({}));
    let threads = threads.as_array().unwrap();
    assert_eq!(threads.len(), 3);
    assert_eq!((&threads[0]["id"], &threads[0]["poll-grow"]), (&json!("t0"), &json!(3)));
    assert_eq!(threads[1]["poll-max-ns"], 32768);
    // What was set holds; what was not follows the cost of a wake-up, whatever else changes.
    let waits = |index: usize, name: &str| threads[index]["x-coblk-waits"][name].as_u64().unwrap();
    assert_eq!(waits(0, "max-ns"), 0);
    assert_eq!((waits(2, "max-ns"), waits(2, "active"), waits(2, "in-vain-ns")), (0, 0, 0));
    let cost_ns = waits(1, "wake-cost-ns");
    assert!((8_000..=100_000).contains(&cost_ns), "{cost_ns}");
    assert!((cost_ns..2 * cost_ns).contains(&waits(1, "max-ns")));
    qmp.run("qom-set", json!({"path": "t1", "property": "thread-pool-max", "value": 7}));
    let again = qmp.run("query-iothreads", json!({}));
    assert_ne!(again[1]["x-coblk-waits"]["max-ns"], 32768);
    qmp.run("qom-set", json!({"path": "t1", "property": "poll-shrink", "value": 2}));
    let again = qmp.run("query-iothreads", json!({}));
    assert_eq!(again[1]["x-coblk-waits"]["max-ns"], 32768);
    for thread in threads {
        let task = format!("/proc/{}/task/{}", daemon.pid(), thread["thread-id"]);
        assert!(std::path::Path::new(&task).exists(), "{task}");
    }
    qmp.run("object-del", json!({"id": "t0"}));
    assert_eq!(qmp.run("qom-list", json!({"path": "/objects"})).as_array().unwrap().len(), 3);
    daemon.stop(Signal::TERM);
}

#[test]
fn a_write_behind_the_threshold_is_told_once() {
    let place = Place::new();
    let (daemon, mut qmp) = start(&place, util::NBD);
    let set = json!({"node-name": "disk", "write-threshold": 8192});
    let threshold = |qmp: &mut Client| {
        qmp.run("query-named-block-nodes", json!({}))[0]["write_threshold"].clone()
    };
    let write = |command: &str| {
        let said = tools::run("qemu-io", ["-f", "raw", "-c", command, &place.uri("disk")]);
        assert!(said.contains("wrote"), "{said}");
    };
    qmp.run("block-set-write-threshold", set.clone());
    write("write 0 8192");
    assert_eq!(threshold(&mut qmp), 8192);
    write("write 8192 4096");
    let told = json!({"node-name": "disk", "write-threshold": 8192, "amount-exceeded": 4096});
    assert_eq!(qmp.event("BLOCK_WRITE_THRESHOLD"), told);
    assert_eq!(threshold(&mut qmp), 0);
    // Zero is none.
    qmp.run("block-set-write-threshold", set);
    qmp.run("block-set-write-threshold", json!({"node-name": "disk", "write-threshold": 0}));
    write("write 12288 4096");
    daemon.stop(Signal::TERM);
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED"), json!({"id": "e0"}), "and nothing before it");
}
