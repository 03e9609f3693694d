//! Random requests of every kind, of any bytes, against a model: what the disk should hold, in a vector.
//!
//! A run has several phases. After each the image is closed, and QEMU judges it: `qemu-img check` finds
//! nothing, not even a leak; it reads what the model holds; its map is ours.

mod play;
#[path = "../util/mod.rs"]
mod util;

use std::fs;

use coblk_aio::{AioContext, IoThread, SimulationOptions};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder};
use coblk_tests::survey::{Subject, read_all};
use play::{Counts, Kind, Play};
use util::shape::{Format, SHAPES, Shape};
use util::{Stand, assert_same, map};

/// In each run.
const PHASES: u64 = 3;

/// What the disk should hold, and which bytes of that are known.
type Content = (Vec<u8>, Vec<bool>);

fn context(seed: u64, two: bool) -> AioContext {
    match two {
        true => AioContext::for_test().expect("a context"),
        false => AioContext::test_builder()
            .simulated(SimulationOptions::new(seed))
            .build()
            .expect("a context"),
    }
}

/// One run on a new image of a shape.
fn run(shape: Shape, seed: u64, two: bool, counts: &Counts) {
    let what = format!("{shape:?}, seed {seed}, {} contexts", 1 + u8::from(two));
    let (ctx, format) = (context(seed, two), Format::new(shape));
    let recorder = Recorder::new(Behaviour {
        seed,
        has_fua: seed.is_multiple_of(2),
        alignment: [1, 512, 4096][seed as usize % 3],
        ..Behaviour::default()
    });
    let images = shape.create(seed);
    let content = shape.content(&images);
    let mut content: Content = (content.clone(), vec![true; content.len()]);
    let files: Vec<RecordedFile> =
        images.into_iter().map(|image| recorder.add_file(image)).collect();
    let mut random = Random::new(seed);
    for phase in 0..PHASES {
        let what = format!("{what}, phase {phase}");
        let node = format.open(&ctx, &files, false).unwrap_or_else(|it| panic!("{what}: {it}"));
        let other = two.then(|| IoThread::new("other").expect("a thread"));
        let others: Vec<_> = other.iter().map(|it| it.handle()).collect();
        let play = Play::new(&what, random.number(), shape.cluster * 512, content, counts);
        content = play.run(&ctx, &node, &others);
        drop(other);
        if phase + 1 < PHASES {
            play::resize(&ctx, &node, &mut random, counts, &mut content);
        }
        format.close(&ctx, node).unwrap_or_else(|it| panic!("{what}: {it}"));
        judge(&what, (&format, &ctx), &files, &content);
    }
}

/// The closed image, as others see it.
fn judge(
    what: &str,
    (format, ctx): (&Format, &AioContext),
    files: &[RecordedFile],
    (content, known): &Content,
) {
    format.expect_clean(ctx, files, what).unwrap_or_else(|fault| panic!("{fault}"));
    let ours = read_all(format, ctx, files).unwrap_or_else(|fault| panic!("{what}: {fault}"));
    assert_eq!(ours.len(), content.len(), "{what}: the length of the disk");
    for (at, byte) in ours.iter().enumerate().filter(|(at, _)| known[*at]) {
        assert_eq!(*byte, content[at], "{what}: byte {at:#x}");
    }
    let stand = Stand::new();
    for (name, file) in format.shape.names().into_iter().zip(files) {
        fs::write(stand.path(name), file.content()).expect("a file");
    }
    let image = stand.path("image.qcow2");
    let (report, code) = stand.qemu_img("check", &image);
    assert_eq!(code, 0, "{what}: {report}");
    assert_same(&stand.content(&image), &ours, what);
    map::compare(&stand, &image);
    stand.end();
}

fn all_shapes(usual: u64, two: bool) {
    let counts = Counts::default();
    for seed in seeds(usual) {
        for shape in SHAPES {
            run(shape, seed, two, &counts);
        }
    }
    println!("{counts:?}");
    for kind in Kind::EXPECTED {
        assert!(counts.done(kind) > 0, "no {kind:?} was done: {counts:?}");
    }
}

#[test]
fn q220_q221_images_hold_what_the_model_holds() {
    all_shapes(1, false);
}

#[test]
fn q220_q177_images_hold_what_the_model_holds_on_two_contexts() {
    all_shapes(1, true);
}
