//! A loss of power while the length of a disk changes: it is the one or the other, and no image is corrupt.

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::{BackendOptions, BlockNode, Truncate};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, SECTOR, Survivors};
use coblk_tests::survey::{Subject, in_memory, read_all};

use crate::simulated;
use crate::util::shape::{Format, SHAPES, Shape};

/// Moments of a run that are looked at.
const MOMENTS: u64 = 4;
const HOW: Truncate =
    Truncate { exact: true, zero: true, preallocation: coblk_block::Preallocation::Off };

/// What the disk holds from one moment on, until another one.
struct State {
    begun: u64,
    ended: u64,
    content: Vec<u8>,
}

/// A disk that was written to, and whose length has changed then.
struct Run {
    format: Format,
    recorder: Recorder,
    states: Vec<State>,
}

fn truncate(ctx: &AioContext, node: &Arc<BlockNode>, length: usize) -> Result<(), String> {
    let backend = BackendOptions::new("resize").open(ctx, Arc::clone(node)).expect("a backend");
    let result = ctx.run(|co| backend.co_truncate_with(co, length as u64, HOW));
    result.map_err(|error| format!("length {length:#x}: {error}"))
}

impl Run {
    fn play(ctx: &AioContext, shape: Shape, seed: u64) -> Result<Run, String> {
        let format = Format::new(shape);
        let images = shape.create(seed);
        let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
        let mut content = shape.content(&images);
        let files: Vec<RecordedFile> =
            images.into_iter().map(|image| recorder.add_file(image)).collect();
        let mut random = Random::new(seed);
        let node = format.open(ctx, &files, false)?;
        let backend =
            BackendOptions::new("writer").open(ctx, Arc::clone(&node)).expect("a backend");
        for _ in 0..20 {
            let first = random.below(shape.sectors as u64) as usize;
            let end =
                (first + 1 + random.below(shape.cluster as u64 * 3) as usize).min(shape.sectors);
            let range = first * SECTOR..end * SECTOR;
            random.fill(&mut content[range.clone()]);
            let write = ctx.run(|co| backend.co_write(co, range.start as u64, &content[range]));
            write.map_err(|error| error.to_string())?;
        }
        backend.flush(ctx).map_err(|error| error.to_string())?;
        drop(backend);
        let now = recorder.tick();
        let mut states = vec![State { begun: now, ended: now, content: content.clone() }];
        for _ in 0..3 {
            let sectors = 1 + random.below(shape.sectors as u64 * 3 / 2) as usize;
            let begun = recorder.tick();
            truncate(ctx, &node, sectors * SECTOR)?;
            content.resize(sectors * SECTOR, 0);
            let ended = recorder.tick();
            states.push(State { begun, ended, content: content.clone() });
        }
        format.close(ctx, node)?;
        format.expect_clean(ctx, &files, "a close")?;
        if read_all(&format, ctx, &files)? != content {
            return Err("the last length has other bytes".to_owned());
        }
        Ok(Run { format, recorder, states })
    }

    /// Looks at what a crash at that moment may leave.
    fn judge(
        &self,
        ctx: &AioContext,
        moment: u64,
        mut survivors: Survivors<'_>,
    ) -> Result<(), String> {
        let files = in_memory(self.recorder.crash_at(moment).files(&mut survivors));
        self.format.check(ctx, &files)?;
        let content = read_all(&self.format, ctx, &files)?;
        let last = self.states.iter().rposition(|it| it.ended <= moment).expect("a state");
        let under_way = self.states[last + 1..].iter().filter(|it| it.begun <= moment);
        let mut may_be = std::iter::once(&self.states[last]).chain(under_way);
        if !may_be.any(|it| it.content == content) {
            let length = content.len();
            return Err(format!(
                "neither before change {} nor after: length {length:#x}",
                last + 1
            ));
        }
        // What is grown into reads as zeroes, whatever the crash has left there.
        let node = self.format.open(ctx, &files, false).map_err(|it| format!("again: {it}"))?;
        let length = content.len() + 10 * self.format.shape.cluster * SECTOR;
        truncate(ctx, &node, length)?;
        self.format.close(ctx, node)?;
        self.format.check(ctx, &files)?;
        let mut expected = content;
        expected.resize(length, 0);
        let longer = read_all(&self.format, ctx, &files)?;
        match longer.iter().zip(&expected).position(|(is, should)| is != should) {
            None => Ok(()),
            Some(at) => Err(format!("grown after the crash, it has another byte at {at:#x}")),
        }
    }
}

fn survey(shape: Shape, seed: u64) -> Result<u64, String> {
    let run = Run::play(&simulated(seed), shape, seed)?;
    let ctx = AioContext::for_test().expect("a context");
    let (mut random, mut images) = (Random::new(seed), 0);
    let first = run.states[0].ended;
    let all = run.recorder.now() + 1 - first;
    for _ in 0..MOMENTS {
        let moment = first + random.below(all);
        let unsettled = run.recorder.crash_at(moment).unsettled();
        let mut judge = |survivors, what: &str| {
            images += 1;
            let verdict = run.judge(&ctx, moment, survivors);
            verdict.map_err(|fault| format!("a crash at {moment}, {what}: {fault}"))
        };
        judge(Survivors::None, "what is durable")?;
        judge(Survivors::All, "all")?;
        if !unsettled.is_empty() {
            let one = unsettled[random.below(unsettled.len() as u64) as usize];
            judge(Survivors::Only(one), "one alone")?;
            judge(Survivors::AllBut(one), "all but one")?;
            judge(Survivors::Torn(&mut random), "some sectors")?;
        }
    }
    Ok(images)
}

#[test]
fn q120_a_crash_while_the_length_changes_leaves_one_of_both() {
    let mut images = 0;
    for seed in seeds(1) {
        for (number, shape) in (0..).zip(SHAPES) {
            // Without zero flags what a backing file has cannot be hidden.
            if shape.options.contains("compat=0.10") && shape.backing.is_some() {
                continue;
            }
            let seed = seed + 1000 * number;
            let seen = survey(shape, seed);
            images += seen.unwrap_or_else(|fault| panic!("{shape:?}, seed {seed}: {fault}"));
        }
    }
    println!("{images} images");
}
