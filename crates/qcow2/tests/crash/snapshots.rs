//! Snapshots are made, applied and deleted while requests go on, and the power is lost at any moment.
//!
//! # What holds
//!
//! * A snapshot has what a read of all of the disk might have shown, at one moment between the begin of the command and
//!   its answer, the same moment everywhere. From the answer on it is there after a crash, with exactly these bytes,
//!   until it is deleted; and from the answer of that on it is not.
//! * Applying one is as a durable write of all of the disk that happens at one moment between the begin of the command
//!   and its answer, the same moment everywhere. So a crash before the answer leaves the disk as it was without the
//!   command, or as it is after that moment; never some of both. A crash after the answer leaves what the snapshot has,
//!   or what was written since that moment; and the latter alone, once it was flushed.
//! * No cluster is referred to more often than it is counted. Flags may be wrong: in version 2, which has nothing that
//!   says so, and where the dirty bit says it. A repair leaves a clean image, and all content as it was.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, AioHandle, Co, IoThread};
use coblk_block::{BackendOptions, BlockNode, Repair};
use coblk_tests::load::{Mix, Shared};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, SECTOR, Survivors};
use coblk_tests::register::{Change, Print, Registers, print_of};
use coblk_tests::survey::{Subject, Survey, in_memory, read_all};

use crate::simulated;
use crate::util::shape::{Format, SHAPES, Shape};

const SURVEY: Survey = Survey { moments: 1, single: 1, random: 1, leaks: 400, further: 40 };
/// Longest time between two commands.
const PAUSE_NS: u64 = 1_500_000;

/// A snapshot, and when commands about it began and were answered.
struct Snapshot {
    id: String,
    content: Vec<Print>,
    made: (u64, u64),
    deleted: Option<(u64, u64)>,
}

impl Snapshot {
    /// Whether it is there after a crash at `moment`, if that is certain.
    fn is_there(&self, moment: u64) -> Option<bool> {
        let (begun, answered) = self.made;
        match self.deleted {
            _ if moment < begun => Some(false),
            _ if moment < answered => None,
            Some((_, answered)) if moment >= answered => Some(false),
            Some((begun, _)) if moment >= begun => None,
            _ => Some(true),
        }
    }
}

/// How often each command was given.
#[derive(Debug, Default)]
struct Counts {
    made: u64,
    applied: u64,
    deleted: u64,
    images: u64,
}

/// An image that has requests and commands.
struct Run<'a> {
    ctx: &'a AioContext,
    /// For reads of other images.
    reader: AioContext,
    shape: Shape,
    recorder: Recorder,
    shared: Arc<Shared>,
    node: Option<Arc<BlockNode>>,
    random: Random,
    snapshots: Vec<Snapshot>,
    applied: Vec<Change>,
}

fn prints(content: &[u8]) -> Vec<Print> {
    content.chunks(SECTOR).map(print_of).collect()
}

