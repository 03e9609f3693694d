//! Prometheus's own parser takes the metrics, they are true, and a client that asks in another way does no
//! harm.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use coblk_tests::images::sparse_image;
use coblk_tests::nbd::Session;
use coblk_tests::storage_daemon::StorageDaemon;
use coblk_tests::{image_dir, tools};

const PROGRAM: &str = env!("CARGO_BIN_EXE_coblk-storage-daemon");

fn start(dir: &Path) -> StorageDaemon {
    sparse_image(dir, "disk.img", 4 << 20);
    let args = [
        "--object",
        "iothread,id=io0",
        "--blockdev",
        "file,filename=DIR/disk.img,node-name=disk",
        "--nbd-server",
        "addr.type=unix,addr.path=DIR/nbd.sock",
        "--export",
        "nbd,id=e0,node-name=disk,writable=on",
        "--metrics",
        "unix:DIR/metrics.sock",
        "--export",
        "vhost-user-blk,id=v0,node-name=disk,addr.type=unix,addr.path=DIR/v.sock,iothread=io0",
    ];
    StorageDaemon::start(PROGRAM.as_ref(), dir, &[], &args)
}

/// Reads a page with the parser of Prometheus's client for Python, which is strict; prints each family
/// with its type.
const PARSER: &str = r"
import sys
try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
except ImportError:
    sys.exit('this test needs prometheus_client: apt-get install python3-prometheus-client')
for family in text_string_to_metric_families(open(sys.argv[1]).read()):
    assert family.documentation.endswith('.'), family
    assert family.samples, family
    if family.type == 'counter':
        assert all(sample.name.endswith('_total') for sample in family.samples), family
    print(family.name, family.type)
";

#[test]
fn the_page_is_what_prometheus_reads() {
    let dir = image_dir!();
    let daemon = start(dir.path());
    let mut client = Session::open(&daemon.nbd_socket());
    client.check(1);
    let page = dir.path().join("page");
    std::fs::write(&page, daemon.metrics().0).unwrap();
    let said = tools::run("/usr/bin/python3", ["-c", PARSER, tools::text(&page)]);
    for family in [
        "coblk_build info",
        "process_start_time_seconds gauge",
        "coblk_node_size_bytes gauge",
        "coblk_nbd_connections gauge",
        "coblk_loop_workers gauge",
        "coblk_loop_workers_idle gauge",
        "coblk_loop_jobs_queued gauge",
        "coblk_loop_coroutines gauge",
        "coblk_loop_ring gauge",
        "coblk_wake_cost_seconds gauge",
        "coblk_loop_waits_active counter",
        "coblk_loop_waits_slept counter",
        "coblk_loop_waits_in_vain_seconds counter",
        "coblk_export_in_flight gauge",
        "coblk_export_held gauge",
        "coblk_export_stopped gauge",
        "coblk_export_in_use gauge",
        "coblk_export_operations counter",
        "coblk_export_bytes counter",
        "coblk_export_failed counter",
        "coblk_export_invalid counter",
        "coblk_export_merged counter",
        "coblk_export_latency_seconds histogram",
    ] {
        assert!(said.lines().any(|line| line == family), "no {family} in:\n{said}");
    }
    daemon.stop();
}

