//! Changes of the header of which a request fails, and the change that comes after that: at each moment the file has
//! one header or another, and in the end the one that was asked for last.

use std::io;
use std::sync::Arc;

use coblk_aio::{AioContext, SimulationOptions};
use coblk_block::{BackendOptions, BackingName, BlockNode};
use coblk_qcow2::layout::Header;
use coblk_tests::random::Random;
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, Recorder, Survivors};
use coblk_tests::survey::Subject;

use crate::util::shape::{Format, Shape, shape};

const SHAPE: Shape = shape("cluster_size=4k", 8, 512);
/// Bytes of the names: they reach over several sectors.
const LONG: usize = 900;

/// Names a backing file, whose name is one letter again and again.
fn name(ctx: &AioContext, node: &BlockNode, letter: char) -> io::Result<()> {
    let backing = BackingName::new(letter.to_string().repeat(LONG), None);
    ctx.run(|co| node.co_image(co)?.co_change_backing(co, Some(&backing)))
}

/// The letter of the name in an image.
fn letter(image: &[u8]) -> char {
    let header = Header::parse(&image[..4096]).expect("a header");
    let name = header.backing.expect("a name");
    let first = name[0];
    assert!(name.len() == LONG && name.iter().all(|byte| *byte == first), "{name:?}");
    first.into()
}

/// Has a change to `b` fail at a request, and then changes to `last`. Returns whether there was such a request.
fn run(fault: Disturbance, last: char) -> bool {
    let ctx =
        AioContext::test_builder().simulated(SimulationOptions::new(1)).build().expect("a context");
    let recorder = Recorder::new(Behaviour::default());
    let files = vec![recorder.add_file(SHAPE.create(1).remove(0))];
    let format = Format::new(SHAPE);
    let node = format.open(&ctx, &files, false).unwrap();
    let user = BackendOptions::new("user").open(&ctx, Arc::clone(&node)).unwrap();
    name(&ctx, &node, 'a').unwrap();
    recorder.disturb(fault);
    let changed = name(&ctx, &node, 'b');
    let is_met = recorder.disturbed() > 0;
    assert_eq!(changed.is_err(), is_met);
    recorder.calm();
    let begun = recorder.now();
    name(&ctx, &node, last).unwrap();
    let ended = recorder.now();
    assert_eq!(letter(&files[0].content()), last);
    let mut random = Random::new(1);
    for moment in begun..=ended {
        let point = recorder.crash_at(moment);
        let unsettled = point.unsettled();
        let single = unsettled.iter().flat_map(|it| [Survivors::Only(*it), Survivors::AllBut(*it)]);
        let mut images: Vec<_> = single.map(|mut it| point.files(&mut it)).collect();
        images.push(point.files(&mut Survivors::All));
        let durable = point.files(&mut Survivors::None);
        if moment == ended {
            assert_eq!(letter(&durable[0]), last, "what was answered is durable");
        }
        images.push(durable);
        images.extend((0..4).map(|_| point.files(&mut Survivors::Torn(&mut random))));
        images.iter().for_each(|files| assert!("abc".contains(letter(&files[0]))));
    }
    drop(user);
    format.close(&ctx, node).unwrap();
    is_met
}

fn all(last: char) {
    for kind in [Kind::Write, Kind::Flush] {
        let faults = (0..).map(|skip| Disturbance::fail(libc::EIO, skip).of(kind));
        let met = faults.take_while(|fault| run(fault.clone(), last)).count();
        assert!(met >= 2, "{kind:?}: {met}");
    }
}

#[test]
fn q21_a_header_that_failed_is_not_torn_by_the_next_one() {
    all('c');
}

#[test]
fn q21_a_header_that_failed_is_not_taken_for_the_old_one() {
    all('a');
}
