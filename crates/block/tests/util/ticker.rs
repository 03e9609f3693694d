//! A driver with work of its own: it ticks, in the context that is its home.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_aio::{AioHandle, Co, IoVector, IoVectorMut};
use coblk_block::{Background, BlockDriver, ReadFlags, WriteFlags};

pub const TICK: Duration = Duration::from_micros(50);

/// What a test sees of the driver.
pub struct Ticks {
    pub background: Background,
    /// By context.
    counts: Mutex<BTreeMap<String, usize>>,
    /// Under way.
    inside: AtomicUsize,
    quiet: AtomicBool,
    ended: AtomicBool,
    /// What must not be.
    faults: Mutex<Vec<&'static str>>,
    moves: AtomicUsize,
}

impl Ticks {
    /// Ticks so far in the context of that name.
    pub fn count(&self, context: &str) -> usize {
        self.counts.lock().unwrap().get(context).copied().unwrap_or(0)
    }

    /// Times that its home was set.
    pub fn moves(&self) -> usize {
        self.moves.load(Ordering::SeqCst)
    }

    pub fn is_inside(&self) -> bool {
        self.inside.load(Ordering::SeqCst) > 0
    }

    #[track_caller]
    pub fn check(&self) {
        assert!(self.faults.lock().unwrap().is_empty(), "{:?}", self.faults);
    }

    fn demand(&self, holds: bool, fault: &'static str) {
        if !holds {
            self.faults.lock().unwrap().push(fault);
        }
    }

    /// In a coroutine of its home, until that is another.
    fn co_tick(&self, co: &Co<'_>) {
        let here = co.context().handle();
        while !self.ended.load(Ordering::SeqCst) {
            co.sleep(TICK);
            let _own = self.background.co_begin_own(co);
            // While it waited for the end of a drained section it may have got another home.
            if self.background.home() != here {
                return;
            }
            let _inside = Inside::new(&self.inside);
            co.yield_now();
            self.demand(self.background.home() == here, "goes on in another context's time");
            *self.counts.lock().unwrap().entry(here.name().to_owned()).or_default() += 1;
        }
    }
}

/// A tick under way, until it ends, or its context does.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn new(ticks: &'a AtomicUsize) -> Inside<'a> {
        ticks.fetch_add(1, Ordering::SeqCst);
        Inside(ticks)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The driver. Its bytes are zeroes.
pub struct Ticker(pub Arc<Ticks>);

impl Ticker {
    pub fn new(background: Background) -> Ticker {
        let ticks = Ticks {
            background,
            counts: Mutex::default(),
            inside: AtomicUsize::new(0),
            quiet: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            faults: Mutex::default(),
            moves: AtomicUsize::new(0),
        };
        Ticker(Arc::new(ticks))
    }

    /// Begins to tick, once its node is there.
    pub fn start(ticks: &Arc<Ticks>, home: &AioHandle) {
        let ticks = Arc::clone(ticks);
        drop(home.spawn("tick", move |co| ticks.co_tick(co)));
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

impl BlockDriver for Ticker {
    fn format_name(&self) -> &'static str {
        "ticker"
    }

    fn length(&self) -> u64 {
        1 << 20
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        _offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        co.yield_now();
        target.fill_from(0, 0);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn background(&self) -> Option<&Background> {
        Some(&self.0.background)
    }

    fn co_set_home(&self, co: &Co<'_>, home: AioHandle) {
        let ticks = &self.0;
        ticks.moves.fetch_add(1, Ordering::SeqCst);
        ticks.demand(ticks.quiet.load(Ordering::SeqCst), "moves outside of a drained section");
        ticks.demand(!ticks.is_inside(), "moves while it ticks");
        let before = ticks.background.home();
        // What it has there is put away there, unless that context is gone.
        let away = co.call_at(&before, "stop", |there| there.context().handle() == before);
        ticks.demand(away.unwrap_or(before.is_closed()), "was not called where it was at home");
        co.call_at(&home, "start", |_| Ticker::start(ticks, &home)).unwrap();
    }

    fn drained_begin(&self) {
        self.0.quiet.store(true, Ordering::SeqCst);
    }

    fn drained_end(&self) {
        self.0.quiet.store(false, Ordering::SeqCst);
    }
}
