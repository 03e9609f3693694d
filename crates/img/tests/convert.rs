//! Copies have the bytes that `qemu-img`'s have, and take as much space.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::util::{Place, allocated, images, random};

/// Space that may differ, in bytes: a few blocks where pieces of data meet zeroes.
const SLACK: u64 = 64 << 10;

/// Converts with both programs, and compares what they have made.
#[track_caller]
fn same(place: &Place, options: &str, sources: &str) {
    for name in ["ours.raw", "theirs.raw"] {
        let _ = fs::remove_file(place.path(name));
    }
    place.ours(&format!("convert {options} -O raw {sources} ours.raw")).expect_success();
    place.qemu_img(&format!("convert {options} -O raw {sources} theirs.raw"));
    assert!(place.read("ours.raw") == place.read("theirs.raw"), "{options} {sources}");
    let [ours, theirs] = ["ours.raw", "theirs.raw"].map(|name| allocated(&place.path(name)));
    assert!(ours <= theirs + SLACK, "{options} {sources}: {ours} and {theirs} bytes");
}

#[test]
fn every_image_becomes_raw() {
    let place = Place::new();
    for image in images(&place) {
        same(&place, "", image);
        same(&place, "-W -m 3", image);
    }
    same(&place, "-T none -t none", "data.raw");
    same(&place, "-T none -t directsync -m 16", "top.qcow2");
    same(&place, "-t writethrough", "v3.qcow2");
    same(&place, "-f raw", "v3.qcow2");
    same(&place, "-C", "data.raw");
    same(&place, "-U", "v3.qcow2");
}

#[test]
fn sources_follow_one_another() {
    let place = Place::new();
    images(&place);
    same(&place, "", "v3.qcow2 odd.raw compressed.qcow2");
    same(&place, "-W", "odd.raw odd.raw odd.raw");
    same(&place, "-S 64k", "odd.raw v2.qcow2");
}

#[test]
fn zeroes_in_data_are_found() {
    let place = Place::new();
    let mut bytes = random(1, 3 << 20);
    // One run each of less than, exactly, and more than the least, and one that is not aligned.
    for (at, zeroes) in [(8192, 3584), (65536, 4096), (100_000, 70_000), (1 << 20, 1 << 20)] {
        bytes[at..at + zeroes].fill(0);
    }
    fs::write(place.path("dense.raw"), &bytes).unwrap();
    for (options, zeroes) in [("", 1 << 20), ("-S 4k", 1 << 20), ("-S 1M", 1 << 20), ("-S 2M", 0)] {
        let _ = fs::remove_file(place.path("ours.raw"));
        place.ours(&format!("convert {options} dense.raw ours.raw")).expect_success();
        assert!(place.read("ours.raw") == bytes, "{options}");
        let taken = allocated(&place.path("ours.raw"));
        assert!(taken <= (3 << 20) - zeroes + SLACK, "{options}: {taken} bytes");
    }
    same(&place, "", "dense.raw");
}

#[test]
fn all_is_allocated_if_no_zeroes_are_wanted() {
    let place = Place::new();
    place.raw("holes.raw", 4 << 20);
    place.ours("convert -S 0 holes.raw full.raw").expect_success();
    assert!(place.read("full.raw") == place.read("holes.raw"));
    assert!(allocated(&place.path("full.raw")) >= 4 << 20);
}

#[test]
fn a_target_that_exists_is_overwritten_and_not_cut() {
    let place = Place::new();
    place.raw("source.raw", 2 << 20);
    for options in ["-n", "-n -W", "-n -S 0", "-n -t none"] {
        let old = random(7, 3 << 20);
        fs::write(place.path("target.raw"), &old).unwrap();
        place.ours(&format!("convert {options} source.raw target.raw")).expect_success();
        let new = place.read("target.raw");
        assert!(new[..2 << 20] == place.read("source.raw"), "{options}");
        assert!(new[2 << 20..] == old[2 << 20..], "{options}");
    }
    // Where it is said to read as zeroes, those of the source are not written.
    fs::write(place.path("target.raw"), vec![9; 2 << 20]).unwrap();
    place.ours("convert -n --target-is-zero source.raw target.raw").expect_success();
    let (source, target) = (place.read("source.raw"), place.read("target.raw"));
    let pairs = source.iter().zip(&target);
    assert!(pairs.clone().all(|(source, target)| *source == 0 || source == target));
    assert!(pairs.clone().any(|(source, target)| *source == 0 && *target == 9));
    fs::write(place.path("short.raw"), [1; 512]).unwrap();
    let said = place.ours("convert -n source.raw short.raw");
    assert_eq!((said.code, place.read("short.raw")), (1, vec![1; 512]));
}

#[test]
fn a_longer_old_target_leaves_nothing_behind() {
    let place = Place::new();
    place.raw("source.raw", 1 << 20);
    fs::write(place.path("target.raw"), vec![9; 5 << 20]).unwrap();
    place.ours("convert source.raw target.raw").expect_success();
    assert!(place.read("target.raw") == place.read("source.raw"));
}

#[test]
fn preallocated_targets_have_space() {
    let place = Place::new();
    place.raw("source.raw", 2 << 20);
    for how in ["falloc", "full"] {
        let options = format!("convert -o preallocation={how} source.raw {how}.raw");
        place.ours(&options).expect_success();
        assert!(place.read(&format!("{how}.raw")) == place.read("source.raw"));
        assert!(allocated(&place.path(&format!("{how}.raw"))) >= 2 << 20, "{how}");
    }
}

