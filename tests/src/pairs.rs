//! [`Pair`]: two requests, the first of which is held at each of its suspension points while the second
//! runs.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk::aio::SimulationOptions;
use coblk::{AioContext, BlockNode};

use crate::load::{Kind, Load, Mix, Shared};
use crate::random::Random;
use crate::recorded::{Behaviour, Disturbance, Moment, RecordedFile, Recorder, SECTOR};
use crate::register::{Registers, print_of};
use crate::survey::{Subject, Survey, read_all};

/// A request to sectors.
pub type Request = (Kind, Range<usize>);

/// Two requests, and what surrounds them.
pub struct Pair<'a> {
    /// The files of an image.
    pub images: &'a [Vec<u8>],
    /// What the guest reads of it at first.
    pub content: &'a [u8],
    /// Sectors of a cluster.
    pub cluster: usize,
    /// Done before.
    pub before: &'a [Request],
    /// This one is held.
    pub first: Request,
    /// It runs meanwhile, as far as it comes.
    pub second: Request,
    /// These run then, one after the other: they use what space there is.
    pub others: &'a [Request],
    /// What a loss of power may leave is looked at, after the requests before.
    pub survey: Option<Survey>,
}

/// In simulated time: as long as requests may wait for one that is held.
const PATIENCE: Duration = Duration::from_millis(100);
/// As long as all may take.
const ALL: Duration = Duration::from_secs(10);

impl Pair<'_> {
    /// Holds the first request at each of its points. Returns how many there are.
    ///
    /// # Errors
    /// Says at which point what went wrong.
    pub fn run(&self, subject: &dyn Subject, seed: u64) -> Result<u64, String> {
        for point in 0.. {
            let moment = if point % 2 == 0 { Moment::Before } else { Moment::After };
            let is_met = self
                .hold(subject, seed, Disturbance::hold(moment, point / 2))
                .map_err(|fault| format!("held {moment:?} its effect at {}: {fault}", point / 2))?;
            if !is_met {
                return Ok(point);
            }
        }
        Ok(0)
    }

    /// One run. Returns whether the first request came to that point.
    fn hold(&self, subject: &dyn Subject, seed: u64, hold: Disturbance) -> Result<bool, String> {
        let options = SimulationOptions::new(seed);
        let ctx = AioContext::test_builder().simulated(options).build().expect("a context");
        let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
        let files: Vec<RecordedFile> =
            self.images.iter().map(|image| recorder.add_file(image.clone())).collect();
        let node = subject.open(&ctx, &files, false)?;
        let mix = Mix::all(self.cluster);
        let registers = Registers::new(self.content);
        let shared = Shared::new(&ctx, &recorder, registers, seed, mix);
        let from;
        let is_met;
        {
            let stage = Stage { ctx: &ctx, recorder: &recorder, node: &node, shared: &shared };
            stage.wait(&stage.start(self.before.to_vec()), ALL)?;
            from = recorder.now();
            recorder.disturb(hold);
            let first = stage.start(vec![self.first.clone()]);
            ctx.run(|co| {
                while !first.get() && recorder.held() == 0 {
                    co.sleep(Duration::from_micros(10));
                }
            });
            is_met = recorder.held() > 0;
            recorder.calm();
            let second = stage.start(vec![self.second.clone()]);
            let _ = stage.wait(&second, PATIENCE);
            let others = stage.start(self.others.to_vec());
            let _ = stage.wait(&others, PATIENCE);
            recorder.release();
            for all in [first, second, others] {
                stage.wait(&all, ALL)?;
            }
            stage.wait(&stage.start(vec![(Kind::Flush, 0..0)]), ALL)?;
        }
        self.judge(subject, (&ctx, &recorder, &shared), (node, &files), from)?;
        Ok(is_met)
    }

    fn judge(
        &self,
        subject: &dyn Subject,
        (ctx, recorder, shared): (&AioContext, &Recorder, &Shared),
        (node, files): (Arc<BlockNode>, &[RecordedFile]),
        from: u64,
    ) -> Result<(), String> {
        if let Some(fault) = shared.fault() {
            return Err(fault);
        }
        subject.close(ctx, node)?;
        match subject.check(ctx, files)? {
            0 => {}
            leaks => return Err(format!("{leaks} clusters leak")),
        }
        let now = recorder.tick();
        for (at, sector) in read_all(subject, ctx, files)?.chunks(SECTOR).enumerate() {
            shared.registers().check_read(at, print_of(sector), now, now)?;
        }
        if let Some(survey) = self.survey {
            survey.run(subject, (recorder, shared), from, &mut Random::new(from))?;
        }
        Ok(())
    }
}

struct Stage<'a> {
    ctx: &'a AioContext,
    recorder: &'a Recorder,
    node: &'a Arc<BlockNode>,
    shared: &'a Arc<Shared>,
}

impl Stage<'_> {
    /// Requests, one after the other, in a coroutine of their own. Returns whether they are done.
    fn start(&self, requests: Vec<Request>) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let (load, is_done) = (Load::new(self.ctx, self.node, self.shared), Rc::clone(&done));
        self.ctx.spawn("pair", move |co| {
            for (kind, range) in requests {
                load.request(co, kind, range);
            }
            drop(load);
            is_done.set(true);
        });
        done
    }

    /// Waits until they are done.
    fn wait(&self, done: &Cell<bool>, most: Duration) -> Result<(), String> {
        let give_up = self.ctx.now_ns() + most.as_nanos() as i64;
        self.ctx.run(|co| {
            while !done.get() && self.ctx.now_ns() < give_up {
                co.sleep(Duration::from_micros(20));
            }
        });
        match done.get() {
            true => Ok(()),
            false => Err(format!("a request hangs; {} are held", self.recorder.held())),
        }
    }
}
