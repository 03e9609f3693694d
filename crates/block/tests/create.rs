//! Creating images: `blockdev-create` without a job.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coblk_aio::{AioContext, Co, Wanted};
use coblk_block::drivers::File;
use coblk_block::{BackendOptions, BlockNode, CreateError, Creates, Creating, Drivers, drivers};
use serde_json::{Map, Value, json};

const MIB: u64 = 1 << 20;

fn object(options: Value) -> Map<String, Value> {
    options.as_object().unwrap().clone()
}

fn create(drivers: &Drivers, options: Value) -> Result<(), CreateError> {
    AioContext::for_test().unwrap().run(|co| drivers.co_create(co, object(options)))
}

fn create_file(path: &Path, size: u64, preallocation: &str) -> Result<(), CreateError> {
    let options = json!({
        "driver": "file", "filename": path, "size": size, "preallocation": preallocation,
    });
    create(&drivers(), options)
}

#[track_caller]
fn refused(options: Value, expected: &str) {
    let error = create(&drivers(), options).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

fn in_directory(name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    (directory, path)
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn a_file_is_as_long_as_was_asked_for_and_allocated_so_far() {
    let (_directory, path) = in_directory("image");
    create(&drivers(), json!({"driver": "file", "filename": path, "size": MIB + 100})).unwrap();
    assert_eq!((path.metadata().unwrap().len(), allocated(&path)), (MIB + 100, 0));
    for how in ["falloc", "full", "off"] {
        create_file(&path, 3 * MIB + 100, how).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 3 * MIB + 100, "{how}");
        assert_eq!(allocated(&path) >= 3 * MIB, how != "off", "{how}");
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "{how}");
    }
    create_file(&path, 0, "full").unwrap();
    assert_eq!(path.metadata().unwrap().len(), 0);
    let nocow = json!({"driver": "file", "filename": path, "size": 512, "nocow": true});
    create(&drivers(), nocow).expect("nocow where there are no copies changes nothing");
}

#[test]
fn a_file_that_is_there_is_emptied() {
    let (_directory, path) = in_directory("image");
    fs::write(&path, [7; 8192]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    create_file(&path, 4096, "off").unwrap();
    assert_eq!(fs::read(&path).unwrap(), [0; 4096]);
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "it is the same file");
}

#[test]
fn an_image_in_use_is_left_alone() {
    let (_directory, path) = in_directory("image");
    fs::write(&path, [7; 4096]).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk", File::options().open(&path).unwrap());
    let user = BackendOptions::new("user").open(&ctx, node).unwrap();
    let error = create_file(&path, 8192, "off").unwrap_err().to_string();
    assert!(error.contains("is another process using it?"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), [7; 4096]);
    drop(user);
    create_file(&path, 8192, "off").unwrap();
    assert_eq!(fs::read(&path).unwrap(), [0; 8192]);
}

#[test]
fn what_cannot_be_created_says_why() {
    let (directory, missing) = in_directory("missing/image");
    let error = create_file(&missing, 512, "off").unwrap_err().to_string();
    assert!(error.starts_with("cannot create image '") && error.contains("os error 2"), "{error}");
    let error = create_file(directory.path(), 512, "off").unwrap_err().to_string();
    assert!(error.contains("os error 21"), "a directory: {error}");
    // No user has the permission to create files in sysfs (EACCES), or to write to it at all (EROFS).
    let error = create_file(Path::new("/sys/image"), 512, "off").unwrap_err().to_string();
    let is_refused = error.contains("os error 13") || error.contains("os error 30");
    assert!(error.starts_with("cannot create image '/sys/image': ") && is_refused, "{error}");
    let error = create_file(Path::new("/dev/null"), 512, "off").unwrap_err().to_string();
    assert!(error.contains("it is a character device, not a regular file"), "{error}");
}

#[test]
fn a_file_too_large_for_its_file_system_stays_empty() {
    let image = tempfile::NamedTempFile::new_in("/dev/shm").expect("a tmpfs");
    fs::write(image.path(), [7; 4096]).unwrap();
    let error = create_file(image.path(), 1 << 62, "falloc").unwrap_err().to_string();
    assert!(error.contains("bytes long: "), "{error}");
    assert_eq!(image.path().metadata().unwrap().len(), 0);
}

#[test]
fn wrong_options_touch_nothing() {
    let (_directory, path) = in_directory("image");
    let with = |name: &str, value: Value| {
        let mut options = object(json!({"driver": "file", "filename": path, "size": 512}));
        options.insert(name.to_owned(), value);
        Value::Object(options)
    };
    let no_driver = "Driver 'null-co' does not support blockdev-create";
    refused(with("driver", "null-co".into()), no_driver);
    let unknown = "Parameter 'driver' does not accept value 'ssh'; there is file";
    refused(with("driver", "ssh".into()), unknown);
    refused(with("driver", 1.into()), "Parameter 'driver'");
    refused(json!({"filename": path, "size": 512}), "Parameter 'driver' is missing");
    refused(json!({"driver": "file", "filename": path}), "Parameter 'size' is missing");
    refused(with("size", (1_u64 << 63).into()), "Parameter 'size': an image has at most");
    refused(with("size", (-1).into()), "'size'");
    refused(with("filename", "".into()), "'filename'");
    refused(with("filename", "a\0b".into()), "'filename'");
    refused(with("preallocation", "metadata".into()), "does not accept value 'metadata'");
    refused(with("extent-size-hint", 1.into()), "'extent-size-hint'");
    refused(with("sizes", 1.into()), "Parameter 'sizes' is unexpected");
    assert!(!path.exists());
}

#[test]
fn writing_zeroes_ends_when_the_image_is_unwanted() {
    let (_directory, path) = in_directory("image");
    let wanted = Wanted::new();
    wanted.give_up();
    let options = json!({
        "driver": "file", "filename": path, "size": 3 * MIB, "preallocation": "full",
    });
    let create = |co: &Co<'_>| drivers().co_create(co, object(options));
    let ctx = AioContext::for_test().unwrap();
    let error = ctx.run(|co| co.while_wanted(&wanted, || create(co))).unwrap_err().to_string();
    assert!(error.contains(&format!("{} bytes long: ", 3 * MIB)), "{error}");
    assert!(error.contains("os error 125"), "{error}");
    assert_eq!(path.metadata().unwrap().len(), 0);
}

/// A driver of another crate.
struct Ram;

#[derive(serde::Deserialize)]
struct RamOptions {
    size: u64,
}

impl Creates for Ram {
    const NAME: &'static str = "ram";
    type Options = RamOptions;

    fn co_create(_: &Creating<'_, '_>, options: RamOptions) -> Result<(), CreateError> {
        Err(CreateError::of_driver(format!("no room for {} bytes", options.size)))
    }
}

#[test]
fn a_driver_of_another_crate_creates() {
    let mut drivers = drivers();
    drivers.add_creates::<Ram>();
    let error = create(&drivers, json!({"driver": "ram", "size": 5})).unwrap_err();
    assert_eq!(error.to_string(), "no room for 5 bytes");
    let error = create(&drivers, json!({"driver": "rbd"})).unwrap_err();
    assert!(error.to_string().contains("there is file, ram"), "{error}");
}

#[test]
#[should_panic(expected = "two drivers create 'file'")]
fn a_creating_driver_cannot_be_replaced() {
    drivers().add_creates::<File>();
}
