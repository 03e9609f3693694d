//! How an image is made: what is refused, in which order bytes are written, and on hosts that are not empty.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut, Wanted};
use coblk_block::{
    BackendOptions, BlockDriver, BlockNode, CreateError, ReadFlags, Truncate, WriteFlags,
};
use coblk_tests::tools;
use serde_json::{Value, json};

use crate::util::Stand;

/// What was done to a [`Host`].
#[derive(Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Truncate(usize),
    Flush,
}

impl Step {
    /// Does it, or a part: only sectors that `is_lucky` picks.
    fn apply(&self, bytes: &mut Vec<u8>, mut is_lucky: impl FnMut() -> bool) {
        match self {
            Step::Write(at, data) => {
                for (number, sector) in data.chunks(512).enumerate() {
                    let (at, is_lucky) = (at + number * 512, is_lucky());
                    if is_lucky && at < bytes.len() {
                        let end = bytes.len().min(at + sector.len());
                        bytes[at..end].copy_from_slice(&sector[..end - at]);
                    }
                }
            }
            Step::Truncate(length) if is_lucky() => bytes.resize(*length, 0),
            Step::Truncate(_) | Step::Flush => {}
        }
    }
}

/// A file, or a device that has the length it has, which remembers what was done.
struct Host {
    is_device: bool,
    state: Arc<Mutex<(Vec<u8>, Vec<Step>)>>,
}

impl Host {
    fn act(&self, step: Step) {
        let (bytes, steps) = &mut *self.state.lock().unwrap();
        step.apply(bytes, || true);
        steps.push(step);
    }
}

impl BlockDriver for Host {
    fn format_name(&self) -> &'static str {
        "host"
    }

    fn length(&self) -> u64 {
        self.state.lock().unwrap().0.len() as u64
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        let (offset, bytes) = (offset as usize, target.len());
        target.copy_from(0, &self.state.lock().unwrap().0[offset..offset + bytes]);
        Ok(())
    }

    fn co_pwritev(
        &self,
        _: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        let mut data = vec![0; source.len()];
        source.copy_to(0, &mut data);
        self.act(Step::Write(offset as usize, data));
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        self.act(Step::Flush);
        Ok(())
    }

    fn co_truncate(&self, _: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        if self.is_device {
            return match length <= self.length() && !how.exact {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            };
        }
        self.act(Step::Truncate(length as usize));
        Ok(())
    }
}

/// Creates an image in a host that has these bytes. Returns what it has then, and what was done.
fn create_in(is_device: bool, bytes: &[u8], more: Value) -> (Vec<u8>, Vec<Step>) {
    let stand = Stand::in_memory();
    let state = Arc::new(Mutex::new((bytes.to_vec(), Vec::new())));
    let host = Host { is_device, state: Arc::clone(&state) };
    stand.blockdevs.adopt(BlockNode::new("host", host)).unwrap();
    create(&stand, "host", more).unwrap();
    stand.end();
    let (bytes, steps) = state.lock().unwrap().clone();
    (bytes, steps)
}

/// Creates an image in a node.
fn create(stand: &Stand, node: &str, more: Value) -> Result<(), CreateError> {
    let mut options = json!({"driver": "qcow2", "file": node, "size": 3 << 20});
    more.as_object().unwrap().iter().for_each(|(name, value)| options[name] = value.clone());
    let creation = stand.blockdevs.drivers().creation(options.as_object().unwrap().clone());
    stand.ctx.run(|co| stand.blockdevs.co_create(co, creation.unwrap()))
}

/// A node on a file.
fn add_file(stand: &Stand, name: &str, path: &Path) -> Arc<BlockNode> {
    let options = json!({"driver": "file", "node-name": name, "filename": tools::text(path)});
    let options = coblk_block::options::NodeOptions::from_value(options).unwrap();
    stand.blockdevs.open(&stand.ctx, options).unwrap()
}

