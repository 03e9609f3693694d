//! Images of a Ceph cluster, by their `rbd:` names. Needs what `tests/ceph/up` brings up.

use coblk_tests::ceph::{Image, conf, rbd};
use coblk_tests::tools;

fn img(args: &[&str]) -> String {
    tools::run(env!("CARGO_BIN_EXE_coblk-img"), args)
}

#[test]
fn ceph_an_image_is_made_filled_told_of_and_compared_by_its_name() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source.img");
    let source = tools::text(&source);
    let mut bytes: Vec<u8> = (0..4 << 20).map(|at: usize| (at / 777) as u8).collect();
    bytes[1 << 20..3 << 20].fill(0);
    std::fs::write(source, &bytes).unwrap();
    for format in ["raw", "qcow2"] {
        let image = Image::named("rbd");
        let name = image.filename();
        img(&["convert", "-f", "raw", "-O", format, "-o", "cluster_size=64k", source, &name]);
        let said = img(&["compare", "-f", "raw", "-F", format, source, &name]);
        assert!(said.contains("identical"), "{said}");
        let said = img(&["info", &name]);
        assert!(said.contains("4 MiB") && said.contains(format), "{said}");
        let said = img(&["map", "--output=json", "-f", format, &name]);
        assert!(said.contains(r#""zero": true"#), "{said}");
        let copy = dir.path().join("copy.img");
        let copy = tools::text(&copy);
        rbd(&["export", "--no-progress", &image.spec(), copy]);
        tools::run("qemu-img", ["compare", "-f", "raw", "-F", format, source, copy]);
        std::fs::remove_file(copy).unwrap();
    }
    let image = Image::named("rbd");
    img(&["create", "-f", "raw", "-o", "cluster_size=64k", &image.filename(), "8M"]);
    assert!(rbd(&["info", &image.spec()]).contains("64 KiB objects"));
    img(&["resize", "-f", "raw", &image.filename(), "9M"]);
    assert!(rbd(&["info", &image.spec()]).contains("size 9 MiB"));
    let missing = format!("rbd:none/a:conf={}", conf());
    for (name, words) in [(&*missing, "there is no pool 'none'"), ("rbd:a", "it has no image")] {
        let refused = tools::output(env!("CARGO_BIN_EXE_coblk-img"), ["info", name]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains(words), "{refused:?}");
    }
}
