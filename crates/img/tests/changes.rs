//! Commands that change images or make new ones, beside `qemu-img`.

use std::fs;

use coblk_tests::holder::Holder;
use coblk_tests::tools;

use crate::util::{Place, allocated, random};

/// The byte whose lock says that the image is written.
const IS_WRITTEN: u64 = 101;

#[test]
fn create_makes_raw_images() {
    let place = Place::new();
    for (options, size) in
        [("", "3M"), ("-o preallocation=falloc", "1M"), ("-o size=2M", ""), ("", "1000")]
    {
        let ours = place.ours(&format!("create {options} a.raw {size}"));
        let theirs = place.theirs(&format!("create {options} b.raw {size}"));
        assert_eq!((ours.code, theirs.code), (0, 0), "{ours:?}");
        assert!(place.read("a.raw") == place.read("b.raw"), "{options}");
        assert!(allocated(&place.path("a.raw")) <= allocated(&place.path("b.raw")), "{options}");
        assert!(ours.out.starts_with("Formatting 'a.raw', fmt=raw size="), "{ours:?}");
    }
    let said = place.ours("create -q -f raw a.raw 1000").expect_success();
    assert_eq!(said.out, "");
    // What was there is gone.
    fs::write(place.path("a.raw"), random(1, 4 << 20)).unwrap();
    place.ours("create a.raw 1M").expect_success();
    assert!(place.read("a.raw") == vec![0; 1 << 20]);
}

/// Options of new qcow2 images.
const QCOW2: [&str; 13] = [
    "10M",
    "-o cluster_size=512 1M",
    "-o cluster_size=2M 10G",
    "-o compat=0.10 10M",
    "-o extended_l2=on,cluster_size=128k 10M",
    "-o preallocation=metadata 10M",
    "-o preallocation=full 3M",
    "-o lazy_refcounts=on -o refcount_bits=1 10M",
    "-o compression_type=zstd,size=5M",
    "-b base.raw -F raw",
    "-b base.raw -F raw 20M",
    "-u -b missing.qcow2 -F qcow2 20M",
    "1000",
];

#[test]
fn create_makes_qcow2_images_that_are_qemus() {
    let place = Place::new();
    place.raw("base.raw", 3 << 20);
    for options in QCOW2 {
        let (options, size) = match options.rsplit_once(' ') {
            Some((options, size)) if !size.starts_with(|it: char| it.is_ascii_digit()) => {
                (format!("{options} {size}"), "")
            }
            Some((options, size)) => (options.to_owned(), size),
            None if options.starts_with('-') => (options.to_owned(), ""),
            None => (String::new(), options),
        };
        place.ours(&format!("create -f qcow2 {options} a.qcow2 {size}")).expect_success();
        place.qemu_img(&format!("create -f qcow2 {options} b.qcow2 {size}"));
        assert!(place.read("a.qcow2") == place.read("b.qcow2"), "{options} {size}");
    }
    for options in ["data_file=a.data", "data_file=a.data,data_file_raw=on"] {
        place.ours(&format!("create -f qcow2 -o {options} a.qcow2 3M")).expect_success();
        let ours = (place.read("a.qcow2"), place.read("a.data"));
        place.qemu_img(&format!("create -f qcow2 -o {options} a.qcow2 3M"));
        assert!(ours == (place.read("a.qcow2"), place.read("a.data")), "{options}");
    }
    for wrong in [
        "-b missing.raw -F raw a.qcow2",
        "-b base.raw a.qcow2",
        "-F raw a.qcow2",
        "-o cluster_size=1000 a.qcow2 1M",
        "-o lazy_refcounts=perhaps a.qcow2 1M",
        "-o frob=1 a.qcow2 1M",
    ] {
        let (ours, theirs) = (
            place.ours(&format!("create -f qcow2 {wrong}")),
            place.theirs(&format!("create -f qcow2 {wrong}")),
        );
        assert_eq!((ours.code, theirs.code), (1, 1), "{wrong}: {ours:?} {theirs:?}");
    }
}

