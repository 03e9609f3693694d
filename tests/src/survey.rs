//! [`Survey`]: looks at what a loss of power may leave of an image, at many moments.

use std::sync::Arc;

use coblk::{AioContext, BlockBackend, BlockNode};

use crate::load::Shared;
use crate::random::Random;
use crate::recorded::{Behaviour, RecordedFile, Recorder, SECTOR, Survivors};
use crate::register::print_of;

/// An image format under test.
pub trait Subject {
    /// Opens an image on its files.
    ///
    /// # Errors
    /// Says why it cannot be opened.
    fn open(
        &self,
        ctx: &AioContext,
        files: &[RecordedFile],
        read_only: bool,
    ) -> Result<Arc<BlockNode>, String>;

    /// Closes a node that has no users any more.
    ///
    /// # Errors
    /// Says why it cannot be closed.
    fn close(&self, ctx: &AioContext, node: Arc<BlockNode>) -> Result<(), String>;

    /// Checks the tables of an image. Returns the number of clusters that leak.
    ///
    /// # Errors
    /// Says what is corrupt.
    fn check(&self, ctx: &AioContext, files: &[RecordedFile]) -> Result<u64, String>;

    /// Looks at an image by other means; called for a few of them.
    ///
    /// # Errors
    /// Says what is wrong.
    fn check_further(&self, _ctx: &AioContext, _files: &[Vec<u8>]) -> Result<(), String> {
        Ok(())
    }
}

/// How many images are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    /// Most moments; all of them if there are not more.
    pub moments: u64,
    /// At each of them: most requests that survive, or are lost, alone.
    pub single: u64,
    /// At each: random choices of requests, and as many of sectors.
    pub random: u64,
    /// Most clusters that leak after a crash.
    pub leaks: u64,
    /// Of how many images one is looked at further.
    pub further: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Images.
    pub images: u64,
    /// Those that were looked at further.
    pub further: u64,
    /// Most clusters that leaked.
    pub leaks: u64,
}

impl Survey {
    /// All that happened since moment `from` is looked at.
    ///
    /// # Errors
    /// Says at which moment which image is wrong, and what is wrong with it.
    pub fn run(
        &self,
        subject: &dyn Subject,
        (recorder, shared): (&Recorder, &Shared),
        from: u64,
        random: &mut Random,
    ) -> Result<Seen, String> {
        let ctx = AioContext::for_test().map_err(|error| error.to_string())?;
        let mut seen = Seen::default();
        self.each(recorder, from, random, &mut |images, moment| {
            self.judge(subject, &ctx, shared, images, moment, &mut seen)
        })?;
        Ok(seen)
    }

    /// Has each image judged, with the moment of the loss of power that left it.
    ///
    /// # Errors
    /// Those of `judge`, with what the image is.
    pub fn each(
        &self,
        recorder: &Recorder,
        from: u64,
        random: &mut Random,
        judge: &mut dyn FnMut(Vec<Vec<u8>>, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        let all = recorder.now() + 1 - from;
        let moments = (0..all.min(self.moments)).map(|number| match all <= self.moments {
            true => from + number,
            false => from + random.below(all),
        });
        for moment in moments.collect::<Vec<_>>() {
            self.each_at(recorder, moment, random, judge)?;
        }
        Ok(())
    }

    /// The same at one moment.
    ///
    /// # Errors
    /// Those of `judge`, with what the image is.
    pub fn each_at(
        &self,
        recorder: &Recorder,
        moment: u64,
        random: &mut Random,
        judge: &mut dyn FnMut(Vec<Vec<u8>>, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        let point = recorder.crash_at(moment);
        let unsettled = point.unsettled();
        let mut judge = |mut survivors: Survivors<'_>, what: &str| {
            judge(point.files(&mut survivors), moment).map_err(|fault| {
                let words = unsettled.iter().map(|it| format!("\n  {}", point.describe(*it)));
                let words: String = words.collect();
                format!("a crash at {moment}, {what}: {fault}\nunsettled:{words}")
            })
        };
        judge(Survivors::None, "what is durable")?;
        judge(Survivors::All, "all")?;
        let single = (unsettled.len() as u64).min(self.single);
        for number in 0..single {
            let request = match unsettled.len() as u64 <= self.single {
                true => unsettled[number as usize],
                false => unsettled[random.below(unsettled.len() as u64) as usize],
            };
            judge(Survivors::Only(request), &format!("only {request}"))?;
            judge(Survivors::AllBut(request), &format!("all but {request}"))?;
        }
        for _ in 0..if unsettled.len() > 1 { self.random } else { 0 } {
            judge(Survivors::Some(random), "some requests")?;
            judge(Survivors::Torn(random), "some sectors")?;
        }
        Ok(())
    }

    fn judge(
        &self,
        subject: &dyn Subject,
        ctx: &AioContext,
        shared: &Shared,
        images: Vec<Vec<u8>>,
        moment: u64,
        seen: &mut Seen,
    ) -> Result<(), String> {
        seen.images += 1;
        let further = seen.images.is_multiple_of(self.further).then(|| images.clone());
        let files = in_memory(images);
        let leaks = subject.check(ctx, &files)?;
        seen.leaks = seen.leaks.max(leaks);
        if leaks > self.leaks {
            return Err(format!("{leaks} clusters leak"));
        }
        let content = read_all(subject, ctx, &files)?;
        let registers = shared.registers();
        for (at, sector) in content.chunks(SECTOR).enumerate() {
            registers.check_crash(at, print_of(sector), moment)?;
        }
        if let Some(images) = further {
            seen.further += 1;
            subject.check_further(ctx, &images)?;
        }
        Ok(())
    }
}

/// Files that are as fast as memory.
pub fn in_memory(images: Vec<Vec<u8>>) -> Vec<RecordedFile> {
    let recorder = Recorder::new(Behaviour { max_delay: Default::default(), ..Default::default() });
    images.into_iter().map(|image| recorder.add_file(image)).collect()
}

/// All that a guest reads.
///
/// # Errors
/// Says why it cannot be read.
pub fn read_all(
    subject: &dyn Subject,
    ctx: &AioContext,
    files: &[RecordedFile],
) -> Result<Vec<u8>, String> {
    let node = subject.open(ctx, files, true).map_err(|error| format!("opening: {error}"))?;
    let backend = BlockBackend::read_only(ctx, "reader", Arc::clone(&node));
    let mut content = vec![0xee; node.length() as usize];
    let result = ctx.run(|co| backend.co_read(co, 0, &mut content));
    drop(backend);
    subject.close(ctx, node)?;
    result.map_err(|error| format!("reading: {error}"))?;
    Ok(content)
}
