//! Files in memory that record all that happens to them, on one clock: what a loss of power may leave
//! at any moment follows from the record.
//!
//! * here: [`Recorder`], the storage of one machine, and [`RecordedFile`], one file of it;
//! * `record`: what is recorded;
//! * `disturb`: requests that fail, or are held;
//! * `power_loss`: images that a loss of power may leave.
//!
//! A request takes a time that is drawn from the recorder's seed, and has its effect at some moment
//! within. In a simulated context one seed is one run.

mod disturb;
mod power_loss;
mod record;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coblk::block::{ReadFlags, Truncate};
use coblk::{BlockDriver, BlockLimits, Co, CoWaker, IoVector, IoVectorMut, WriteFlags, ZeroFlags};

pub use disturb::{Disturbance, Kind, Moment};
pub use power_loss::{CrashPoint, Survivors};
pub use record::{Action, Record, SECTOR};

use crate::random::Random;
use disturb::{Disturbances, Verdict};

/// The storage of one machine: files, and the record of all of them. A handle: clones are the same.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Mutex<State>>,
}

/// How a machine's storage behaves.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// From which delays are drawn.
    pub seed: u64,
    /// Longest time that a request usually waits before it has its effect, and again after it.
    pub max_delay: Duration,
    /// Offsets and lengths of requests are multiples of this.
    pub alignment: u32,
    /// Whether writes with FUA are durable by themselves, or need a flush.
    pub has_fua: bool,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        let max_delay = Duration::from_micros(100);
        Behaviour { seed: 0, max_delay, alignment: 1, has_fua: false }
    }
}

struct State {
    behaviour: Behaviour,
    random: Random,
    /// Events up to now: requests that began, had their effect, or ended.
    now: u64,
    /// How many of `now` were events of files.
    records: Vec<Record>,
    files: Vec<FileState>,
    disturbances: Disturbances,
    held: Vec<CoWaker>,
}

struct FileState {
    at_first: Vec<u8>,
    content: Vec<u8>,
}

