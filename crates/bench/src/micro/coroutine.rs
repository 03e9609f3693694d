//! Coroutines by themselves: switching, creating, nesting.

use std::io;

use coblk::coroutine::Coroutine;

use crate::measure::{Contest, Lap, lap};
use crate::peers::{coroutines, swapcontext};
use crate::works::Work;

/// How deep coroutines nest.
const DEPTH: u64 = 1000;

pub fn contest(work: Work) -> Contest<'static> {
    match work {
        Work::ResumeSuspend => Contest::new(work.name(), work.unit(), resume_suspend())
            .peer("corosensei", coroutines::corosensei_resume_suspend())
            .peer("generator", coroutines::generator_resume_suspend())
            .peer("swapcontext", swapcontext::resume_suspend()),
        Work::CreateRunEnd => Contest::new(work.name(), work.unit(), create_run_end)
            .peer("corosensei, kept stack", coroutines::corosensei_create_run_end())
            .peer("generator, kept stack", coroutines::generator_create_run_end())
            .peer("swapcontext, kept stack", swapcontext::create_run_end()),
        _ => Contest::new(work.name(), work.unit(), nesting)
            .peer("corosensei, kept stacks", coroutines::corosensei_nesting(DEPTH)),
    }
}

fn resume_suspend() -> impl FnMut(u64) -> io::Result<Lap> {
    let coroutine = Coroutine::new("bench", |suspender| {
        loop {
            suspender.suspend();
        }
    });
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                coroutine.resume();
            }
        }))
    }
}

fn create_run_end(ops: u64) -> io::Result<Lap> {
    Ok(lap(ops, || {
        for _ in 0..ops {
            Coroutine::new("bench", |_| ()).resume();
        }
    }))
}

fn nesting(ops: u64) -> io::Result<Lap> {
    fn nest(depth: u64) {
        if depth > 0 {
            Coroutine::new("bench", move |_| nest(depth - 1)).resume();
        }
    }
    let passes = ops.div_ceil(DEPTH);
    Ok(lap(passes * DEPTH, || (0..passes).for_each(|_| nest(DEPTH))))
}
