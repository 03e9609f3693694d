//! What a crash would leave of a sidecar, at each instant of a run that is drawn from a seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut, SimulationOptions};
use fastrand::Rng;

use super::driver::WithSidecar;
use super::format::REGION_SHIFT;
use super::sidecar::Sidecar;
use super::store::{ReplaceError, Store};
use crate::bitmap::{DirtyBitmap, NewBitmap};
use crate::driver::BlockDriver;
use crate::driver::flags::{ReadFlags, WriteFlags};

const GRANULE: u64 = 1 << 20;
const REGION: u64 = 1 << REGION_SHIFT;
const LENGTH: u64 = 8 * REGION;
/// Simulated; workers have their turns when nothing else is to be done.
const TURN: Duration = Duration::from_micros(10);

/// A file in memory, and all that a crash may leave of it now.
#[derive(Default)]
struct Memory {
    file: Mutex<Option<Vec<u8>>>,
    left: Mutex<Vec<Option<Vec<u8>>>>,
    /// One operation in so many fails; 0 for none.
    failures: Mutex<(u32, Rng)>,
}

impl Memory {
    fn fails(&self) -> bool {
        let mut failures = self.failures.lock().unwrap();
        let one_in = failures.0;
        one_in > 0 && failures.1.u32(0..one_in) == 0
    }

    fn is_left(&self, file: Option<Vec<u8>>) {
        *self.left.lock().unwrap() = vec![file.clone()];
        *self.file.lock().unwrap() = file;
    }

    fn may_be_left(&self, file: &[u8]) {
        self.left.lock().unwrap().push(Some(file.to_vec()));
    }
}

/// A handle.
#[derive(Clone, Default)]
struct Shared(Arc<Memory>);

impl Store for Shared {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.file.lock().unwrap().clone())
    }

    fn replace(&self, bytes: &[u8]) -> Result<(), ReplaceError> {
        let error = io::Error::from_raw_os_error(libc::EIO);
        if self.0.fails() {
            return Err(ReplaceError { error, may_be_replaced: false });
        }
        if self.0.fails() {
            // The name is that of the new file, and a crash may leave the old one.
            self.0.may_be_left(bytes);
            *self.0.file.lock().unwrap() = Some(bytes.to_vec());
            return Err(ReplaceError { error, may_be_replaced: true });
        }
        self.0.is_left(Some(bytes.to_vec()));
        Ok(())
    }

    fn append(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut new = self.0.file.lock().unwrap().clone().unwrap();
        let at = offset as usize;
        let torn = bytes.len() / 2;
        new[at..at + torn].copy_from_slice(&bytes[..torn]);
        let fails = self.0.fails();
        if fails {
            self.0.may_be_left(&new);
        }
        new[at..at + bytes.len()].copy_from_slice(bytes);
        if fails {
            self.0.may_be_left(&new);
            *self.0.file.lock().unwrap() = Some(new);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.is_left(Some(new));
        Ok(())
    }

    fn give_back(&self) {}
}

/// What is known of a bitmap: whether it records, and what was written since it was cleared.
type Known = BTreeMap<String, (bool, BTreeSet<u64>)>;

/// A run, of which the disk is a part.
struct Run {
    memory: Shared,
    known: RefCell<Known>,
    random: RefCell<Rng>,
}

impl Run {
    /// Whatever a crash leaves now, each bitmap has what was written.
    fn co_check(&self, co: &Co<'_>) {
        // Of one instant: the file is read in a worker's turns.
        let left = self.memory.0.left.lock().unwrap().clone();
        let known = self.known.borrow().clone();
        for file in left {
            let store = Shared::default();
            store.0.is_left(file);
            let sidecar = Sidecar::new(Box::new(store)).unwrap();
            sidecar.co_load(co, LENGTH, None, false).unwrap();
            for (name, (_, written)) in &known {
                let bitmap = sidecar.set.find(name).unwrap();
                assert!(!bitmap.is_inconsistent(), "{name}");
                let clean = written.iter().find(|it| !bitmap.bits().is_dirty(**it * GRANULE));
                assert_eq!(clean, None, "{name}: a granule that was written is clean");
            }
        }
    }

