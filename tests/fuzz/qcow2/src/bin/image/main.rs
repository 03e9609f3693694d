//! A libFuzzer target: whole images. An input says which good image is taken, how it is changed, and what is
//! asked of it then. Whatever it is, nothing panics or hangs, and the file does not become much longer.
//!
//! What a repair has left clean is an image as any other: it holds what is written to it, and is clean after.
//! `tests/fuzz/run` compiles and runs it.
#![forbid(unsafe_code)]
#![no_main]

mod damage;
mod memory;
mod requests;

use std::cell::OnceCell;
use std::fs;

use coblk_aio::AioContext;
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, BlockNode, Blockdevs, CheckReport, Repair};
use coblk_qcow2::Qcow2;
use coblk_qcow2::check::{Check, CheckOptions, co_check_with};
use damage::{Input, damage};
use memory::Memory;
use serde_json::json;

/// Where `seeds` has written good images.
const IMAGES: &str = "target/fuzz/qcow2-good-images";
/// How much longer a file becomes at most: by what it grows ahead and is written to it, and by the clusters that are
/// counted ahead, 16 MiB, as tables are behind them.
const MAX_GROWTH: usize = 20 << 20;

/// All that a run needs.
struct Stage {
    ctx: AioContext,
    images: Vec<Vec<u8>>,
}

impl Stage {
    fn new() -> Stage {
        let mut paths: Vec<_> = fs::read_dir(IMAGES)
            .expect("images that tests/fuzz/qcow2/seeds has made")
            .map(|it| it.expect("an image").path())
            .collect();
        paths.sort();
        let images = paths.iter().map(|it| fs::read(it).expect("an image")).collect();
        Stage { ctx: AioContext::for_test().expect("a context"), images }
    }

    fn run(&self, mut input: Input<'_>) {
        let image = &self.images[usize::from(input.byte()) % self.images.len()];
        let mut bytes = image.clone();
        damage(&mut bytes, &mut input);
        let length = bytes.len();
        let file = Memory::new(bytes);
        self.open(&file, true, |disk| requests::read_all(&self.ctx, disk));
        let way = input.byte();
        if way & 1 != 0 {
            // First as it is.
            self.open(&file, false, |disk| requests::play(&self.ctx, disk, &mut input, None));
        }
        let repair = if way & 2 != 0 { Repair::All } else { Repair::Leaks };
        let first = self.check(&file, repair).map(|it| it.report);
        if let Some(first) = first.filter(|it| it.check_errors == 0) {
            self.expect_repaired(&file, repair, &first);
            if first.corruptions == 0 {
                self.expect_good(&file, &mut input, first.corruptions_fixed > 0);
            }
        }
        let longer = file.bytes().len().saturating_sub(length);
        assert!(longer <= MAX_GROWTH, "the file is {longer} bytes longer");
    }

    /// Opens an image, if that can be, for `what`, and closes it.
    fn open(&self, file: &Memory, read_only: bool, what: impl FnOnce(&BlockBackend)) -> bool {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        blockdevs.adopt(BlockNode::new("file", file.clone())).expect("a node");
        // Its names are the attacker's.
        let options = json!({
            "driver": "qcow2", "node-name": "disk", "file": "file", "read-only": read_only,
            "x-named-files": "refuse", "discard": "unmap",
        });
        let options = NodeOptions::from_value(options).expect("options");
        let Ok(node) = blockdevs.open(&self.ctx, options) else { return false };
        let backend = BackendOptions::new("user").read_only(read_only).open(&self.ctx, node);
        if let Ok(backend) = backend {
            what(&backend);
        }
        blockdevs.close(&self.ctx, "disk").is_ok()
    }

    /// Checks an image, or repairs it; `None` if that cannot be.
    fn check(&self, file: &Memory, repair: Repair) -> Option<Check> {
        let node = BlockNode::new("image", file.clone());
        let options = BackendOptions::new("check").read_only(repair == Repair::None);
        let backend = options.open(&self.ctx, node).expect("a backend");
        let options = CheckOptions::new(repair);
        self.ctx.run(|co| co_check_with(co, &backend, &options)).ok()
    }

    /// A second repair has nothing to do.
    fn expect_repaired(&self, file: &Memory, repair: Repair, first: &CheckReport) {
        let before = file.bytes().clone();
        let again = self.check(file, repair).expect("an image that was repaired").report;
        let fixed = (again.corruptions_fixed, again.leaks_fixed, again.leaks);
        assert_eq!(fixed, (0, 0, 0), "{first:?}, and then {again:?}");
        assert!(*file.bytes() == before, "a second repair writes");
    }

    /// A clean image holds what is written to it, and stays clean. One that `was_corrupt` may have a cluster twice on
    /// its disk, as a repair leaves it to both: the last that has it lacks its flag then.
    fn expect_good(&self, file: &Memory, input: &mut Input<'_>, was_corrupt: bool) {
        let content = OnceCell::new();
        let read = |disk: &BlockBackend| {
            if let Some(all) = requests::content(&self.ctx, disk) {
                let _ = content.set(all);
            }
        };
        if !self.open(file, true, read) {
            return;
        }
        let Some(mut model) = content.into_inner() else { return };
        let is_closed = self.open(file, false, |disk| {
            requests::play(&self.ctx, disk, input, Some(&mut model));
        });
        if !is_closed {
            return;
        }
        let after = self.check(file, Repair::None).expect("an image that was clean");
        let CheckReport { corruptions, check_errors, leaks, .. } = after.report;
        let is_flag = |it: &&String| was_corrupt && it.ends_with("COPIED, and refcount is 1");
        let flags = after.findings.iter().filter(is_flag).count() as u64;
        assert_eq!((corruptions - flags, check_errors, leaks), (0, 0, 0), "{after:#?}");
    }
}

thread_local! {
    static STAGE: Stage = Stage::new();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| STAGE.with(|stage| stage.run(Input(bytes))));
