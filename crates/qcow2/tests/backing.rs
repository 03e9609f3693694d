//! Another backing name in the header, and images that are emptied, beside `qemu-img`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::options::NodeOptions;
use coblk_block::{BackingName, BlockNode, Blockdevs};
use coblk_qcow2::Qcow2;
use coblk_qcow2::layout::Header;
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, Survivors};
use serde_json::{Value, json};

use crate::util::Stand;

fn name(name: &str, format: Option<&str>) -> BackingName {
    BackingName::new(name, format.map(str::to_owned))
}

/// Has the header of an image name another backing file.
fn change(stand: &Stand, path: &Path, backing: Option<&BackingName>) -> std::io::Result<()> {
    let opened = stand.open_writable(path, json!({"backing": null}));
    opened.ctx().run(|co| opened.node.co_image(co)?.co_change_backing(co, backing))
}

/// Whether `qemu-img` succeeds with a command on an image.
fn qemu_img(command: &[&str], path: &Path) -> bool {
    Command::new("qemu-img").args(command).arg(path).status().unwrap().success()
}

/// Space that a file takes, in bytes.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// What `qemu-img info` says of the backing file.
fn backing_of(stand: &Stand, path: &Path) -> (Value, Value) {
    let (info, code) = stand.qemu_img("info", path);
    assert_eq!(code, 0);
    (info["backing-filename"].clone(), info["backing-filename-format"].clone())
}

#[test]
fn q159_a_backing_name_is_as_qemu_img_rebase_writes_it() {
    let stand = Stand::new();
    let long = "x".repeat(1023);
    let names = [
        Some(name("base.qcow2", Some("qcow2"))),
        Some(name("other.raw", Some("raw"))),
        Some(name(&long, Some("raw"))),
        None,
        Some(name("again", Some("raw"))),
        Some(name(&long, Some("raw"))),
        Some(name("base.qcow2", Some("qcow2"))),
    ];
    for options in ["cluster_size=64k", "compat=0.10", "cluster_size=4k", "extended_l2=on"] {
        let ours = stand.create("ours.qcow2", options, "1M");
        let theirs = stand.create("theirs.qcow2", options, "1M");
        for new in &names {
            change(&stand, &ours, new.as_ref()).unwrap();
            let (new, format) = match new {
                Some(new) => (&*new.name, new.format.as_deref().unwrap()),
                None => ("", "raw"),
            };
            let command = ["rebase", "-u", "-f", "qcow2", "-b", new, "-F", format];
            assert!(qemu_img(&command, &theirs));
            assert_eq!(backing_of(&stand, &ours), backing_of(&stand, &theirs), "{options}");
            let [ours, theirs] = [&ours, &theirs].map(|it| Header::parse(&fs::read(it).unwrap()));
            let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
            assert_eq!(ours.backing, theirs.backing, "{options}");
            let names = |header: &Header| header.extensions.feature_names();
            assert_eq!(names(&ours), names(&theirs), "{options}");
        }
        // A check opens the backing file.
        change(&stand, &ours, None).unwrap();
        stand.check(&ours);
    }
    stand.end();
}