impl Run<'_> {
    /// Gives a command, and returns when it began and was answered.
    fn command(
        &self,
        what: impl FnOnce(&Co<'_>, &BlockNode) -> std::io::Result<()> + 'static,
    ) -> Result<(u64, u64), String> {
        let done = Rc::new(Cell::new(None));
        let node = Arc::clone(self.node.as_ref().expect("an open image"));
        let answer = Rc::clone(&done);
        let begun = self.recorder.tick();
        self.ctx.spawn("command", move |co| answer.set(Some(what(co, &node))));
        let mut result = None;
        self.ctx.run_until(|| {
            result = result.take().or_else(|| done.take());
            result.is_some()
        });
        result.expect("an answer").map_err(|error| format!("a command at {begun}: {error}"))?;
        Ok((begun, self.recorder.tick()))
    }

    /// Has requests go on for a time.
    fn pause(&mut self) {
        let pause = Duration::from_nanos(self.random.below(PAUSE_NS));
        self.ctx.run(|co| co.sleep(pause));
    }

    fn create(&mut self) -> Result<(), String> {
        let id = Rc::new(Cell::new(String::new()));
        let is_id = Rc::clone(&id);
        let made = self.command(move |co, node| {
            is_id.set(node.co_image(co)?.co_create_snapshot(co, "beside requests")?);
            Ok(())
        })?;
        let id = id.take();
        // The power is lost as the answer comes.
        let files = in_memory(self.recorder.crash_at(made.1).files(&mut Survivors::None));
        let format = Format::of_snapshot(self.shape, &id);
        let content = prints(&read_all(&format, &self.reader, &files)?);
        let once = self.shared.registers().check_read_at_once(&content, made.0..made.1);
        once.map_err(|fault| format!("snapshot {id}: {fault}"))?;
        self.snapshots.push(Snapshot { id, content, made, deleted: None });
        Ok(())
    }

    /// One of the snapshots that are there.
    fn any(&mut self) -> usize {
        let there: Vec<usize> =
            (0..).zip(&self.snapshots).filter(|it| it.1.deleted.is_none()).map(|it| it.0).collect();
        there[self.random.below(there.len() as u64) as usize]
    }

    fn apply(&mut self) -> Result<(), String> {
        let at = self.any();
        let Snapshot { id, content, .. } = &self.snapshots[at];
        let mut registers = self.shared.registers();
        let change = registers.begin(0, content, self.recorder.tick(), false);
        drop(registers);
        let id = id.clone();
        let answer = self.command(move |co, node| node.co_image(co)?.co_apply_snapshot(co, &id));
        let ended = answer.as_ref().map_or_else(|_| self.recorder.tick(), |it| it.1);
        self.shared.registers().end(&change, ended, true, answer.is_err());
        self.applied.push(change);
        answer.map(drop)
    }

    fn delete(&mut self) -> Result<(), String> {
        let at = self.any();
        let id = self.snapshots[at].id.clone();
        let deleted =
            self.command(move |co, node| node.co_image(co)?.co_delete_snapshot(co, &id))?;
        self.snapshots[at].deleted = Some(deleted);
        Ok(())
    }

    /// Commands beside each other's requests, each kind at least once.
    fn commands(&mut self, counts: &mut Counts) -> Result<(), String> {
        for must in ["create", "", "apply", "", "", "apply", "delete"] {
            self.pause();
            let alive = self.snapshots.iter().filter(|it| it.deleted.is_none()).count();
            let drawn = match (alive, self.random.below(4)) {
                (0, _) | (1, 0) => "create",
                (2.., 0) => "delete",
                _ => "apply",
            };
            match if must.is_empty() || alive == 0 { drawn } else { must } {
                "create" => (counts.made, _) = (counts.made + 1, self.create()?),
                "apply" => (counts.applied, _) = (counts.applied + 1, self.apply()?),
                _ => (counts.deleted, _) = (counts.deleted + 1, self.delete()?),
            }
            if let Some(fault) = self.shared.fault() {
                return Err(fault);
            }
        }
        self.pause();
        Ok(())
    }

    /// What the disk and the snapshots have, if that may be so after a crash at `moment`.
    fn content(
        &self,
        format: &Format,
        files: &[RecordedFile],
        moment: u64,
    ) -> Result<Vec<Vec<Print>>, String> {
        let disk = prints(&read_all(format, &self.reader, files)?);
        let registers = self.shared.registers();
        for (at, print) in disk.iter().enumerate() {
            registers.check_crash(at, *print, moment)?;
        }
        for change in &self.applied {
            let (begun, _) = registers.times(change);
            if begun <= moment {
                let instant = registers.check_instant(&disk, change, moment);
                instant.map_err(|fault| format!("a snapshot applied at {begun}: {fault}"))?;
            }
        }
        drop(registers);
        let node = format.open(&self.reader, files, true)?;
        let found = self.reader.run(|co| node.co_image(co)?.co_snapshots(co));
        format.close(&self.reader, node)?;
        let found = found.map_err(|error| error.to_string())?;
        if let Some(other) = found.iter().find(|it| !self.snapshots.iter().any(|s| s.id == it.id)) {
            return Err(format!("snapshot {} was never made", other.id));
        }
        let mut all = vec![disk];
        for snapshot in &self.snapshots {
            // Ids are used again.
            let is_found = found.iter().any(|it| it.id == snapshot.id);
            let is_there = snapshot.is_there(moment);
            let is_other = |it: &&Snapshot| it.id == snapshot.id && it.made != snapshot.made;
            let mut others = self.snapshots.iter().filter(is_other);
            match is_there {
                Some(false) if !is_found || others.any(|it| it.is_there(moment) != Some(false)) => {
                }
                None if !is_found => {}
                Some(false) => return Err(format!("snapshot {} is there", snapshot.id)),
                Some(true) if !is_found => return Err(format!("snapshot {} is lost", snapshot.id)),
                _ => {
                    let format = Format::of_snapshot(self.shape, &snapshot.id);
                    let content = prints(&read_all(&format, &self.reader, files)?);
                    if content != snapshot.content {
                        return Err(format!("snapshot {} has other bytes", snapshot.id));
                    }
                    all.push(content);
                }
            }
        }
        Ok(all)
    }

    /// Judges what a loss of power has left.
    fn judge(&self, images: Vec<Vec<u8>>, moment: u64, is_further: bool) -> Result<(), String> {
        let format = Format::new(self.shape);
        // In version 2 other programs find the flags.
        let further = (is_further && images[0][7] > 2).then(|| images.clone());
        let files = in_memory(images);
        let check = format.check_with(&self.reader, &files, Repair::None)?;
        let image = files[0].content();
        let is_marked = image[7] == 2 || image[79] & 1 != 0;
        if check.report.corruptions + check.report.check_errors > 0 && !is_marked {
            return Err(format!("corrupt, and not marked so: {:?}", check.findings));
        }
        // A run of clusters that are counted ahead is in one block, and 16 MiB at most.
        let cluster = (self.shape.cluster * SECTOR) as u64;
        if check.report.leaks > SURVEY.leaks + (cluster / 2).min((16 << 20) / cluster) {
            return Err(format!("{} clusters leak", check.report.leaks));
        }
        let is_uncounted = |it: &&String| it.contains("references") && !it.contains("leaks");
        if let Some(fault) = check.findings.iter().find(is_uncounted) {
            return Err(fault.clone());
        }
        let content = self.content(&format, &files, moment)?;
        format.check_with(&self.reader, &files, Repair::All)?;
        format.expect_clean(&self.reader, &files, "a repair")?;
        if self.content(&format, &files, moment)? != content {
            return Err("a repair changes what is read".to_owned());
        }
        further.map_or(Ok(()), |images| format.check_further(&self.reader, &images))
    }
}

