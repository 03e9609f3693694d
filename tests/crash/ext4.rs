//! A file system on our NBD export: after a loss of power at any moment its journal makes it whole,
//! and what was synced is there.
//!
//! The kernel's ext4 is on a loop device, on what `nbdfuse` shows of the export, over `blklogwrites`.
//! From the log, images are built as a loss of power may have left them: after each flush with nothing
//! but what was durable, and in between with some of the rest. `COBLK_SEEDS` sets the number of
//! rounds, `COBLK_CRASH_POINTS` how many flushes of a round are looked at, of about 90.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use coblk::block::filters::blklogwrites::BlkLogWrites;
use coblk::drivers::File;
use coblk::{AioContext, BlockNode};
use coblk_tests::images::sparse_image;
use coblk_tests::liar::Liar;
use coblk_tests::loop_device::LoopDevice;
use coblk_tests::nbd::Served;
use coblk_tests::random::{Random, option, seeds};
use coblk_tests::{sandbox, tools};

use crate::files::{self, Change};
use crate::write_log::WriteLog;

const IMAGE_BYTES: u64 = 8 << 20;
const LOG_BYTES: u64 = 256 << 20;
const CHANGES: usize = 30;
/// Flushes to look at, unless the environment asks for more.
const POINTS: u64 = 25;
const TARGET: &str = env!("CARGO_TARGET_TMPDIR");

#[test]
fn a_file_system_keeps_what_it_synced() {
    sandbox::with_own_mounts("ext4::a_file_system_keeps_what_it_synced", TARGET.as_ref(), |dir| {
        for seed in seeds(1) {
            let left = use_file_system(dir, seed, false);
            if let ControlFlow::Break(fault) = survey(dir, &left, seed) {
                panic!("seed {seed}: {fault}");
            }
        }
    });
}

#[test]
fn a_lying_flush_loses_what_was_synced() {
    sandbox::with_own_mounts("ext4::a_lying_flush_loses_what_was_synced", TARGET.as_ref(), |dir| {
        let left = use_file_system(dir, 1, true);
        let ControlFlow::Break(fault) = survey(dir, &left, 1) else {
            panic!("a loss of power that loses nothing");
        };
        assert!(fault.contains("acknowledged"), "{fault}");
    });
}

/// What is left of a file system that was used.
struct Remains {
    log: PathBuf,
    /// What the log counted when the file system was made.
    made: usize,
    changes: Vec<Change>,
}

fn use_file_system(dir: &Path, seed: u64, lie: bool) -> Remains {
    let log = sparse_image(dir, "writes.log", LOG_BYTES);
    let (on, lies) = (log.clone(), Arc::new(AtomicBool::new(false)));
    let liar = Arc::clone(&lies);
    let served = Served::with_node(tools::text(dir), |dir| {
        let image = sparse_image(dir, "disk.img", IMAGE_BYTES);
        let open = |path: &Path| BlockNode::new("file", File::options().open(path).unwrap());
        let ctx = AioContext::for_test().unwrap();
        let logged = ctx.run(|co| BlkLogWrites::create(co, open(&image), open(&on))).unwrap();
        let logged = BlockNode::new("logged", logged);
        BlockNode::new("liar", Liar::new(logged, liar))
    });
    let fuse = Fuse::mount(dir, &served.uri("disk"));
    let device = LoopDevice::new(&fuse.file, 512);
    let path = tools::text(device.path());
    // Small blocks and a small journal, which goes round often; and nothing is left for later.
    let lazy = "lazy_itable_init=0,lazy_journal_init=0";
    tools::run("mkfs.ext4", ["-q", "-F", "-b", "1024", "-J", "size=1", "-E", lazy, path]);
    let superblock = fs::File::open(&log).unwrap();
    let log_entries = || {
        let mut entries = [0; 8];
        superblock.read_exact_at(&mut entries, 16).unwrap();
        u64::from_le_bytes(entries) as usize
    };
    let made = log_entries();
    lies.store(lie, Ordering::Release);
    let mounted = dir.join("mounted");
    fs::create_dir_all(&mounted).unwrap();
    tools::run("mount", ["-t", "ext4", path, tools::text(&mounted)]);
    let changes = files::change_files(&mounted, &mut Random::new(seed), CHANGES, log_entries);
    tools::run("umount", [&mounted]);
    drop((device, fuse, served));
    Remains { log, made, changes: changes.unwrap() }
}

