//! Internal snapshots, beside a model: the bytes of the disk, and those of each snapshot. Images are made,
//! checked and read by QEMU's programs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use coblk_aio::{AioContext, IoVector};
use coblk_block::{BackendOptions, ImageSnapshot, WriteFlags};
use coblk_tests::tools;
use fastrand::Rng;
use serde_json::json;

use crate::util::{Opened, Stand, assert_same, patch, word};

/// `qemu-img snapshot` with some arguments; what it says.
#[track_caller]
fn qemu_snapshot(stand: &Stand, image: &Path, args: &[&str]) -> String {
    let mut command = tools::command("qemu-img");
    command.current_dir(stand.dir.path()).arg("snapshot").args(args).arg(image);
    tools::expect_success("qemu-img snapshot", &tools::finish("qemu-img", &mut command))
}

/// What QEMU reads of a snapshot.
#[track_caller]
fn content_of(stand: &Stand, image: &Path, id: &str) -> Vec<u8> {
    let raw = stand.path("snapshot.raw");
    let mut command = tools::command("qemu-img");
    command.current_dir(stand.dir.path()).args(["convert", "-f", "qcow2", "-O", "raw", "-l"]);
    command.arg(format!("snapshot.id={id}")).args([image, &raw]);
    tools::expect_success("qemu-img convert", &tools::finish("qemu-img", &mut command));
    fs::read(raw).unwrap()
}

fn create(opened: &Opened<'_>, stand: &Stand, name: &str) -> io::Result<String> {
    stand.ctx.run(|co| opened.node.co_image(co)?.co_create_snapshot(co, name))
}

fn delete(opened: &Opened<'_>, stand: &Stand, id: &str) -> io::Result<()> {
    stand.ctx.run(|co| opened.node.co_image(co)?.co_delete_snapshot(co, id))
}

fn apply(opened: &Opened<'_>, stand: &Stand, id: &str) -> io::Result<()> {
    stand.ctx.run(|co| opened.node.co_image(co)?.co_apply_snapshot(co, id))
}

fn list(opened: &Opened<'_>, stand: &Stand) -> Vec<ImageSnapshot> {
    stand.ctx.run(|co| opened.node.co_image(co).unwrap().co_snapshots(co)).unwrap()
}

struct Model<'a> {
    stand: &'a Stand,
    image: PathBuf,
    random: Rng,
    content: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    opened: Option<Opened<'a>>,
}

impl<'a> Model<'a> {
    fn new(stand: &'a Stand, image: &Path, seed: u64) -> Model<'a> {
        Model {
            stand,
            image: image.to_owned(),
            random: Rng::with_seed(seed),
            content: stand.content(image),
            snapshots: BTreeMap::new(),
            opened: None,
        }
    }

    fn opened(&mut self) -> &Opened<'a> {
        self.opened.get_or_insert_with(|| self.stand.open_writable(&self.image, json!({})))
    }

    fn write(&mut self) {
        let length = self.content.len();
        let at = self.random.usize(..length);
        let bytes = self.random.usize(1..=300_000).min(length - at);
        let byte = self.random.u8(1..);
        let data: Vec<u8> = (0..bytes).map(|at| byte.wrapping_add((at / 512) as u8)).collect();
        self.opened().write(at as u64, &data).unwrap();
        self.content[at..at + bytes].copy_from_slice(&data);
    }

    fn any(&mut self) -> Option<String> {
        let ids: Vec<String> = self.snapshots.keys().cloned().collect();
        self.random.choice(ids)
    }

    fn step(&mut self) {
        let stand = self.stand;
        match self.random.u32(..10) {
            0..6 => self.write(),
            6 => {
                let id = create(self.opened(), stand, "a name").unwrap();
                self.snapshots.insert(id, self.content.clone());
            }
            7 => {
                let Some(id) = self.any() else { return };
                delete(self.opened(), stand, &id).unwrap();
                self.snapshots.remove(&id);
            }
            8 => {
                let Some(id) = self.any() else { return };
                apply(self.opened(), stand, &id).unwrap();
                self.content.clone_from(&self.snapshots[&id]);
            }
            _ => self.opened().flush().unwrap(),
        }
    }

    /// Both programs find the disk and the snapshots as they are to be, and no fault.
    #[track_caller]
    fn check(&mut self) {
        let (mut random, stand) = (Rng::with_seed(3), self.stand);
        let read = self.opened().read_all(&mut random);
        assert_same(&read, &self.content, "the open image");
        let ids: Vec<String> = list(self.opened(), stand).into_iter().map(|it| it.id).collect();
        assert!(ids.iter().eq(self.snapshots.keys()), "{ids:?}");
        self.opened = None;
        self.stand.check(&self.image);
        assert_same(&self.stand.content(&self.image), &self.content, "the closed image");
        for (id, content) in &self.snapshots {
            let shown = self.stand.open(&self.image, json!({"x-snapshot": id}));
            assert_same(&shown.read_all(&mut random), content, id);
            drop(shown);
            assert_same(&content_of(self.stand, &self.image, id), content, id);
        }
    }
}

