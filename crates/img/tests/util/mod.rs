//! A directory of images, and both programs to ask about them.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coblk_tests::tools;
use serde_json::Value;
use tempfile::TempDir;

/// What a program has printed, and how it has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub out: String,
    pub error: String,
    pub code: i32,
}

impl Said {
    fn new(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().expect("the program was ended by a signal");
        Said { out: text(output.stdout), error: text(output.stderr), code }
    }

    /// What it has printed as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn expect_success(self) -> Said {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// A directory of images.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: coblk_tests::image_dir!() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// coblk-img in this directory, with arguments cut at blanks.
    pub fn command(&self, arguments: &str) -> Command {
        self.command_with(arguments.split_whitespace())
    }

    pub fn command_with(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coblk-img"));
        command.current_dir(self.dir.path()).env_remove("RUST_LOG").args(arguments);
        command
    }

    pub fn ours(&self, arguments: &str) -> Said {
        Said::new(self.command(arguments).output().expect("run coblk-img"))
    }

    /// One of QEMU's programs in this directory.
    pub fn program(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = tools::command(program);
        command.current_dir(self.dir.path()).args(arguments);
        Said::new(tools::finish(program, &mut command))
    }

    /// qemu-img, with arguments cut at blanks.
    pub fn theirs(&self, arguments: &str) -> Said {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        self.program("qemu-img", &arguments)
    }

    /// qemu-img, which must succeed.
    #[track_caller]
    pub fn qemu_img(&self, arguments: &str) {
        self.theirs(arguments).expect_success();
    }

    /// Commands of qemu-io on an image.
    #[track_caller]
    pub fn qemu_io(&self, image: &str, commands: &[&str]) {
        let mut arguments = Vec::new();
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(image);
        let said = self.program("qemu-io", &arguments).expect_success();
        assert!(!said.out.contains("failed"), "{said:?}");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Writes bytes over a place of an image.
    pub fn patch(&self, image: &str, at: usize, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.path(image)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at as u64).unwrap();
    }

    /// The offset that an entry of a table has, or a field of the header.
    pub fn word(&self, image: &str, at: usize) -> usize {
        let bytes = self.read(image)[at..at + 8].try_into().unwrap();
        u64::from_be_bytes(bytes) as usize & 0x00ff_ffff_ffff_fe00
    }

    /// A raw image with random data in some places, and holes in others.
    pub fn raw(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, []).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(bytes).unwrap();
        let mut at = 0;
        let mut length = 4096;
        while at < bytes {
            let data = random(at + 1, length.min(bytes - at) as usize);
            std::os::unix::fs::FileExt::write_all_at(&file, &data, at).unwrap();
            at += length + 200_000;
            length = (length * 3) % 300_000 + 512;
        }
        path
    }
}

/// Bytes that follow from a seed, and are not zero.
pub fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 | 1
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// How much of a file is allocated, in bytes.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

/// The images that both programs are asked about.
pub fn images(place: &Place) -> Vec<&'static str> {
    place.raw("odd.raw", 5_000_123);
    place.raw("data.raw", 8 << 20);
    place.qemu_img("create -q -f raw empty.raw 1M");
    for (name, options) in [
        ("v2.qcow2", "compat=0.10"),
        ("v3.qcow2", "compat=1.1"),
        ("small.qcow2", "cluster_size=512"),
        ("large.qcow2", "cluster_size=2M"),
        ("lazy.qcow2", "lazy_refcounts=on"),
        ("wide.qcow2", "refcount_bits=64"),
        ("sub.qcow2", "extended_l2=on,cluster_size=128k"),
        ("prealloc.qcow2", "preallocation=metadata"),
    ] {
        place.qemu_img(&format!("create -q -f qcow2 -o {options} {name} 9M"));
        place.qemu_io(name, &["write -P 1 0 100k", "write -P 2 3M 1M", "write -P 3 4097k 3k"]);
    }
    place.qemu_io("v3.qcow2", &["write -z 5M 256k", "discard 3M 128k"]);
    place.qemu_img("convert -c -O qcow2 data.raw compressed.qcow2");
    place.qemu_img("convert -c -O qcow2 -o compression_type=zstd data.raw zstd.qcow2");
    place.qemu_img("create -q -f qcow2 -o data_file=data-file.raw outside.qcow2 3M");
    place.qemu_io("outside.qcow2", &["write -P 4 1M 100k"]);
    place.qemu_img("create -q -f qcow2 -b v3.qcow2 -F qcow2 middle.qcow2 4M");
    place.qemu_io("middle.qcow2", &["write -P 5 64k 64k", "write -z 3200k 64k"]);
    place.qemu_img("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 6M");
    place.qemu_io("top.qcow2", &["write -P 6 80k 4k", "write -P 7 5M 64k"]);
    fs::create_dir(place.path("folder")).unwrap();
    place.qemu_img("create -q -f qcow2 -b ../odd.raw -F raw folder/over.qcow2");
    place.qemu_img("create -q -f qcow2 snapshots.qcow2 1M");
    place.qemu_io("snapshots.qcow2", &["write -P 8 0 64k"]);
    place.qemu_img("snapshot -c first snapshots.qcow2");
    place.qemu_io("snapshots.qcow2", &["write -P 9 0 128k"]);
    place.qemu_img("snapshot -c a-name-that-is-longer-than-its-column snapshots.qcow2");
    place.qemu_img("create -q -f qcow2 bitmaps.qcow2 1M");
    place.qemu_img("bitmap --add bitmaps.qcow2 b0");
    place.qemu_img("bitmap --add --disable bitmaps.qcow2 b1");
    vec![
        "odd.raw",
        "data.raw",
        "empty.raw",
        "v2.qcow2",
        "v3.qcow2",
        "small.qcow2",
        "large.qcow2",
        "lazy.qcow2",
        "wide.qcow2",
        "sub.qcow2",
        "prealloc.qcow2",
        "compressed.qcow2",
        "zstd.qcow2",
        "outside.qcow2",
        "middle.qcow2",
        "top.qcow2",
        "folder/over.qcow2",
        "snapshots.qcow2",
        "bitmaps.qcow2",
    ]
}
