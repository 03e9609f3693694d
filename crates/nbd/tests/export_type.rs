//! The type `nbd` of exports: its server comes and goes.

use std::cell::RefCell;
use std::rc::Rc;

use coblk_aio::AioContext;
use coblk_block::Blockdevs;
use coblk_block::options::NodeOptions;
use coblk_export::{ExportTypes, Exports, RemoveMode};
use coblk_nbd::{NbdExportType, NbdOptions, NbdServer, SocketAddress};
use coblk_qapi::from_argument;

struct Place {
    ctx: AioContext,
    nodes: Rc<Blockdevs>,
    nbd: Rc<NbdExportType>,
    exports: Rc<Exports>,
    dir: tempfile::TempDir,
}

impl Place {
    /// With a node `disk` on a file, whose locks are asked for on a worker.
    fn new() -> Place {
        let nbd = Rc::<NbdExportType>::default();
        let mut types = ExportTypes::new();
        types.add(Rc::clone(&nbd));
        let exports = Exports::new(types, |_| (), |_, _| ());
        let (ctx, nodes) =
            (AioContext::for_test().unwrap(), Rc::new(Blockdevs::new(coblk_block::drivers())));
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, [7; 4096]).unwrap();
        let node = format!("file,node-name=disk,filename={}", image.display());
        let node = NodeOptions::from_keyval(&node).unwrap();
        ctx.run(|co| nodes.co_open(co, node).map(drop)).unwrap();
        Place { ctx, nodes, nbd, exports, dir }
    }

    fn start_server(&self, name: &str) -> Rc<NbdServer> {
        let address = SocketAddress::unix(self.dir.path().join(name));
        let server = NbdServer::listen(&self.ctx, &address, NbdOptions::default()).unwrap();
        let server = Rc::new(server);
        self.nbd.set_server(Some(Rc::clone(&server)));
        server
    }

    /// Adds an export. It suspends at least once after it has looked for the server: `meanwhile` is then.
    fn add(&self, options: &str, meanwhile: impl FnOnce()) -> Result<(), String> {
        let options = from_argument(options, "type").unwrap();
        let (exports, nodes) = (Rc::clone(&self.exports), Rc::clone(&self.nodes));
        let result = Rc::new(RefCell::new(None));
        let own = Rc::clone(&result);
        self.ctx.spawn("add", move |co| {
            let added = exports.co_add(co, &nodes, &|_: &str| None, options);
            own.replace(Some(added.map(drop).map_err(|error| error.to_string())));
        });
        assert!(result.borrow().is_none(), "the worker has not answered");
        meanwhile();
        self.ctx.run_until(|| result.borrow().is_some());
        result.take().unwrap()
    }
}

#[test]
fn an_export_belongs_to_the_server_of_its_time() {
    let place = Place::new();
    let line = "nbd,id=e0,node-name=disk,name=one";
    let first = place.start_server("1");
    place.add(line, || ()).unwrap();
    let again = place.add("nbd,id=e1,node-name=disk,name=one", || ()).unwrap_err();
    assert_eq!(again, "NBD server already has export named 'one'");
    // That of the first server goes from there, though there is another one.
    let second = place.start_server("2");
    place.exports.remove(&place.ctx, "e0", RemoveMode::Safe).unwrap();
    place.ctx.run_until(|| place.exports.all().is_empty());
    let is_there = |server: &NbdServer| server.remove_export("one", RemoveMode::Safe).is_ok();
    assert!(!is_there(&first) && !is_there(&second));

    // A server that has gone while the export was made gets none.
    place.nbd.set_server(Some(Rc::clone(&first)));
    let replaced = place.add(line, || _ = place.nbd.set_server(Some(Rc::clone(&second))));
    assert_eq!(replaced.unwrap_err(), "the NBD server has been started anew");
    let stopped = place.add(line, || _ = place.nbd.set_server(None));
    assert_eq!(stopped.unwrap_err(), "NBD server not running");
    assert!(!is_there(&first) && !is_there(&second) && place.exports.all().is_empty());
    place.ctx.run(|co| place.nodes.co_close(co, "disk")).expect("no backend is left");
}