#[test]
fn q159_what_cannot_be_is_refused_and_nothing_changes() {
    let stand = Stand::new();
    let path = stand.create("image.qcow2", "cluster_size=1k", "1M");
    change(&stand, &path, Some(&name("base", Some("raw")))).unwrap();
    let before = fs::read(&path).unwrap();
    let refused = |backing: &BackingName, kind: ErrorKind| {
        let error = change(&stand, &path, Some(backing)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(fs::read(&path).unwrap() == before);
    };
    refused(&name(&"x".repeat(1024), None), ErrorKind::InvalidInput);
    refused(&name("base", Some("sixteen-letters-")), ErrorKind::InvalidInput);
    refused(&name(&"x".repeat(1000), Some("raw")), ErrorKind::StorageFull);
    stand.end();
}

/// An image in a recorded file.
fn open(ctx: &AioContext, file: &RecordedFile) -> (Blockdevs, Arc<BlockNode>) {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Qcow2>();
    let blockdevs = Blockdevs::new(drivers);
    blockdevs.adopt(BlockNode::new("file", file.clone())).unwrap();
    let options = json!({"driver": "qcow2", "node-name": "disk", "file": "file", "backing": null});
    let node = blockdevs.open(ctx, NodeOptions::from_value(options).unwrap()).unwrap();
    (blockdevs, node)
}

#[test]
fn q21_q159_a_crash_leaves_the_old_backing_name_or_the_new_one() {
    for (options, seed) in
        seeds(21).flat_map(|it| [("cluster_size=64k", it), ("cluster_size=4k", it)])
    {
        let stand = Stand::new();
        let path = stand.create("image.qcow2", options, "1M");
        let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
        let file = recorder.add_file(fs::read(path).unwrap());
        let ctx = AioContext::for_test().unwrap();
        let (blockdevs, node) = open(&ctx, &file);
        let mut random = Random::new(seed);
        let mut said = vec![(recorder.tick(), None)];
        for length in [4, 900, 30, 1023, 0, 600, 1, 0, 1000] {
            let text: String =
                (0..length).map(|_| (b'a' + random.below(26) as u8) as char).collect();
            let format = ["raw", "qcow2"][random.below(2) as usize];
            let new = (length > 0).then(|| name(&text, Some(format)));
            ctx.run(|co| node.co_image(co)?.co_change_backing(co, new.as_ref())).unwrap();
            said.push((recorder.tick(), new));
        }
        drop(node);
        blockdevs.close(&ctx, "disk").unwrap();
        blockdevs.close(&ctx, "file").unwrap();
        let mut images = 0;
        for pair in said.windows(2) {
            let ((begun, old), (ended, new)) = (&pair[0], &pair[1]);
            for moment in *begun..=*ended {
                let point = recorder.crash_at(moment);
                let mut judge = |mut survivors: Survivors<'_>| {
                    images += 1;
                    let image = point.files(&mut survivors).remove(0);
                    let header = Header::parse(&image).unwrap();
                    let name = header.backing.as_deref().map(|it| str::from_utf8(it).unwrap());
                    let format = header.extensions.backing_format().unwrap();
                    let is = |it: &Option<BackingName>| {
                        name == it.as_ref().map(|it| &*it.name)
                            && format == it.as_ref().and_then(|it| it.format.as_deref())
                    };
                    let is_due = is(new) || moment < *ended && is(old);
                    assert!(is_due, "{options}, seed {seed}: {name:?} {format:?} at {moment}");
                };
                judge(Survivors::None);
                judge(Survivors::All);
                for one in point.unsettled() {
                    judge(Survivors::Only(one));
                    judge(Survivors::AllBut(one));
                }
                for _ in 0..8 {
                    judge(Survivors::Torn(&mut random));
                }
            }
        }
        println!("{options}, seed {seed}: {images} images");
        assert!(images > 100);
        stand.end();
    }
}

#[test]
fn q160_an_image_that_is_emptied_has_what_its_backing_file_has() {
    let stand = Stand::new();
    let base = stand.create("base.qcow2", "cluster_size=64k", "8M");
    stand.qemu_io(&base, &["write -P 1 0 6M".to_owned()]);
    let below = stand.content(&base);
    for options in [
        "cluster_size=64k",
        "cluster_size=64k,lazy_refcounts=on",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "extended_l2=on",
        "compat=0.10",
        "compression_type=zstd",
        "data_file=data",
    ] {
        let more = options.replace("=data", &format!("={}", stand.path("data").display()));
        let more = format!("{more},backing_file={},backing_fmt=qcow2", base.display());
        let path = stand.create("top.qcow2", &more, "9M");
        let mut commands = vec!["write -P 2 100k 5M".to_owned(), "write -P 4 8M 1M".to_owned()];
        if !options.contains("data_file") {
            commands.push("write -c -P 3 7M 64k".to_owned());
        }
        stand.qemu_io(&path, &commands);
        let full = stand.content(&path);
        let has_none = ["data_file", "bits=1", "lazy", "zstd"];
        let has_snapshot = !has_none.iter().any(|it| options.contains(it));
        if has_snapshot {
            assert!(qemu_img(&["snapshot", "-c", "kept"], &path));
        }
        let before = allocated(&path);
        let opened = stand.open_writable(&path, json!({}));
        opened.write(1 << 20, &[5; 70_000]).unwrap();
        opened.ctx().run(|co| opened.node.co_image(co)?.co_make_empty(co)).unwrap();
        let empty = [&below[..], &vec![0; 1 << 20]].concat();
        assert!(opened.read(0, 9 << 20).unwrap() == empty, "{options}");
        let has_shrunk = allocated(&path) < before / 4;
        assert!(has_shrunk || has_snapshot || options.contains("data_file"), "{options}");
        // Nothing is left but header, refcounts and the L1 table, as with QEMU.
        let header = Header::parse(&fs::read(&path).unwrap()).unwrap();
        let cluster = 1_u64 << header.cluster_bits;
        let l1 = (u64::from(header.l1_entries) * 8).div_ceil(cluster);
        let has_snapshots = has_snapshot || options.contains("data_file");
        let is_fast = !has_snapshots && !options.contains("0.10");
        if is_fast {
            assert_eq!(fs::metadata(&path).unwrap().len(), (3 + l1) * cluster, "{options}");
        }
        drop(opened);
        stand.check(&path);
        assert!(stand.content(&path) == empty, "{options}");
        // It takes writes again.
        let opened = stand.open_writable(&path, json!({}));
        opened.write(5 << 20, &[6; 200_000]).unwrap();
        opened.flush().unwrap();
        drop(opened);
        stand.check(&path);
        if has_snapshot {
            assert!(qemu_img(&["snapshot", "-a", "kept"], &path));
            assert!(stand.content(&path) == full, "{options}");
        }
    }
    stand.end();
}
