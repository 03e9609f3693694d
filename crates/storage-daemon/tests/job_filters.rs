//! A node that belongs to a job: it can be exported, as in QEMU, and the export stays when the job ends.

use std::rc::Rc;
use std::sync::Arc;

use coblk::block::drivers::Raw;
use coblk::options::NodeOptions;
use coblk::{AioContext, BlockNode};
use coblk_storage_daemon::daemon::Daemon;
use coblk_storage_daemon::options::from_argument;

struct Bench {
    ctx: AioContext,
    daemon: Rc<Daemon>,
    disk: Arc<BlockNode>,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// With a node `disk`, and a server for exports.
    fn new() -> Bench {
        let ctx = AioContext::for_test().unwrap();
        let daemon = Daemon::new(&ctx);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = NodeOptions::from_keyval("null-co,node-name=disk,size=1048576").unwrap();
        let disk = ctx.run(|co| daemon.blockdev_add(co, options)).unwrap();
        let socket = dir.path().join("nbd.sock");
        let server = format!("addr.type=unix,addr.path={}", socket.to_str().unwrap());
        let server = from_argument(server, "addr").unwrap();
        ctx.run(|co| daemon.nbd_server_start(co, server)).unwrap();
        Bench { ctx, daemon, disk, _dir: dir }
    }

    fn export(&self, node: &str) -> Result<(), String> {
        let options = from_argument(format!("nbd,id=e0,node-name={node},writable=on"), "type");
        let added = self.ctx.run(|co| self.daemon.export_add(co, options.unwrap()));
        added.map_err(|error| error.to_string())
    }

    /// The node of the export, and the option of it that is printed.
    fn exported(&self) -> (String, bool) {
        let node = self.daemon.exports()[0].node_name.clone();
        let printed = self.daemon.configuration();
        let export = printed.iter().find(|(option, _)| *option == "export").unwrap();
        (node, export.1.to_str().unwrap().contains("node-name=disk"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ctx.run(|co| self.daemon.co_shutdown(co));
        }
    }
}

#[test]
fn a_filter_of_a_job_is_exported_and_the_export_outlives_it() {
    let bench = Bench::new();
    let filter = BlockNode::new("filter", Raw::new(Arc::clone(&bench.disk)));
    let blockdevs = bench.daemon.blockdevs();
    let hidden = blockdevs.adopt_hidden(Arc::clone(&filter), "job 'copy'").unwrap();
    bench.export("filter").unwrap();
    // The daemon that is made of what is printed has no such job.
    assert_eq!(bench.exported(), ("filter".to_owned(), true));
    bench.ctx.run(|co| filter.co_replace(co, &bench.disk)).unwrap();
    bench.ctx.run(|co| hidden.co_end(co));
    assert_eq!(bench.exported(), ("disk".to_owned(), true));
    assert!(blockdevs.node_or_hidden("filter").is_none());
}

#[test]
fn an_export_is_printed_with_the_node_that_has_taken_the_place_of_its_own() {
    let bench = Bench::new();
    let options = NodeOptions::from_keyval("null-co,node-name=old,size=1048576").unwrap();
    let old = bench.ctx.run(|co| bench.daemon.blockdev_add(co, options)).unwrap();
    bench.export("old").unwrap();
    assert_eq!(bench.exported(), ("old".to_owned(), false));
    bench.ctx.run(|co| old.co_replace(co, &bench.disk)).unwrap();
    assert_eq!(bench.exported(), ("disk".to_owned(), true));
    drop(old);
}