fn run(options: &str, size: &str) {
    let stand = Stand::new();
    for seed in 0..2 {
        let image = stand.create("image.qcow2", options, size);
        let mut model = Model::new(&stand, &image, seed);
        for _ in 0..3 {
            (0..12).for_each(|_| model.step());
            model.check();
        }
        drop(model);
        fs::remove_file(image).unwrap();
    }
    stand.end();
}

#[test]
fn q153_q154_q155_snapshots_keep_what_the_disk_had() {
    run("", "8M");
    run("cluster_size=512,refcount_bits=64", "700k");
    run("cluster_size=4k,refcount_bits=8", "3M");
    run("cluster_size=2M", "16M");
}

#[test]
fn q153_q154_q155_snapshots_of_version_2_and_of_subclusters() {
    run("compat=0.10", "8M");
    run("extended_l2=on,cluster_size=16k", "3M");
}

/// Snapshots of either program are used by the other.
#[test]
fn q221_snapshots_are_exchanged_with_qemu() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "4M");
    stand.qemu_io(&image, &["write -P 1 0 1M".into(), "write -c -P 2 1M 64k".into()]);
    qemu_snapshot(&stand, &image, &["-c", "theirs"]);
    stand.qemu_io(&image, &["write -P 3 512k 1M".into()]);
    let first = content_of(&stand, &image, "1");
    let opened = stand.open_writable(&image, json!({}));
    assert_eq!(create(&opened, &stand, "ours").unwrap(), "2");
    opened.write(0, &[4; 100_000]).unwrap();
    let names: Vec<String> = list(&opened, &stand).into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["theirs", "ours"]);
    drop(opened);
    stand.check(&image);
    let said = qemu_snapshot(&stand, &image, &["-l"]);
    assert!(said.contains("theirs") && said.contains("ours"), "{said}");
    assert_same(&content_of(&stand, &image, "1"), &first, "the first");
    let second = content_of(&stand, &image, "2");
    // QEMU goes back to ours, and deletes its own.
    qemu_snapshot(&stand, &image, &["-a", "ours"]);
    qemu_snapshot(&stand, &image, &["-d", "theirs"]);
    stand.check(&image);
    let opened = stand.open_writable(&image, json!({}));
    assert_same(&opened.read(0, 4 << 20).unwrap(), &second, "the second");
    opened.write(1 << 20, &[5; 512]).unwrap();
    delete(&opened, &stand, "2").unwrap();
    drop(opened);
    stand.check(&image);
    assert_eq!(qemu_snapshot(&stand, &image, &["-l"]), "");
    stand.end();
}

#[test]
fn q45_q153_a_snapshot_that_cannot_be_made_leaves_the_image_as_it_was() {
    let stand = Stand::new();
    let image = stand.create("narrow.qcow2", "refcount_bits=1", "4M");
    let opened = stand.open_writable(&image, json!({}));
    opened.write(0, &[1; 300_000]).unwrap();
    let error = create(&opened, &stand, "one too many").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    opened.write(0, &[2; 300_000]).unwrap();
    drop(opened);
    stand.check(&image);
    let data_file = stand.create("data.qcow2", "data_file=data.raw", "1M");
    let opened = stand.open_writable(&data_file, json!({}));
    let error = create(&opened, &stand, "in a data file").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    drop(opened);
    let image = stand.create("image.qcow2", "", "4M");
    let opened = stand.open_writable(&image, json!({}));
    for result in [delete(&opened, &stand, "1"), apply(&opened, &stand, "1")] {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
    drop(opened);
    stand.end();
}

#[test]
fn q155_a_snapshot_is_read_by_its_id_or_its_name() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    let opened = stand.open_writable(&image, json!({}));
    for (name, byte) in [("2", 1), ("b", 2)] {
        opened.write(0, &[byte; 512]).unwrap();
        create(&opened, &stand, name).unwrap();
    }
    opened.write(0, &[3; 512]).unwrap();
    drop(opened);
    for (wanted, byte) in [("1", 1), ("2", 2), ("b", 2)] {
        let shown = stand.open(&image, json!({"x-snapshot": wanted}));
        assert_eq!(shown.read(0, 512).unwrap(), [byte; 512], "{wanted}");
    }
    let why = stand.refusal(&image, json!({"x-snapshot": "c"}));
    assert!(why.contains("no snapshot 'c'"), "{why}");
    let why = stand.refusal(&image, json!({"x-snapshot": "1", "read-only": false}));
    assert!(why.contains("read-only"), "{why}");
    stand.end();
}