#[test]
fn the_numbers_are_those_of_the_requests() {
    let dir = image_dir!();
    let daemon = start(dir.path());
    let labels = r#"export="e0",type="nbd",node="disk""#;
    let mut clients = [Session::open(&daemon.nbd_socket()), Session::open(&daemon.nbd_socket())];
    for client in &mut clients {
        client.write(4096, &[7; 5000]).unwrap();
        client.write(0, &[1; 96]).unwrap();
        assert_eq!(client.read(4096, 5000), Ok(vec![7; 5000]));
        client.flush().unwrap();
    }
    let metrics = daemon.metrics();
    let of = |name: &str, operation: &str| {
        metrics.number(&format!("{name}{{{labels},operation=\"{operation}\"}}"))
    };
    assert_eq!(of("coblk_export_operations_total", "write"), 4.0);
    assert_eq!(of("coblk_export_bytes_total", "write"), 2.0 * 5096.0);
    assert_eq!(of("coblk_export_operations_total", "read"), 2.0);
    assert_eq!(of("coblk_export_operations_total", "flush"), 2.0);
    assert_eq!(of("coblk_export_failed_total", "write"), 0.0);
    assert_eq!(of("coblk_export_latency_seconds_count", "write"), 4.0);
    assert!(of("coblk_export_latency_seconds_sum", "write") > 0.0);
    let last =
        format!(r#"coblk_export_latency_seconds_bucket{{le="+Inf",{labels},operation="read"}}"#);
    assert_eq!(metrics.number(&last), 2.0);
    assert_eq!(metrics.number("coblk_nbd_connections"), 2.0);
    assert_eq!(metrics.number(&format!("coblk_export_in_use{{{labels}}}")), 1.0);
    assert_eq!(metrics.number(r#"coblk_node_size_bytes{node="disk",driver="file"}"#), 4194304.0);
    assert_eq!(metrics.number(r#"coblk_loop_workers{loop="io0"}"#), 0.0);
    assert!(metrics.number(r#"coblk_loop_coroutines{loop="main"}"#) >= 3.0);
    let cost = metrics.number("coblk_wake_cost_seconds");
    assert!((8e-6..=100e-6).contains(&cost), "{cost}");
    // There was nothing to do but to wait, before the first client came.
    let waits =
        |how: &str| metrics.number(&format!("coblk_loop_waits_{how}_total{{loop=\"main\"}}"));
    assert!(waits("active") + waits("slept") > 0.0);
    drop(clients);
    daemon.stop();
}

/// Bytes, and the status of the answer, if there is one.
fn cases() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let long = [b"GET /metrics HTTP/1.1\r\nx: ".to_vec(), vec![b'y'; 1 << 20]].concat();
    let many = [b"GET /metrics HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(1000)].concat();
    vec![
        (b"".to_vec(), None),
        (b"\n".to_vec(), None),
        (b"GET".to_vec(), None),
        (b"GET /metrics HTTP/1.1\r\nHost:".to_vec(), None),
        (b"NBDMAGIC".to_vec(), None),
        (vec![0; 8], Some("400")),
        (vec![0xff; 100], Some("400")),
        (b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(), Some("400")),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n".to_vec(), Some("404")),
        (b"DELETE /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec(), Some("405")),
        (long, Some("431")),
        (many, Some("431")),
    ]
}

#[test]
fn what_is_no_request_harms_nobody() {
    let dir = image_dir!();
    let daemon = start(dir.path());
    let socket = dir.path().join("metrics.sock");
    for (bytes, status) in cases() {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // It need not read all of what is too long.
        let too_long = bytes.len() > 512 << 10;
        assert!(stream.write_all(&bytes).is_ok() || too_long, "{shown}");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(read.is_ok() || too_long, "{shown}: {read:?}");
        let answer = String::from_utf8(answer).unwrap();
        match status {
            None => assert_eq!(answer, "", "{shown}"),
            Some(status) => assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}"),
        }
        daemon.metrics();
    }
    daemon.stop();
}

#[test]
fn clients_that_dawdle_harm_nobody() {
    let dir = image_dir!();
    let daemon = start(dir.path());
    let socket = dir.path().join("metrics.sock");
    // They ask and never read, or say nothing.
    let mut idle: Vec<UnixStream> = Vec::new();
    for number in 0..100 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        }
        idle.push(stream);
    }
    Session::open(&daemon.nbd_socket()).check(2);
    // One that waits for its turn behind all of those gets it when they are gone.
    drop(idle);
    daemon.metrics();
    // It ends although a client is being served.
    let _idle = UnixStream::connect(&socket).unwrap();
    daemon.stop();
    assert!(!socket.exists());
}

#[test]
fn metrics_are_served_over_tcp_once() {
    let dir = image_dir!();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir.path(), &[], &["--metrics", &address]);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("# EOF\n"), "{answer}");
    daemon.stop();
    let path = format!("unix:{}/a", dir.path().display());
    let twice = tools::output(PROGRAM, ["--metrics", &path, "--metrics", &path]);
    let said = String::from_utf8_lossy(&twice.stderr);
    assert!(!twice.status.success() && said.contains("metrics are served already"), "{said}");
    let nowhere = tools::output(PROGRAM, ["--metrics", "nowhere"]);
    let said = String::from_utf8_lossy(&nowhere.stderr);
    assert!(said.contains("--metrics nowhere: expected unix:PATH or HOST:PORT"), "{said}");
}