fn run(
    ctx: &AioContext,
    shape: Shape,
    seed: u64,
    others: &[&AioHandle],
    counts: &mut Counts,
) -> Result<(), String> {
    let format = Format::new(shape);
    let images = shape.create(seed);
    let behaviour = Behaviour { seed, has_fua: seed.is_multiple_of(3), ..Behaviour::default() };
    let recorder = Recorder::new(behaviour);
    let registers = Registers::new(&shape.content(&images));
    let files: Vec<RecordedFile> =
        images.into_iter().map(|image| recorder.add_file(image)).collect();
    let node = format.open(ctx, &files, false)?;
    let mix = match seed / 3 % 2 {
        0 => Mix::all(shape.cluster),
        _ => Mix { coroutines: 4, ..Mix::churn(shape.cluster) },
    };
    let mix = Mix { requests: u64::MAX, ..mix };
    let shared = Shared::new(ctx, &recorder, registers, seed, mix);
    let mut run = Run {
        ctx,
        reader: AioContext::for_test().map_err(|error| error.to_string())?,
        shape,
        recorder,
        shared: Arc::clone(&shared),
        node: Some(Arc::clone(&node)),
        random: Random::new(seed),
        snapshots: Vec::new(),
        applied: Vec::new(),
    };
    let claim = BackendOptions::new("claim").share_rw(true).open(ctx, Arc::clone(&node));
    let claim = claim.expect("a node that may be written");
    shared.begin(ctx, &node, others);
    let commands = run.commands(counts);
    shared.stop();
    shared.wait(ctx, others);
    drop((claim, run.node.take()));
    let close = format.close(ctx, node);
    shared.fault().map_or(commands, Err)?;
    close?;
    let now = run.recorder.tick();
    format.expect_clean(&run.reader, &files, "a close")?;
    run.content(&format, &files, now)?;
    let mut random = Random::new(seed);
    let commands = run.snapshots.iter().flat_map(|it| [Some(it.made), it.deleted]).flatten();
    let applied = run.applied.iter().map(|it| run.shared.registers().times(it));
    let applied = applied.map(|(begun, ended)| (begun, ended.unwrap_or(now)));
    let mut commands: Vec<(u64, u64)> = commands.chain(applied).collect();
    commands.sort_unstable();
    // As each goes on, and what comes after the last one.
    commands.push((commands[commands.len() - 1].1, now));
    for (begun, ended) in commands {
        for _ in 0..SURVEY.moments {
            let moment = begun + random.below(ended + 1 - begun);
            let recorder = &run.recorder;
            SURVEY.each_at(recorder, moment, &mut random, &mut |images, moment| {
                counts.images += 1;
                run.judge(images, moment, counts.images.is_multiple_of(SURVEY.further))
            })?;
        }
    }
    Ok(())
}

/// Each seed is of another shape.
#[test]
fn q154_q216_snapshots_are_applied_beside_requests_and_crashes() {
    let can_have = |shape: &Shape| !shape.has_data_file && !shape.options.ends_with("bits=1");
    let shapes: Vec<Shape> = SHAPES.into_iter().filter(can_have).collect();
    let mut counts = Counts::default();
    for seed in seeds(2) {
        let shape = shapes[(seed * 5 % shapes.len() as u64) as usize];
        let run = run(&simulated(seed), shape, seed, &[], &mut counts);
        run.unwrap_or_else(|fault| panic!("{shape:?}, seed {seed}: {fault}"));
    }
    println!("{counts:?}");
    assert!(counts.made > 0 && counts.applied > 0 && counts.deleted > 0 && counts.images > 0);
}

/// The same, with requests of two contexts.
#[test]
fn q154_q177_snapshots_are_applied_beside_requests_of_two_contexts() {
    let mut counts = Counts::default();
    let other = IoThread::new("other").expect("a thread");
    for seed in seeds(1) {
        let shape = [SHAPES[3], SHAPES[9], SHAPES[0]][seed as usize % 3];
        let ctx = AioContext::for_test().expect("a context");
        let run = run(&ctx, shape, seed, &[other.handle()], &mut counts);
        run.unwrap_or_else(|fault| panic!("{shape:?}, seed {seed}: {fault}"));
    }
    println!("{counts:?}");
}
