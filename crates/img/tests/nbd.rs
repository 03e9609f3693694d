//! Images that are exports of NBD servers, by their URIs.

use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use coblk_tests::tools;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_export_is_read_compared_and_written_by_its_uri() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| dir.path().join(name);
    let bytes: Vec<u8> = (0..4 << 20).map(|at: usize| (at / 777) as u8).collect();
    std::fs::write(path("disk.img"), &bytes).unwrap();
    let (socket, image) = (path("nbd.sock"), path("disk.img"));
    let mut command = tools::command("qemu-nbd");
    command.args([
        "-t",
        "-f",
        "raw",
        "-x",
        "disk",
        "-k",
        tools::text(&socket),
        tools::text(&image),
    ]);
    let _server = Server(command.stdin(Stdio::null()).spawn().unwrap());
    let end = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < end, "the server does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
    let uri = format!("nbd+unix:///disk?socket={}", tools::text(&socket));
    let copy = path("copy.qcow2");
    let img = |args: &[&str]| tools::run(env!("CARGO_BIN_EXE_coblk-img"), args);
    img(&["convert", "-f", "raw", "-O", "qcow2", &uri, tools::text(&copy)]);
    let said = img(&["compare", "-f", "raw", "-F", "qcow2", &uri, tools::text(&copy)]);
    assert!(said.contains("identical"), "{said}");
    let said = img(&["info", &uri]);
    assert!(said.contains("4 MiB") && said.contains("raw"), "{said}");
    std::fs::write(path("other.img"), vec![7; 4 << 20]).unwrap();
    let other = path("other.img");
    img(&["convert", "-n", "-f", "raw", "-O", "raw", tools::text(&other), &uri]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&other).unwrap());
    // An overlay of ours, and of QEMU's, on the export: by its URI, by an older name, and by a definition.
    let overlay = path("overlay.qcow2");
    let server = format!(r#"{{"type": "unix", "path": "{}"}}"#, tools::text(&socket));
    let export = format!(r#"{{"driver": "nbd", "export": "disk", "server": {server}}}"#);
    let json = format!(r#"json:{{"driver": "raw", "file": {export}}}"#);
    let older = format!("nbd:unix:{}:exportname=disk", tools::text(&socket));
    for name in [&uri, &older, &json] {
        for program in [env!("CARGO_BIN_EXE_coblk-img"), "qemu-img"] {
            let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", name];
            tools::run(program, args.into_iter().chain([tools::text(&overlay)]));
            let said = img(&["compare", "-F", "raw", tools::text(&overlay), tools::text(&other)]);
            assert!(said.contains("identical"), "{name}: {said}");
            let said = tools::run("qemu-img", ["info", tools::text(&overlay)]);
            assert!(said.contains("backing file: ") && said.contains("4 MiB"), "{said}");
            let chain = img(&["info", "--backing-chain", tools::text(&overlay)]);
            assert!(chain.matches("virtual size: ").count() == 2, "{chain}");
        }
    }
    let refused = tools::output(env!("CARGO_BIN_EXE_coblk-img"), ["info", "nbd://host:port"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the port is no number"));
}
