//! The floors as programs: what a client of another project reads from them, and rows that have them
//! as peers; and pictures of recorded results. Whatever the figures are, they have their place.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_coblk-bench"))
}

fn successful(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A bare server; it is killed when this is dropped.
struct Server(Child);

impl Server {
    fn start(words: &[&str], socket: &Path) -> Server {
        let child = bench().arg("serve").args(words).arg("--socket").arg(socket).spawn();
        let server = Server(child.expect("the program starts"));
        let end = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < end, "it does not listen");
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_reads_and_writes_an_image_through_a_bare_nbd_server() {
    if Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_err() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let image: Vec<u8> = (0..4u32 << 20).map(|index| (index / 512 * 7 + index) as u8).collect();
    std::fs::write(path("source.img"), &image).unwrap();
    std::fs::write(path("served.img"), vec![0; image.len()]).unwrap();
    for wait in ["blocking", "spinning"] {
        let socket = path(wait);
        let served = path("served.img");
        let words = ["nbd", "--wait", wait, "--filename", served.to_str().unwrap()];
        let server = Server::start(&words, &socket);
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        let qemu = |words: &[&str]| Command::new("qemu-img").args(words).output().unwrap();
        let source = path("source.img");
        let source = source.to_str().unwrap();
        successful(qemu(&["convert", "-n", "-f", "raw", "-O", "raw", source, &uri]));
        assert!(std::fs::read(path("served.img")).unwrap() == image, "{wait}: what was written");
        let copy = path("copy.img");
        successful(qemu(&["convert", "-f", "raw", "-O", "raw", &uri, copy.to_str().unwrap()]));
        assert!(std::fs::read(copy).unwrap() == image, "{wait}: what was read");
        drop(server);
        std::fs::write(path("served.img"), vec![1; image.len()]).unwrap();
    }
}

/// A program that is the daemon for the benchmark, and a bare server in truth: the daemon is not under
/// test here.
fn server_in(directory: &Path) -> PathBuf {
    let script = directory.join("server");
    // It takes the daemon's words, and knows the socket and the protocol among them.
    let text = format!(
        "#!/bin/sh\nprotocol=nbd\nfor word; do\n case \"$word\" in\n *vhost-user*) protocol=vhost-user;;\n\
         esac\n case \"$word\" in\n *addr.path=*) at=${{word##*addr.path=}};;\n esac\ndone\n\
         exec {} serve $protocol --queues 2 --socket \"${{at%%,*}}\"\n",
        env!("CARGO_BIN_EXE_coblk-bench")
    );
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    script
}

/// Rows of `compare` and so on, as they are recorded.
fn recorded(protocol: &str, only: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut command = bench();
    command.args(["compare", protocol, "--json", "--quick", "--count", "64", "--only", only]);
    successful(command.arg("--server").arg(server_in(directory.path())).output().unwrap())
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

fn floors(protocol: &str) -> [&'static str; 2] {
    match protocol {
        "nbd" => ["bare nbd, spinning", "bare nbd, blocking"],
        _ => ["bare virtqueue, spinning", "bare virtqueue, blocking"],
    }
}

#[test]
fn each_row_has_its_floors_and_all_latencies() {
    for protocol in ["nbd", "vhost-user"] {
        let rows = rows(&recorded(protocol, "null randread 4k QD1"));
        assert!(rows.len() >= 2, "one of them beside a stranger");
        for row in rows {
            assert_eq!(row["depth"], 1);
            for part in ["p50_ns", "p99_ns", "p999_ns", "max_ns"] {
                assert!(row[part].as_f64().is_some_and(|ns| ns > 0.0), "{part}: {row}");
            }
            for floor in floors(protocol) {
                for field in ["peers", "ratio", "peers_cpu_ns_per_op", "peers_max_ns"] {
                    assert!(row[field][floor].is_number(), "{field} of {floor}: {row}");
                }
                assert!(row["goal"][floor].is_null(), "{row}");
            }
        }
    }
}

#[test]
fn cpu_time_is_measured_at_fixed_rates_and_drawn() {
    let directory = tempfile::tempdir().unwrap();
    for protocol in ["nbd", "vhost-user"] {
        let text = recorded(protocol, "/s");
        let rows = rows(&text);
        let rates: Vec<u64> = rows.iter().filter_map(|row| row["rate_per_s"].as_u64()).collect();
        assert_eq!(rates, [0, 1000, 10_000, 100_000]);
        for row in &rows {
            assert_eq!(row["unit"], "cpu us/s");
            let at_rest = row["rate_per_s"] == 0;
            for floor in floors(protocol) {
                assert!(row["peers"][floor].is_number(), "{row}");
                assert_eq!(row["peers_p50_ns"][floor].is_number(), !at_rest, "{row}");
            }
            // One that spins does so whether it is asked or not.
            let [spinning, _] = floors(protocol);
            assert!(row["peers"][spinning].as_f64() > Some(0.0), "{row}");
        }
        let results = directory.path().join("results.json");
        std::fs::write(&results, &text).unwrap();
        let out = directory.path().join(protocol);
        let named = bench().arg("plot").arg(&results).arg("--out").arg(&out).output().unwrap();
        let family = format!("{protocol}-null-randread-4k.svg");
        let wanted = ["median-latency-", "p99-latency-", "cpu-time-"]
            .map(|kind| out.join(format!("{kind}{family}")));
        assert_eq!(successful(named).lines().map(Path::new).collect::<Vec<_>>(), wanted);
        for picture in wanted {
            let svg = std::fs::read_to_string(picture).unwrap();
            let document = roxmltree::Document::parse(&svg).expect("well-formed XML");
            assert_eq!(document.root_element().tag_name().name(), "svg");
            let words: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
            assert!(words.iter().any(|it| it.starts_with(floors(protocol)[0])), "{words:?}");
        }
    }
}

#[test]
fn the_page_is_measured_and_drawn_in_one_go() {
    let directory = tempfile::tempdir().unwrap();
    let (out, server) = (directory.path().join("out"), server_in(directory.path()));
    let mut command = bench();
    command.args(["page", "--json", "--quick", "--rounds", "1", "--lap", "1", "--out"]);
    let printed = successful(command.arg(&out).arg("--server").arg(server).output().unwrap());
    let kept = std::fs::read_to_string(out.join("results.json")).unwrap();
    assert_eq!(printed, kept);
    let rows = rows(&kept);
    // What the goals are about.
    for work in [
        "worker QD1, one CPU",
        "worker QD1, one CPU taken",
        "nbd null randread 4k QD1, one CPU taken",
        "vhost-user null randread 4k QD32",
    ] {
        let row = rows.iter().find(|row| row["work"] == work).expect(work);
        assert!(row["peers"].as_object().is_some_and(|peers| peers.len() >= 2), "{row}");
        assert!(row["max_ns"].is_number() && row["peers_max_ns"].is_object(), "{row}");
    }
    let kinds = ["throughput", "median-latency", "p99-latency", "cpu-time"];
    let mut wanted: Vec<String> = ["nbd", "vhost-user"]
        .iter()
        .flat_map(|it| kinds.map(|kind| format!("{kind}-{it}-null-randread-4k.svg")))
        .chain(["", "virtio-"].map(|it| format!("throughput-in-place-{it}page-cache.svg")))
        .collect();
    wanted.sort();
    let entries = std::fs::read_dir(&out).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut pictures: Vec<String> = names.filter(|name| name != "results.json").collect();
    pictures.sort();
    assert_eq!(pictures, wanted);
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().join("results.json");
    for (text, says) in [
        ("", "nothing to draw"),
        ("{\"work\":\"a QD1\",\"unit\":\"IOPS\",\"depth\":1,\"ours\":5}\n", "nothing to draw"),
        ("no JSON\n", "results.json: line 1"),
    ] {
        std::fs::write(&results, text).unwrap();
        let output = bench().arg("plot").arg(&results).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{error}");
    }
}