#[test]
fn an_image_is_not_its_own_target() {
    let place = Place::new();
    place.raw("a.raw", 1 << 20);
    let before = place.read("a.raw");
    let said = place.ours("convert a.raw a.raw");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(place.read("a.raw") == before);
}

/// A source that fails to read the second 64 KiB, by a rule of blkdebug.
const BROKEN: &str = "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=source.raw,\
                      file.inject-error.0.event=none,file.inject-error.0.iotype=read,\
                      file.inject-error.0.errno=5,file.inject-error.0.sector=128";

#[test]
fn a_failed_read_stops_the_copy_and_names_the_place() {
    let place = Place::new();
    fs::write(place.path("source.raw"), random(3, 1 << 20)).unwrap();
    for options in ["", "-W", "-m 1"] {
        let said =
            place.ours(&format!("convert {options} --source-image-opts {BROKEN} target.raw"));
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.error.contains("error while reading at byte"), "{said:?}");
        assert!(said.error.contains("Input/output error"), "{said:?}");
    }
}

#[test]
fn salvage_replaces_only_what_cannot_be_read() {
    let place = Place::new();
    let source = random(3, 1 << 20);
    fs::write(place.path("source.raw"), &source).unwrap();
    let said = place.ours(&format!("convert --salvage --source-image-opts {BROKEN} target.raw"));
    let said = said.expect_success();
    assert!(said.error.contains("error while reading offset 65536"), "{said:?}");
    let mut expected = source;
    expected[65536..65536 + 512].fill(0);
    assert!(place.read("target.raw") == expected);
    let said = place.ours(&format!("convert -q --salvage --source-image-opts {BROKEN} target.raw"));
    assert_eq!((said.code, said.error.as_str()), (0, ""));
}

#[test]
fn a_failed_write_stops_the_copy() {
    let place = Place::new();
    place.raw("source.raw", 8 << 20);
    // A file system that is full: the limit of the process on the size of files.
    let mut command = coblk_tests::tools::command("prlimit");
    command.arg("--fsize=2000000").arg(env!("CARGO_BIN_EXE_coblk-img"));
    command.current_dir(place.path("")).args(["convert", "source.raw", "target.raw"]);
    let output = coblk_tests::tools::finish("prlimit", &mut command);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn progress_is_a_line_that_ends_at_100_percent() {
    let place = Place::new();
    place.raw("source.raw", 8 << 20);
    let said = place.ours("convert -p source.raw target.raw").expect_success();
    assert!(said.out.ends_with("    (100.00/100%)\r\n"), "{said:?}");
    for line in said.out.trim_end().split('\r') {
        assert!(line.starts_with("    (") && line.ends_with("/100%)"), "{line:?}");
    }
    let said = place.ours("convert -p -q source.raw target.raw").expect_success();
    assert_eq!(said.out, "");
}

#[test]
fn a_rate_limits_a_copy() {
    let place = Place::new();
    fs::write(place.path("source.raw"), random(5, 6 << 20)).unwrap();
    let begin = std::time::Instant::now();
    place.ours("convert -r 10M source.raw target.raw").expect_success();
    // The first pieces go through at once: 4 MiB of 6 wait, and more time may pass.
    assert!(begin.elapsed().as_secs_f64() > 0.3);
    assert!(place.read("target.raw") == place.read("source.raw"));
}

#[test]
fn a_signal_ends_a_copy_between_two_pieces() {
    let place = Place::new();
    fs::write(place.path("source.raw"), random(5, 16 << 20)).unwrap();
    let mut command = place.command("convert -p -r 100k source.raw target.raw");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Signals are listened to before the first line.
    let mut first = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let pid = child.id().to_string();
    coblk_tests::tools::run("kill", ["-INT", &pid]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(2), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("interrupted"), "{error}");
}

/// Zeroes of the source hide what the backing file has, however that is named.
#[test]
fn a_target_over_a_backing_file_has_the_zeroes_of_its_source() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 base.qcow2 8M");
    place.qemu_io("base.qcow2", &["write -P 1 0 8M"]);
    place.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 8M");
    place.qemu_io("top.qcow2", &["write -z 1M 1M", "write -P 2 4M 1M"]);
    for how in ["-B base.qcow2 -F qcow2", "-o backing_file=base.qcow2,backing_fmt=qcow2"] {
        place.ours(&format!("convert -O qcow2 {how} top.qcow2 new.qcow2")).expect_success();
        place.theirs("compare top.qcow2 new.qcow2").expect_success();
        place.theirs("check new.qcow2").expect_success();
        // What the backing file has is not copied.
        let map = place.theirs("map --output=json new.qcow2").expect_success().json();
        let below = map.as_array().unwrap().iter().filter(|it| it["depth"] == 1);
        let below: u64 = below.map(|it| it["length"].as_u64().unwrap()).sum();
        assert_eq!(below, 6 << 20, "{how}: {map}");
        let both = format!("convert -O qcow2 {how} top.qcow2 top.qcow2 both.qcow2");
        assert_eq!(place.ours(&both).code, 1, "{how}");
    }
}