/// An export as a file.
struct Fuse {
    nbdfuse: Child,
    file: PathBuf,
}

impl Fuse {
    fn mount(dir: &Path, uri: &str) -> Fuse {
        let file = dir.join("export");
        fs::write(&file, b"").unwrap();
        let mut command = tools::command("nbdfuse");
        let nbdfuse = command.arg(&file).arg(uri).stdin(Stdio::null()).spawn();
        let mut fuse = Fuse { nbdfuse: nbdfuse.expect("nbdfuse, of package libnbd-bin"), file };
        let give_up = Instant::now() + Duration::from_secs(30);
        while fs::metadata(&fuse.file).unwrap().len() != IMAGE_BYTES {
            assert!(fuse.nbdfuse.try_wait().unwrap().is_none(), "nbdfuse has ended");
            assert!(Instant::now() < give_up, "nbdfuse does not mount");
            thread::sleep(Duration::from_millis(5));
        }
        fuse
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // It ends when it is unmounted; if that fails, with the mount.
        let unmounted = Command::new("fusermount3").arg("-u").arg(&self.file).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = self.nbdfuse.kill();
        }
        let _ = self.nbdfuse.wait();
    }
}

/// Looks at every flush after the file system was made, and at moments between. Breaks with what is
/// wrong at one.
fn survey(dir: &Path, left: &Remains, seed: u64) -> ControlFlow<String> {
    let log = WriteLog::read(&left.log).expect("a log");
    let mut random = Random::new(seed);
    let mut flushes = log.flush_points();
    flushes.retain(|point| *point > left.made);
    println!("{} entries, {} flushes of the file system", log.len(), flushes.len());
    // In memory: these images need not last.
    let dir = dir.join("survey");
    fs::create_dir_all(&dir).unwrap();
    tools::run("mount", ["-t", "tmpfs", "none", tools::text(&dir)]);
    let check = |entries, what: &str, image: &[u8]| {
        let verdict = recover(&dir, image).and_then(|()| {
            let files = dir.join("files");
            files::verify(&files, &left.changes, entries)
        });
        match verdict {
            Ok(()) => ControlFlow::Continue(()),
            Err(fault) => ControlFlow::Break(format!("{entries} entries, {what}: {fault}")),
        }
    };
    // Spread over all, not the same ones for each seed.
    let points = option("COBLK_CRASH_POINTS").unwrap_or(POINTS).max(1);
    let step = (flushes.len() / points as usize).max(1);
    let first = random.below(step as u64) as usize;
    for entries in flushes.into_iter().skip(first).step_by(step).chain([log.len()]) {
        let worst = log.after_power_loss(IMAGE_BYTES as usize, entries, || false);
        check(entries, "what was durable", &worst)?;
        let later = (entries + random.below(20) as usize).min(log.len());
        let some = || random.below(2) == 0;
        let image = log.after_power_loss(IMAGE_BYTES as usize, later, some);
        check(later, "and some of the rest", &image)?;
    }
    ControlFlow::Continue(())
}

/// Replays the journal, and takes out the files. Nothing but the journal may have to be repaired.
fn recover(dir: &Path, image: &[u8]) -> Result<(), String> {
    let (path, files) = (dir.join("lost-power.img"), dir.join("files"));
    fs::write(&path, image).unwrap();
    let _ = fs::remove_dir_all(&files);
    fs::create_dir(&files).unwrap();
    let path = tools::text(&path);
    for args in [&["-y", "-E", "journal_only", path][..], &["-f", "-n", path]] {
        let output = tools::output("e2fsck", args);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            return Err(format!("e2fsck {}: {}: {said}", args.join(" "), output.status));
        }
    }
    let dump = format!("rdump / {}", tools::text(&files));
    let output = tools::output("debugfs", ["-R", &dump, path]);
    assert!(output.status.success(), "{output:?}");
    Ok(())
}