/// An old image, or bytes that are none.
fn old(stand: &Stand, bytes: usize) -> Vec<u8> {
    let mut old = vec![0xdb; bytes];
    let image = fs::read(stand.create("old.qcow2", "", "1M")).unwrap();
    old[..image.len()].copy_from_slice(&image);
    old
}

#[test]
fn q83_no_crash_leaves_half_an_image() {
    let stand = Stand::in_memory();
    let mut random = fastrand::Rng::with_seed(83);
    let old = old(&stand, 6 << 20);
    for (is_device, initial) in [(false, &old[..]), (true, &old[..]), (false, &[])] {
        for more in [
            json!({}),
            json!({"backing-file": "a-name", "backing-fmt": "raw"}),
            json!({"cluster-size": 4096, "preallocation": "metadata"}),
            json!({"cluster-size": 512, "preallocation": "metadata", "version": "v2"}),
        ] {
            let (last, steps) = create_in(is_device, initial, more.clone());
            assert!(steps.iter().filter(|step| matches!(step, Step::Flush)).count() >= 2);
            // What was done before the last flush is there, and of what came later any part.
            let (mut durable, mut since) = (initial.to_vec(), Vec::new());
            for step in &steps {
                since.push(step);
                for lucky in [0, 1, 2, 3, 3, 3] {
                    let mut crashed = durable.clone();
                    since.iter().for_each(|step| {
                        step.apply(&mut crashed, || lucky > 0 && random.u32(..4) < lucky);
                    });
                    let is_image = crashed.starts_with(b"QFI\xfb");
                    let is_whole = crashed == last || crashed == initial;
                    assert!(!is_image || is_whole, "{more}, device: {is_device}");
                }
                if matches!(step, Step::Flush) {
                    since.drain(..).for_each(|step| step.apply(&mut durable, || true));
                }
            }
            assert!(durable == last && last.starts_with(b"QFI\xfb"), "{more}: not durable");
        }
    }
    stand.end();
}

/// What a guest reads, and that the image is sound.
fn content(stand: &Stand, image: &[u8]) -> Vec<u8> {
    let path = stand.path("made.qcow2");
    fs::write(&path, image).unwrap();
    let (report, code) = stand.qemu_img("check", &path);
    assert_eq!(code, 0, "{report}");
    stand.content(&path)
}

#[test]
fn q85_preallocated_clusters_read_as_zeroes_on_a_host_that_does_not() {
    let stand = Stand::in_memory();
    let device = vec![0xdb; 8 << 20];
    for more in [
        json!({}),
        json!({"extended-l2": true}),
        json!({"version": "v2"}),
        json!({"cluster-size": 512, "version": "v2"}),
        json!({"cluster-size": 2048}),
    ] {
        let mut more = more;
        for preallocation in ["off", "metadata"] {
            more["preallocation"] = json!(preallocation);
            let (image, _) = create_in(true, &device, more.clone());
            let content = content(&stand, &image);
            assert!(content.len() == 3 << 20 && content.iter().all(|it| *it == 0), "{more}");
        }
    }
    // A file is emptied, so nothing has to hide what it had.
    let (image, _) = create_in(false, &device, json!({"preallocation": "metadata"}));
    assert!(content(&stand, &image).iter().all(|it| *it == 0));
    stand.end();
}

#[test]
fn q80_a_data_file_keeps_its_bytes_and_shows_them_if_it_is_raw() {
    let stand = Stand::in_memory();
    for (more, shown) in [
        (json!({"data-file-raw": true}), true),
        (json!({"preallocation": "metadata"}), false),
        (json!({}), false),
    ] {
        let data = stand.random_file("data.raw", 3 << 20);
        let bytes = fs::read(&data).unwrap();
        let image = stand.path("image.qcow2");
        fs::write(&image, []).unwrap();
        add_file(&stand, "image", &image);
        add_file(&stand, "data", &data);
        let mut more = more;
        more["data-file"] = json!("data");
        create(&stand, "image", more.clone()).unwrap();
        for name in ["image", "data"] {
            stand.blockdevs.close(&stand.ctx, name).unwrap();
        }
        assert_eq!(fs::read(&data).unwrap(), bytes, "{more}");
        let seen = stand.content(&image);
        let expected = if shown { bytes } else { vec![0; 3 << 20] };
        assert!(seen == expected, "{more}");
    }
    stand.end();
}