#[test]
fn resize_makes_images_longer_and_shorter() {
    let place = Place::new();
    for name in ["ours.raw", "theirs.raw"] {
        fs::write(place.path(name), random(1, 1 << 20)).unwrap();
    }
    for arguments in [
        "@ 3M",
        "@ +1M",
        "--shrink @ -3M",
        "--shrink @ 512k",
        "--preallocation=falloc @ 1M",
        "-q @ 2M",
    ] {
        let ours = place.ours(&format!("resize -f raw {}", arguments.replace('@', "ours.raw")));
        let theirs =
            place.theirs(&format!("resize -f raw {}", arguments.replace('@', "theirs.raw")));
        assert_eq!((&ours.out, ours.code), (&theirs.out, theirs.code), "{arguments}: {ours:?}");
        assert!(place.read("ours.raw") == place.read("theirs.raw"), "{arguments}");
        let [ours, theirs] = ["ours.raw", "theirs.raw"].map(|name| allocated(&place.path(name)));
        assert_eq!(ours, theirs, "{arguments}");
    }
    // A loss has to be asked for.
    let before = place.read("ours.raw");
    let said = place.ours("resize -f raw ours.raw 1M");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(place.read("ours.raw") == before);
}

#[test]
fn bench_makes_its_requests() {
    let place = Place::new();
    fs::write(place.path("a.raw"), random(1, 1 << 20)).unwrap();
    for arguments in [
        "-c 100",
        "-c 1000 -d 4 -s 512 -S 64k -o 4k",
        "-c 0x10 -d 010 -s 0x200",
        "-c 10 -i io_uring",
        "-c 10 -n -t none",
        "-w -c 20 -d 2 --flush-interval 10 --pattern 7",
        "-w -c 20 -d 2 --flush-interval 10 --no-drain",
    ] {
        let (ours, theirs) = (
            place.ours(&format!("bench -f raw {arguments} a.raw")),
            place.theirs(&format!("bench -f raw {arguments} a.raw")),
        );
        let lines = |text: &str| {
            let time =
                |line: &str| line.starts_with("Run completed in ") && line.ends_with(" seconds.");
            let without = |line: &str| if time(line) { "time".to_owned() } else { line.to_owned() };
            text.lines().map(without).collect::<Vec<_>>()
        };
        assert_eq!((lines(&ours.out), ours.code), (lines(&theirs.out), theirs.code), "{arguments}");
    }
    for wrong in ["-c 0", "-c 08", "-c 10k", "-c 0x", "-d 5x", "-w --pattern 0x100"] {
        let line = format!("bench -f raw {wrong} a.raw");
        let (ours, theirs) = (place.ours(&line), place.theirs(&line));
        assert_eq!((ours.code, ours.out), (theirs.code, theirs.out), "{wrong}");
    }
    fs::write(place.path("a.raw"), vec![1; 1 << 20]).unwrap();
    place.ours("bench -f raw -w -c 3 -d 1 -s 4k -S 8k -o 4k --pattern 7 a.raw").expect_success();
    let mut expected = vec![1; 1 << 20];
    for at in [4096, 12288, 20480] {
        expected[at..at + 4096].fill(7);
    }
    assert!(place.read("a.raw") == expected);
}

#[test]
fn an_image_that_another_program_writes_is_left_alone() {
    let place = Place::new();
    place.raw("a.raw", 1 << 20);
    let image = place.path("a.raw");
    let mut qemu_io = tools::command("qemu-io");
    qemu_io.args(["-f", "raw", tools::text(&image)]);
    let _held = Holder::start(&mut qemu_io, &image, IS_WRITTEN);
    for arguments in [
        "info a.raw",
        "map a.raw",
        "compare a.raw a.raw",
        "convert a.raw b.raw",
        "resize -f raw a.raw 2M",
    ] {
        let said = place.ours(arguments);
        assert!(said.code > 0, "{arguments}: {said:?}");
    }
    place.ours("info -U a.raw").expect_success();
}
