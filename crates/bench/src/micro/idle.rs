//! A context with nothing to do: how often it wakes up, and what that costs.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use coblk::AioContext;

use crate::report::Row;
use crate::sys;
use crate::works::Work;

/// Lets the context fall asleep first.
const SETTLE: Duration = Duration::from_millis(50);

/// Watches an idle context from outside for `time`.
pub fn rows(time: Duration) -> io::Result<Vec<Row>> {
    let (tell, hear) = mpsc::channel();
    let thread = thread::spawn(move || {
        let ctx = AioContext::for_test()?;
        // A timer far away must not keep it awake either.
        let timer = ctx.timer(|_| ());
        timer.arm_after(Duration::from_secs(3600));
        tell.send((sys::thread_id(), ctx.handle())).map_err(io::Error::other)?;
        ctx.poll();
        io::Result::Ok(())
    });
    let Ok((thread_id, handle)) = hear.recv() else {
        return Err(match thread.join() {
            Ok(Err(error)) => error,
            _ => io::Error::other("the idle context's thread ended"),
        });
    };
    thread::sleep(SETTLE);
    let before = sys::thread_use(thread_id)?;
    thread::sleep(time);
    let after = sys::thread_use(thread_id)?;
    handle.schedule(|_| ());
    thread.join().map_err(|_| io::Error::other("the idle context panicked"))??;

    let per_s = |before: u64, after: u64| (after - before) as f64 / time.as_secs_f64();
    let mut wake_ups = Row::new(Work::IdleWakeUps.name(), Work::IdleWakeUps.unit());
    wake_ups.ours = Some(per_s(before.sleeps, after.sleeps));
    let mut cpu = Row::new(Work::IdleCpu.name(), Work::IdleCpu.unit());
    cpu.ours = Some(per_s(before.cpu_ns, after.cpu_ns) / 1e3);
    for row in [&mut wake_ups, &mut cpu] {
        row.more.push(("watched_s", time.as_secs_f64()));
    }
    Ok(vec![wake_ups, cpu])
}