#[test]
fn q78_q79_what_cannot_be_is_refused_before_a_byte_is_touched() {
    let stand = Stand::in_memory();
    let path = stand.random_file("file", 8192);
    let (before, node) = (fs::read(&path).unwrap(), add_file(&stand, "file", &path));
    for wrong in [
        json!({"size": 1000}),
        json!({"cluster-size": 0}),
        json!({"cluster-size": 256}),
        json!({"cluster-size": 1000}),
        json!({"cluster-size": 4 << 20}),
        json!({"extended-l2": true, "cluster-size": 8192}),
        json!({"refcount-bits": 0}),
        json!({"refcount-bits": 3}),
        json!({"refcount-bits": 128}),
        json!({"refcount-bits": 8, "version": "v2"}),
        json!({"lazy-refcounts": true, "version": "v2"}),
        json!({"extended-l2": true, "version": "v2"}),
        json!({"data-file": "file", "version": "v2"}),
        json!({"compression-type": "zstd", "version": "v2"}),
        json!({"backing-fmt": "raw"}),
        json!({"backing-fmt": "x".repeat(16), "backing-file": "x"}),
        json!({"backing-file": "x".repeat(1024)}),
        json!({"backing-file": "x", "preallocation": "metadata"}),
        json!({"data-file-raw": true}),
        json!({"data-file-raw": true, "data-file": "file", "backing-file": "x"}),
    ] {
        assert_eq!(kind(create(&stand, "file", wrong.clone())), ErrorKind::InvalidInput, "{wrong}");
    }
    for large in [json!({"size": 1_u64 << 62}), json!({"size": 1_u64 << 46, "cluster-size": 512})] {
        assert_eq!(kind(create(&stand, "file", large.clone())), ErrorKind::FileTooLarge, "{large}");
    }
    let long = json!({"backing-file": "x".repeat(600), "cluster-size": 512});
    assert_eq!(kind(create(&stand, "file", long)), ErrorKind::StorageFull);
    let missing = create(&stand, "nowhere", json!({})).unwrap_err();
    assert_eq!(missing.to_string(), "there is no node 'nowhere'");
    let twice = create(&stand, "file", json!({"data-file": "file"})).unwrap_err().to_string();
    assert!(twice.contains("'blockdev-create file' does not share"), "{twice}");
    let user = BackendOptions::new("user").open(&stand.ctx, node).unwrap();
    let used = create(&stand, "file", json!({})).unwrap_err().to_string();
    assert!(used.contains("which backend 'user' does not share"), "{used}");
    drop(user);
    assert_eq!(fs::read(&path).unwrap(), before);
    create(&stand, "file", json!({})).unwrap();
    stand.end();
}

#[track_caller]
fn kind(result: Result<(), CreateError>) -> ErrorKind {
    match result.unwrap_err() {
        CreateError::Driver(error) => error.downcast_ref::<io::Error>().unwrap().kind(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_creation_that_is_given_up_leaves_no_image() {
    let stand = Stand::in_memory();
    let path = stand.random_file("file", 8192);
    add_file(&stand, "file", &path);
    let (wanted, options) = (Wanted::new(), json!({"preallocation": "metadata"}));
    wanted.give_up();
    let mut members = json!({"driver": "qcow2", "file": "file", "size": 3 << 20});
    members["preallocation"] = options["preallocation"].clone();
    let creation = stand.blockdevs.drivers().creation(members.as_object().unwrap().clone());
    let creation = creation.unwrap();
    let blockdevs = &stand.blockdevs;
    let result = stand.ctx.run(|co| co.while_wanted(&wanted, || blockdevs.co_create(co, creation)));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("os error 125"), "{error}");
    assert!(!fs::read(&path).unwrap().starts_with(b"QFI\xfb"));
    stand.end();
}
