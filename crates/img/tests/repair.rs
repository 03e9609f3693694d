//! `check -r` mends what `qemu-img check -r` mends: words, JSON and exit codes are the same, and nothing is wrong
//! afterwards that was not before.

use std::fs;

use coblk_tests::holder::Holder;
use coblk_tests::tools;
use serde_json::Value;

use crate::util::{Place, Said};

/// The byte whose lock says that the image is written.
const IS_WRITTEN: u64 = 101;

/// Options of images.
const SHAPES: [&str; 5] = [
    "compat=1.1",
    "compat=0.10",
    "extended_l2=on,cluster_size=128k",
    "data_file=shared.data",
    "cluster_size=4k",
];

/// What is wrong with an image: some of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// A refcount that is too high.
    Leak,
    /// One that is too low.
    Corruption,
    /// An entry that cannot be mended.
    Lost,
}

/// An image with data, and with damage.
fn make(place: &Place, options: &str, damages: &[Damage]) {
    place.qemu_img(&format!("create -q -f qcow2 -o {options} image.qcow2 9M"));
    place.qemu_io("image.qcow2", &["write -P 1 0 300k", "write -P 2 3M 64k"]);
    let image = "image.qcow2";
    let l2 = place.word(image, place.word(image, 40));
    let block = place.word(image, place.word(image, 48));
    for damage in damages {
        match damage {
            Damage::Leak => place.patch(image, block + 2 * 3, &7_u16.to_be_bytes()),
            Damage::Corruption => {
                let bits = u32::from_be_bytes(place.read(image)[20..24].try_into().unwrap());
                place.patch(image, block + 2 * (l2 >> bits), &[0, 0]);
            }
            Damage::Lost => {
                let entry = place.read(image)[l2..l2 + 8].to_vec();
                place.patch(image, l2 + 6, &[entry[6] | 2]);
            }
        }
    }
}

/// Both programs do the same with copies of an image, of which that of ours is kept. Returns the exit code.
#[track_caller]
fn same(place: &Place, arguments: &str, what: &str) -> i32 {
    let run = |ask: &dyn Fn(&str) -> Said| {
        fs::copy(place.path("image.qcow2"), place.path("copy.qcow2")).unwrap();
        ask(&format!("{arguments} copy.qcow2"))
    };
    let theirs = run(&|arguments| place.theirs(arguments));
    let ours = run(&|arguments| place.ours(arguments));
    let what = format!("{arguments}: {what}: {ours:?} {theirs:?}");
    assert_eq!(ours.code, theirs.code, "{what}");
    match arguments.contains("json") && ours.code != 1 {
        true => {
            let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(json(&ours.out), json(&theirs.out), "{what}");
        }
        false => assert_eq!(ours.out, theirs.out, "{what}"),
    }
    assert_eq!(ours.error.is_empty(), theirs.error.is_empty(), "{what}");
    ours.code
}

#[test]
fn damage_is_mended_as_by_qemu_img() {
    use Damage::{Corruption, Leak, Lost};
    let damages: [(&[Damage], [i32; 3]); 6] = [
        (&[], [0, 0, 0]),
        (&[Leak], [3, 0, 0]),
        (&[Corruption], [2, 1, 0]),
        (&[Leak, Corruption], [2, 1, 0]),
        (&[Lost], [2, 2, 2]),
        (&[Leak, Lost], [2, 2, 2]),
    ];
    for options in SHAPES {
        let place = Place::new();
        for (damages, expected) in damages {
            make(&place, options, damages);
            let what = format!("{options} {damages:?}");
            let before = place.read("image.qcow2");
            for (way, expected) in ["", "-r leaks", "-r all"].into_iter().zip(expected) {
                let all = ["--output=json", "", "-q", "-T none"];
                for arguments in if options == SHAPES[0] { &all[..] } else { &all[..1] } {
                    let code = same(&place, &format!("check {way} {arguments}"), &what);
                    assert_eq!(code, expected, "{way} {what}");
                }
                if damages.is_empty() || way.is_empty() || expected == 1 {
                    assert!(place.read("copy.qcow2") == before, "{way} {what}: it is written to");
                }
                let mut left = expected;
                if way == "-r leaks" && expected == 1 {
                    left = 2;
                }
                assert_eq!(code_of(&place, "copy.qcow2"), left, "{way} {what}");
            }
        }
    }
}

/// The exit code of `qemu-img check`.
fn code_of(place: &Place, image: &str) -> i32 {
    place.theirs(&format!("check {image}")).code
}

