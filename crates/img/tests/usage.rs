//! Wrong command lines: a message on the standard error, nothing on the standard output, and the exit code
//! that `qemu-img` has.

use coblk_tests::tools;

use crate::util::Place;

/// Arguments that make no sense, or not with what there is.
const MISTAKES: [&str; 70] = [
    "",
    "frob",
    "info",
    "info a.raw b.qcow2",
    "info --frob a.raw",
    "info --output=xml a.raw",
    "info -f frob a.raw",
    "info missing",
    "info --image-opts -f raw a.raw",
    "info frob:a.raw",
    "map",
    "map --max-length frob a.raw",
    "check",
    "check -r frob a.raw",
    "check -T frob b.qcow2",
    "check missing",
    "compare",
    "compare a.raw",
    "compare a.raw a.raw a.raw",
    "compare a.raw missing",
    "compare -T frob a.raw a.raw",
    "convert",
    "convert a.raw",
    "convert -O frob a.raw c.raw",
    "convert -m 0 a.raw c.raw",
    "convert -m 1000 a.raw c.raw",
    "convert -S frob a.raw c.raw",
    "convert -t frob a.raw c.raw",
    "convert -T frob a.raw c.raw",
    "convert -r frob a.raw c.raw",
    "convert -c a.raw c.raw",
    "convert -n -o size=1M a.raw a.raw",
    "convert -C -S 4k a.raw c.raw",
    "convert --target-is-zero a.raw c.raw",
    "convert -n a.raw missing",
    "convert missing c.raw",
    "create",
    "create -f frob c.raw 1M",
    "create c.raw",
    "create c.raw frob",
    "create -o size=1M c.raw 1M",
    "create -b a.raw c.raw 1M",
    "create missing/c.raw 1M",
    "resize a.raw",
    "resize a.raw frob",
    "resize -f raw a.raw 1k",
    "resize -f raw --preallocation frob a.raw 2M",
    "resize -f raw --preallocation metadata a.raw 2M",
    "bench",
    "bench -c 0 a.raw",
    "bench -d 0 a.raw",
    "bench -s 0 a.raw",
    "bench -i frob a.raw",
    "bench -t frob a.raw",
    "bench --flush-interval 3 a.raw",
    "bench -w --flush-interval 3 -d 4 -f raw a.raw",
    "bench -o 1M -c 1 a.raw",
    "measure",
    "measure --size frob",
    "measure -O frob --size 1M",
    "snapshot",
    "snapshot -c s -d s b.qcow2",
    "snapshot -d missing b.qcow2",
    "snapshot -d 1 c.qcow2",
    "amend a.raw",
    "amend -f raw -o frob=1 a.raw",
    "rebase missing",
    "rebase -f raw -b a.raw -F raw a.raw",
    "commit -f raw a.raw",
    "commit b.qcow2",
];

#[test]
fn mistakes_have_qemu_imgs_codes() {
    let place = Place::new();
    place.raw("a.raw", 1 << 20);
    place.qemu_img("create -q -f qcow2 b.qcow2 1M");
    place.qemu_img("create -q -f qcow2 c.qcow2 1M");
    place.qemu_img("snapshot -c s c.qcow2");
    for arguments in MISTAKES {
        let ours = place.ours(arguments);
        // Older versions let some of them pass, and hang at others.
        match tools::qemu_major() >= 8 {
            true => assert_eq!(ours.code, place.theirs(arguments).code, "{arguments}: {ours:?}"),
            false => assert!(ours.code > 0, "{arguments}: {ours:?}"),
        }
        let mut lines = ours.error.lines();
        assert!(lines.any(|line| line.starts_with("coblk-img: ")), "{arguments}: {ours:?}");
        assert!(!ours.error.contains("panicked"), "{arguments}: {ours:?}");
        // These two tell first what they are about to do.
        if !arguments.starts_with("bench") && !arguments.starts_with("create missing") {
            assert_eq!(ours.out, "", "{arguments}");
        }
    }
}

#[test]
fn help_and_version_are_no_mistake() {
    let place = Place::new();
    for arguments in ["--help", "-h", "--version", "-V", "convert --help", "info -h"] {
        let said = place.ours(arguments);
        assert_eq!((said.code, said.error.as_str()), (0, ""), "{arguments}");
        assert!(said.out.contains("coblk-img"), "{arguments}: {said:?}");
    }
}

#[test]
fn a_mistake_costs_no_target() {
    let place = Place::new();
    place.raw("a.raw", 1 << 20);
    place.qemu_img("convert -O qcow2 a.raw b.qcow2");
    place.raw("there", 1 << 20);
    let there = place.read("there");
    for arguments in [
        "convert -O qcow2 -S frob a.raw",
        "convert -O qcow2 -r frob a.raw",
        "convert -O qcow2 -m 0 a.raw",
        "convert -O qcow2 -t frob a.raw",
        "convert -O qcow2 -o frob=1 a.raw",
        "convert -O qcow2 -o cluster_size=1 a.raw",
        "convert -O qcow2 -o size=16E a.raw",
        "convert -O qcow2 --bitmaps -o compat=v2 b.qcow2",
        "convert -O raw --bitmaps b.qcow2",
        "convert -O raw -c a.raw",
        "convert -O frob a.raw",
        "create -f qcow2 -o frob=1,size=1M",
        "create -f qcow2 -o refcount_bits=3,size=1M",
        "create -f qcow2 -o size=1E",
        "create -f frob -o size=1M",
    ] {
        for name in ["there", "missing"] {
            assert_eq!(place.ours(&format!("{arguments} {name}")).code, 1, "{arguments} {name}");
        }
        assert!(place.read("there") == there, "{arguments}");
        assert!(!place.path("missing").exists(), "{arguments}");
    }
}

#[test]
fn an_image_that_cannot_be_made_leaves_no_file() {
    let place = Place::new();
    // The data file is a directory, which is found out behind the making of the image's own file.
    std::fs::create_dir(place.path("directory")).unwrap();
    let said = place.ours("create -f qcow2 -o data_file=directory/missing/data c.qcow2 1M");
    assert_eq!(said.code, 1);
    assert!(!place.path("c.qcow2").exists(), "{said:?}");
}