impl Recorder {
    /// A machine without files.
    pub fn new(behaviour: Behaviour) -> Recorder {
        let state = State {
            behaviour,
            random: Random::new(behaviour.seed),
            now: 1,
            records: Vec::new(),
            files: Vec::new(),
            disturbances: Disturbances::default(),
            held: Vec::new(),
        };
        Recorder { shared: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new file with this content, which is durable.
    pub fn add_file(&self, content: Vec<u8>) -> RecordedFile {
        let mut state = self.state();
        state.files.push(FileState { at_first: content.clone(), content });
        RecordedFile { recorder: self.clone(), number: state.files.len() - 1 }
    }

    /// The moment that comes now. Each call is a moment of its own.
    pub fn tick(&self) -> u64 {
        self.state().tick()
    }

    /// The last moment.
    pub fn now(&self) -> u64 {
        self.state().now
    }

    /// How many requests have been recorded.
    pub fn count_records(&self) -> usize {
        self.state().records.len()
    }

    /// What each file holds now, as a killed process leaves it.
    pub fn contents(&self) -> Vec<Vec<u8>> {
        self.state().files.iter().map(|file| file.content.clone()).collect()
    }

    /// All that was recorded, and what each file held at first.
    pub fn history(&self) -> (Vec<Record>, Vec<Vec<u8>>) {
        let state = self.state();
        let at_first = state.files.iter().map(|file| file.at_first.clone()).collect();
        (state.records.clone(), at_first)
    }

    /// Has requests fail or wait from now on.
    pub fn disturb(&self, disturbance: Disturbance) {
        self.state().disturbances.add(disturbance);
    }

    /// Ends all disturbances; requests that are held stay so.
    pub fn calm(&self) {
        self.state().disturbances = Disturbances::default();
    }

    /// How many requests are held.
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    /// How many requests a disturbance has met.
    pub fn disturbed(&self) -> u64 {
        self.state().disturbances.met()
    }

    /// Lets all requests that are held go on.
    pub fn release(&self) {
        let held = std::mem::take(&mut self.state().held);
        held.into_iter().for_each(CoWaker::wake);
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn draw_delay(&mut self) -> Duration {
        let most = self.behaviour.max_delay.as_nanos() as u64;
        if most == 0 {
            return Duration::ZERO;
        }
        // Now and then one takes as long as many others, and seldom as long as all that others do.
        let factor = match self.random.below(60) {
            0 => 150,
            1..6 => 20,
            _ => 1,
        };
        Duration::from_nanos(self.random.below(most) * factor)
    }

    /// Enters the effect of a request.
    fn apply(&mut self, index: usize) {
        let now = self.tick();
        let record = &mut self.records[index];
        record.applied = Some(now);
        record.action.apply_to(&mut self.files[record.file].content);
    }
}

/// A file. A handle: clones are the same.
#[derive(Clone)]
pub struct RecordedFile {
    recorder: Recorder,
    number: usize,
}

impl RecordedFile {
    /// What it holds now.
    pub fn content(&self) -> Vec<u8> {
        self.recorder.state().files[self.number].content.clone()
    }

    fn wait(&self, co: &Co<'_>) {
        let delay = self.recorder.state().draw_delay();
        if !delay.is_zero() {
            co.sleep(delay);
        }
    }

    /// Holds the request if it is to be held at this moment.
    fn hold(&self, co: &Co<'_>, verdict: Verdict, moment: Moment) {
        if verdict.hold == Some(moment) {
            co.suspend_for("a test", |waker| self.recorder.state().held.push(waker));
        }
    }

    /// A request that changes something, or makes it durable.
    fn request(&self, co: &Co<'_>, action: Action) -> io::Result<()> {
        let (index, verdict) = {
            let mut state = self.recorder.state();
            let verdict = state.disturbances.judge(action.kind());
            let begun = state.tick();
            state.records.push(Record::new(self.number, action, begun));
            (state.records.len() - 1, verdict)
        };
        self.hold(co, verdict, Moment::Before);
        self.wait(co);
        if let Some(errno) = verdict.errno {
            let mut state = self.recorder.state();
            // A part of it may have happened.
            let part = verdict.part.map(|part| state.random.below(part) as usize * SECTOR);
            let record = &mut state.records[index];
            record.failed = true;
            record.action.cut(part.unwrap_or(0));
            state.apply(index);
            let ended = state.tick();
            state.records[index].ended = Some(ended);
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.recorder.state().apply(index);
        self.hold(co, verdict, Moment::After);
        self.wait(co);
        let mut state = self.recorder.state();
        let ended = state.tick();
        state.records[index].ended = Some(ended);
        Ok(())
    }
}

impl BlockDriver for RecordedFile {
    fn format_name(&self) -> &'static str {
        "recorded"
    }

    fn length(&self) -> u64 {
        self.recorder.state().files[self.number].content.len() as u64
    }

    fn limits(&self) -> BlockLimits {
        let Behaviour { alignment, has_fua, .. } = self.recorder.state().behaviour;
        let write_flags = if has_fua { WriteFlags::FUA } else { WriteFlags::empty() };
        BlockLimits { request_alignment: alignment, write_flags, ..BlockLimits::default() }
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        let verdict = self.recorder.state().disturbances.judge(disturb::Kind::Read);
        self.hold(co, verdict, Moment::Before);
        self.wait(co);
        if let Some(errno) = verdict.errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut data = vec![0; target.len()];
        {
            // The last block may end beyond the end of the file.
            let state = self.recorder.state();
            let content = &state.files[self.number].content;
            let start = content.len().min(offset as usize);
            let end = content.len().min(offset as usize + data.len());
            data[..end - start].copy_from_slice(&content[start..end]);
        }
        target.copy_from(0, &data);
        self.hold(co, verdict, Moment::After);
        self.wait(co);
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let mut data = vec![0; source.len()];
        source.copy_to(0, &mut data);
        // What ends beyond the end of the file is padding.
        data.truncate((self.length() - offset) as usize);
        let durable = flags.contains(WriteFlags::FUA);
        self.request(co, Action::Write { offset, data: data.into(), durable })
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.request(co, Action::Flush)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let bytes = bytes.min(self.length() - offset);
        let durable = flags.contains(ZeroFlags::FUA);
        self.request(co, Action::Write { offset, data: vec![0; bytes as usize].into(), durable })
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let bytes = bytes.min(self.length() - offset);
        self.request(co, Action::Discard { offset, bytes })
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, _how: Truncate) -> io::Result<()> {
        self.request(co, Action::Truncate { length })
    }
}