#[test]
fn images_that_cannot_be_opened_are_mended() {
    let place = Place::new();
    // No refcount table; and the bit that says that the image is corrupt.
    for (at, bytes) in [(56, vec![0; 4]), (72, 2_u64.to_be_bytes().to_vec())] {
        make(&place, "compat=1.1", &[Damage::Leak]);
        place.patch("image.qcow2", at, &bytes);
        let write = ["-f", "qcow2", "-c", "write 0 64k", "image.qcow2"];
        assert_eq!(place.program("qemu-io", &write).code, 1, "{at}");
        for way in ["", "-r leaks", "-r all"] {
            same(&place, &format!("check {way}"), &format!("{at}"));
        }
        assert_eq!(place.ours("check -r all image.qcow2").code, 0);
        place.qemu_io("image.qcow2", &["read -P 1 0 300k", "write -P 3 0 64k"]);
    }
}

#[test]
fn a_dirty_image_is_mended_and_clean() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 -o lazy_refcounts=on image.qcow2 9M");
    let mut crash = tools::command("qemu-io");
    crash.current_dir(place.path("")).args(["-f", "qcow2", "image.qcow2"]);
    crash.args(["-c", "write -P 5 768k 128k", "-c", "abort"]);
    tools::finish("qemu-io", &mut crash);
    assert_eq!(place.read("image.qcow2")[79], 1, "the bit says dirty");
    for way in ["", "-r leaks", "-r all"] {
        for arguments in ["", "--output=json"] {
            same(&place, &format!("check {way} {arguments}"), "dirty");
        }
    }
    assert_eq!(place.ours("check -r all image.qcow2").code, 0);
    assert_eq!(place.read("image.qcow2")[79], 0);
    place.qemu_io("image.qcow2", &["read -P 5 768k 128k"]);
}

#[test]
fn an_image_that_another_program_uses_is_not_mended() {
    let place = Place::new();
    make(&place, "compat=1.1", &[Damage::Leak]);
    let (image, before) = (place.path("image.qcow2"), place.read("image.qcow2"));
    let mut qemu_io = tools::command("qemu-io");
    qemu_io.args(["-f", "qcow2", tools::text(&image)]);
    let held = Holder::start(&mut qemu_io, &image, IS_WRITTEN);
    for way in ["-r leaks", "-r all", "-U -r all"] {
        let arguments = format!("check {way} image.qcow2");
        let (ours, theirs) = (place.ours(&arguments), place.theirs(&arguments));
        assert_eq!((ours.code, theirs.code), (1, 1), "{ours:?} {theirs:?}");
        assert!(place.read("image.qcow2") == before, "{way}");
    }
    drop(held);
    assert_eq!(place.ours("check -r leaks image.qcow2").code, 0);
}

#[test]
fn the_file_may_be_named_by_options() {
    let place = Place::new();
    for image in [
        "--image-opts driver=qcow2,file.driver=file,file.filename=image.qcow2",
        "--image-opts driver=qcow2,file.filename=image.qcow2,cache.direct=on",
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"image.qcow2"}}"#,
        "-f qcow2 image.qcow2",
    ] {
        make(&place, "compat=1.1", &[Damage::Leak]);
        let said = place.ours(&format!("check -r leaks {image}")).expect_success();
        assert!(said.out.contains("    1 leaked clusters"), "{image}: {said:?}");
        assert_eq!(code_of(&place, "image.qcow2"), 0, "{image}");
    }
    // Other formats have no check.
    place.raw("a.raw", 1 << 20);
    for image in ["a.raw", "-f file a.raw", "-f raw image.qcow2"] {
        for way in ["", "-r all"] {
            let arguments = format!("check {way} {image}");
            assert_eq!(place.ours(&arguments).code, 63, "{arguments}");
            assert_eq!(place.theirs(&arguments).code, 63, "{arguments}");
        }
    }
}

#[test]
fn findings_are_told_and_progress_is_a_line() {
    let place = Place::new();
    make(&place, "compat=1.1", &[Damage::Leak, Damage::Lost]);
    let said = place.ours("check -p -r all image.qcow2");
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.out.contains("    (100.00/100%)\r\n"), "{said:?}");
    assert!(said.error.contains("cluster 3: refcount 7, 1 references"), "{said:?}");
    assert!(said.error.contains("unaligned"), "{said:?}");
    let said = place.ours("check -p -q image.qcow2");
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
}
