//! The example that makes incremental backups in a program of its own, beside QEMU.

use crate::util::Place;

#[allow(dead_code, reason = "its main function is for programs")]
#[path = "../../../examples/backup.rs"]
mod backup;

#[test]
fn each_image_of_the_chain_has_the_disk_as_it_was() {
    let place = Place::new();
    std::fs::create_dir(place.path("chain")).unwrap();
    place.qemu_img("create -q -f qcow2 disk.qcow2 8M");
    for round in 0..3 {
        let write = format!("write -P {} {round}M 64k", round + 1);
        place.qemu_io("disk.qcow2", &[&write]);
        std::fs::copy(place.path("disk.qcow2"), place.path("before.qcow2")).unwrap();
        let image = backup::run(&place.path("disk.qcow2"), &place.path("chain")).unwrap();
        let name = format!("chain/{round}.qcow2");
        assert_eq!(image, place.path(&name));
        place.theirs(&format!("check {name}")).expect_success();
        place.theirs(&format!("compare before.qcow2 {name}")).expect_success();
    }
    // Little of it is copied again.
    let last = std::fs::metadata(place.path("chain/2.qcow2")).unwrap();
    assert!(last.len() < 2 << 20, "{}", last.len());
    place.theirs("check disk.qcow2").expect_success();
}
