//! The example that opens an overlay in a program of its own, beside QEMU.

use crate::util::Place;

#[allow(dead_code, reason = "its main function is for programs")]
#[path = "../../../examples/overlay.rs"]
mod overlay;

#[test]
fn a_program_makes_an_overlay_keeps_it_in_a_snapshot_and_writes() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 base.qcow2 20M");
    place.qemu_io("base.qcow2", &["write -P 1 0 2M"]);
    let before = place.read("base.qcow2");
    let (base, top) = (place.path("base.qcow2"), place.path("top.qcow2"));
    assert_eq!(overlay::run(&base, &top, "aa").unwrap(), ["before \"aa\""]);
    let names = overlay::run(&base, &top, "b").unwrap();
    assert_eq!(names, ["before \"aa\"", "before \"b\""]);
    assert!(place.read("base.qcow2") == before, "the base is only read");
    place.theirs("check top.qcow2").expect_success();
    place.qemu_io("top.qcow2", &["read -P 0x62 0 1", "read -P 0x61 1 1", "read -P 1 2 1M"]);
    place.qemu_img("snapshot -a 2 top.qcow2");
    place.qemu_io("top.qcow2", &["read -P 0x61 0 2", "read -P 1 2 1M"]);
    place.qemu_img("snapshot -a 1 top.qcow2");
    place.qemu_io("top.qcow2", &["read -P 1 0 1M"]);
    let why = overlay::run(&place.path("missing"), &place.path("other"), "a").unwrap_err();
    assert!(why.to_string().contains("missing"), "{why}");
}