/// Two contexts write numbers: each to one place, and when that is done to another. A snapshot has a moment of
/// both, and no later write changes it.
#[test]
fn q158_a_snapshot_beside_writes_has_one_moment() {
    const CLUSTER: u64 = 4096;
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "1M");
    let mut opened = stand.open_writable(&image, json!({}));
    // The writers are its users.
    opened.backend = None;
    let (is_over, written) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 2]);
    // Both places of a writer are in one cluster, beside places of the other one.
    let place = |writer: usize, first: bool| {
        let sector = writer as u64 + if first { 0 } else { 4 };
        [sector * 512, 40 * CLUSTER + sector * 512]
    };
    let number = |bytes: &[u8], at: u64| {
        u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
    };
    thread::scope(|scope| {
        for writer in 0..2 {
            let (node, is_over, written) = (Arc::clone(&opened.node), &is_over, &written[writer]);
            scope.spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                let backend = BackendOptions::new("writer").share_rw(true);
                let backend = backend.open(&ctx, node).unwrap();
                for value in 1_u64.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    for at in [place(writer, true), place(writer, false)].into_iter().flatten() {
                        let mut sector = [0; 512];
                        sector[..8].copy_from_slice(&value.to_le_bytes());
                        let source = IoVector::from(&sector[..]);
                        backend.pwritev(&ctx, at, &source, WriteFlags::empty()).unwrap();
                    }
                    written.store(value, Ordering::Release);
                }
            });
        }
        for _ in 0..8 {
            let before = written.each_ref().map(|it| it.load(Ordering::Acquire));
            create(&opened, &stand, "a moment").unwrap();
            // Until both have written to what they share with the snapshot.
            while written.iter().zip(before).any(|(now, it)| now.load(Ordering::Acquire) < it + 3) {
                thread::yield_now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let last = written.map(AtomicU64::into_inner);
    drop(opened);
    stand.check(&image);
    let disk = stand.content(&image);
    let check = |bytes: &[u8], writer: usize| {
        let all = [place(writer, true), place(writer, false)].concat();
        let values: Vec<u64> = all.into_iter().map(|at| number(bytes, at)).collect();
        let in_order = values.windows(2).all(|two| two[0] == two[1] || two[0] == two[1] + 1);
        assert!(in_order && values[0] - values[3] <= 1, "writer {writer}: {values:?}");
        values[0]
    };
    let mut former = [0; 2];
    for id in 1..=8 {
        let bytes = content_of(&stand, &image, &id.to_string());
        for (writer, former) in former.iter_mut().enumerate() {
            let value = check(&bytes, writer);
            assert!(value >= *former && value <= last[writer] + 1);
            *former = value;
        }
    }
    (0..2).for_each(|writer| assert_eq!(check(&disk, writer), last[writer]));
    stand.end();
}

/// Has the snapshot table without extra data, as old programs write it: it is shorter then.
fn strip_extra_data(image: &Path) {
    let (at, count) = (word(image, 64), word(image, 56) & 0xffff_ffff);
    let bytes = fs::read(image).unwrap();
    let (mut old, mut new) = (at as usize, Vec::new());
    for _ in 0..count {
        let be16 = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let names = be16(old + 12) + be16(old + 14);
        let extra = be16(old + 38);
        new.extend(&bytes[old..old + 36]);
        new.extend([0; 4]);
        new.extend(&bytes[old + 40 + extra..old + 40 + extra + names]);
        new.resize(new.len().next_multiple_of(8), 0);
        old += (40 + extra + names).next_multiple_of(8);
    }
    patch(image, at, &new);
}

#[test]
fn q45_q157_a_table_of_old_snapshots_gives_up_no_more_than_it_has() {
    let stand = Stand::in_memory();
    let image = stand.create("image.qcow2", "compat=0.10,cluster_size=512", "64k");
    for number in 0..9 {
        qemu_snapshot(&stand, &image, &["-c", &format!("s{number}")]);
    }
    strip_extra_data(&image);
    // What the table does not need any more becomes free, and has data then.
    let mut command = tools::command("qemu-img");
    let repair = ["check", "-q", "-r", "leaks", "-f", "qcow2"];
    tools::finish("qemu-img", command.args(repair).arg(&image));
    stand.qemu_io(&image, &["write -P 7 0 32k".to_owned()]);
    stand.check(&image);
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    create(&opened, &stand, "new").unwrap();
    for at in (32 << 10..64 << 10).step_by(512) {
        opened.write(at, &[9; 512]).unwrap();
        opened.flush().unwrap();
    }
    assert_eq!(opened.read(0, 32 << 10).unwrap(), [7; 32 << 10]);
    delete(&opened, &stand, "1").unwrap();
    opened.close();
    stand.check(&image);
    stand.end();
}