    /// These granules are in the image from now on, perhaps.
    fn written(&self, granules: std::ops::Range<u64>) {
        let mut known = self.known.borrow_mut();
        let recording = known.values_mut().filter(|(is_recording, _)| *is_recording);
        recording.for_each(|(_, written)| written.extend(granules.clone()));
    }

    fn pick(&self, below: u64) -> u64 {
        self.random.borrow_mut().u64(0..below)
    }
}

/// A disk without bytes that looks at what a crash would leave when a write comes, and meanwhile.
struct Disk(usize);

thread_local! {
    /// Simulated disks and runs are on one thread.
    static RUNS: RefCell<Vec<Rc<Run>>> = const { RefCell::new(Vec::new()) };
}

impl Disk {
    fn run(&self) -> Rc<Run> {
        RUNS.with_borrow(|runs| Rc::clone(&runs[self.0]))
    }
}

impl BlockDriver for Disk {
    fn format_name(&self) -> &'static str {
        "disk"
    }

    fn length(&self) -> u64 {
        LENGTH
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        let run = self.run();
        run.written(offset / GRANULE..(offset + source.len() as u64).div_ceil(GRANULE));
        for _ in 0..run.pick(6) {
            run.co_check(co);
            co.yield_now();
        }
        run.co_check(co);
        if run.pick(8) == 0 { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

fn open(co: &Co<'_>, run: &Run, number: usize) -> Arc<WithSidecar> {
    let store = Box::new(run.memory.clone());
    let disk = Box::new(Disk(number));
    let opened = WithSidecar::co_with(co, disk, store, Path::new("bitmaps"), (false, true));
    Arc::new(opened.map_err(|(_, error)| error).unwrap())
}

/// One thing that happens.
fn co_step(co: &Co<'_>, run: &Rc<Run>, disk: &Arc<WithSidecar>, writes: &Rc<RefCell<u32>>) {
    let set = disk.bitmaps().unwrap();
    let names: Vec<String> = run.known.borrow().keys().cloned().collect();
    let chosen = (!names.is_empty()).then(|| names[run.pick(names.len() as u64) as usize].clone());
    let bitmap = |name: &String| -> Arc<DirtyBitmap> { set.find(name).unwrap() };
    match (run.pick(12), chosen) {
        (0, _) if names.len() < 3 => {
            let name = format!("b{}", run.pick(u64::MAX));
            let mut new = NewBitmap::new(name.clone(), GRANULE);
            new.is_persistent = true;
            let added = set.add(new, LENGTH).unwrap();
            match disk.image().unwrap().co_note_bitmaps(co) {
                Ok(()) => drop(run.known.borrow_mut().insert(name, (true, BTreeSet::new()))),
                Err(_) => set.remove(&added),
            }
        }
        (1, Some(name)) => {
            run.known.borrow_mut().remove(&name);
            if disk.image().unwrap().co_remove_bitmap(co, &name).is_ok() {
                set.remove(&bitmap(&name));
            } else {
                // It stays, and is not looked at any more.
                bitmap(&name).set_recording(false).unwrap();
            }
        }
        // Writes that are under way may be recorded, or not.
        (2, Some(name)) if *writes.borrow() == 0 => {
            let on = !run.known.borrow()[&name].0;
            bitmap(&name).set_recording(on).unwrap();
            if !on {
                run.known.borrow_mut().get_mut(&name).unwrap().0 = false;
            }
            match disk.image().unwrap().co_note_bitmaps(co) {
                Ok(()) => run.known.borrow_mut().get_mut(&name).unwrap().0 = on,
                Err(_) => {
                    bitmap(&name).set_recording(!on).unwrap();
                    run.known.borrow_mut().get_mut(&name).unwrap().0 = false;
                }
            }
        }
        (3, Some(name)) if *writes.borrow() == 0 => {
            bitmap(&name).clear().unwrap();
            run.known.borrow_mut().get_mut(&name).unwrap().1.clear();
        }
        (4, _) => drop(disk.co_let_regions_go(co)),
        _ => {
            let offset = run.pick(LENGTH / GRANULE) * GRANULE;
            let bytes = (1 + run.pick(70)) * GRANULE;
            let bytes = bytes.min(LENGTH - offset) as usize;
            let (disk, writes) = (Arc::clone(disk), Rc::clone(writes));
            *writes.borrow_mut() += 1;
            co.context().spawn("write", move |co| {
                let data = vec![0; GRANULE as usize];
                let mut source = IoVector::new();
                (0..bytes / data.len()).for_each(|_| source.push(&data));
                let _ = disk.co_pwritev(co, offset, &source, WriteFlags::empty());
                *writes.borrow_mut() -= 1;
            });
            co.yield_now();
        }
    }
}

fn run(seed: u64, failures: u32) {
    let ctx = AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().unwrap();
    let memory = Shared::default();
    memory.0.is_left(None);
    *memory.0.failures.lock().unwrap() = (failures, Rng::with_seed(seed));
    let (known, random) = (RefCell::default(), RefCell::new(Rng::with_seed(seed)));
    let run = Rc::new(Run { memory, known, random });
    let number = RUNS.with_borrow_mut(|runs| {
        runs.push(Rc::clone(&run));
        runs.len() - 1
    });
    ctx.run(|co| {
        for _ in 0..4 {
            let disk = open(co, &run, number);
            let writes = Rc::new(RefCell::new(0));
            for _ in 0..run.pick(60) {
                co_step(co, &run, &disk, &writes);
                run.co_check(co);
            }
            // A crash leaves writes behind that are under way; a close does not.
            let is_crash = run.pick(2) == 0;
            while *writes.borrow() > 0 && !(is_crash && run.pick(4) == 0) {
                co.sleep(TURN);
            }
            if !is_crash {
                let _ = disk.co_close(co);
            }
            while *writes.borrow() > 0 {
                co.sleep(TURN);
            }
            run.co_check(co);
            // What the name leads to is one of those that a crash may leave.
            let left = run.memory.0.left.lock().unwrap().clone();
            let left = left[run.pick(left.len() as u64) as usize].clone();
            run.memory.0.is_left(left);
            known_is_what_is_left(co, &run);
        }
    });
}

/// Bitmaps that stayed although their removal failed, and those whose states were not stored, are as the file says.
fn known_is_what_is_left(co: &Co<'_>, run: &Run) {
    let sidecar = Sidecar::new(Box::new(run.memory.clone())).unwrap();
    sidecar.co_load(co, LENGTH, None, false).unwrap();
    for (name, (is_recording, _)) in run.known.borrow_mut().iter_mut() {
        *is_recording = sidecar.set.find(name).unwrap().is_recording();
    }
}

#[test]
fn j136_a_crash_at_any_instant_leaves_all_that_was_written() {
    (0..20).for_each(|seed| run(seed, 0));
}

#[test]
fn j136_a_crash_leaves_all_that_was_written_though_the_file_fails() {
    (1000..1020).for_each(|seed| run(seed, 6));
}

/// The methods of a trait in a source, or of its implementation.
fn methods(source: &str, begin: &str) -> Vec<String> {
    let body = source.split(begin).nth(1).expect("it is there");
    let body = body.split("\n}\n").next().unwrap_or_default();
    let method =
        |line: &str| Some(line.strip_prefix("    fn ")?.split(['(', '<']).next()?.to_owned());
    body.lines().filter_map(method).collect()
}

/// A method with a default that the driver beside an image does not hand on would change what a node does, silently.
#[test]
fn all_methods_of_a_driver_are_handed_on() {
    let own = include_str!("driver.rs");
    let (drivers, images) = (include_str!("../driver/mod.rs"), include_str!("../driver/image.rs"));
    for (source, is_of, handed_on) in [
        (drivers, "\npub trait BlockDriver", "\nimpl BlockDriver for WithSidecar"),
        (images, "\npub trait ImageFormat", "\nimpl ImageFormat for WithSidecar"),
    ] {
        let handed_on = methods(own, handed_on);
        let mut missing = methods(source, is_of);
        missing.retain(|method| !handed_on.contains(method));
        assert!(missing.is_empty(), "not handed on: {missing:?}");
    }
}
