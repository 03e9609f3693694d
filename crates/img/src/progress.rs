//! [`Progress`]: how much of a command is done, in the line that `qemu-img -p` prints.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Steps that are worth a new line: a hundredth of a percent.
const STEPS: u64 = 10_000;
/// Steps between two lines.
const MIN_STEPS: u64 = 100;

/// How much is done, and how much there is to do, in any unit. Any thread counts; one prints.
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    /// What was printed last, in steps; more than all at first.
    printed: AtomicU64,
    is_shown: bool,
    /// A line is wanted by a signal.
    asked: Option<Arc<AtomicBool>>,
}

impl Progress {
    /// A count that is shown on standard output, or not.
    pub(crate) fn new(is_shown: bool) -> Progress {
        let asked = Arc::new(AtomicBool::new(false));
        let by_signal =
            signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&asked));
        Progress {
            done: 0.into(),
            total: 1.into(),
            printed: u64::MAX.into(),
            is_shown,
            asked: by_signal.is_ok().then_some(asked),
        }
    }

    /// There is so much to do, and nothing is done.
    pub(crate) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total.max(1), Ordering::Relaxed);
    }

    /// So much more is done.
    pub(crate) fn add(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
    }

    /// So much is done of so much.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.total.store(total.max(1), Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    fn steps(&self) -> u64 {
        let total = self.total.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed).min(total);
        (u128::from(done) * u128::from(STEPS) / u128::from(total)) as u64
    }

    /// Prints a line if a percent more is done, or a signal has asked.
    pub(crate) fn show(&self) {
        let (steps, printed) = (self.steps(), self.printed.load(Ordering::Relaxed));
        let asked = self.asked.as_ref().is_some_and(|asked| asked.swap(false, Ordering::Relaxed));
        let is_due = printed == u64::MAX || steps.abs_diff(printed) >= MIN_STEPS;
        if (self.is_shown && is_due) || asked {
            self.printed.store(steps, Ordering::Relaxed);
            print(&line(steps), if self.is_shown { "\r" } else { "\n" });
        }
    }

    /// Ends the line: all is done, or as much as was told.
    pub(crate) fn end(&self, is_done: bool) {
        if self.is_shown {
            let (line, end) = if is_done { (line(STEPS), "\r\n") } else { (String::new(), "\n") };
            print(&line, end);
        }
    }
}

fn line(steps: u64) -> String {
    format!("    ({}.{:02}/100%)", steps / 100, steps % 100)
}

/// The reader may have gone: that is no reason to stop.
fn print(line: &str, end: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("{line}{end}").as_bytes());
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_two_decimals() {
        let progress = Progress::new(false);
        progress.begin(3);
        assert_eq!(line(progress.steps()), "    (0.00/100%)");
        progress.add(1);
        assert_eq!(line(progress.steps()), "    (33.33/100%)");
        progress.add(5);
        assert_eq!(line(progress.steps()), "    (100.00/100%)");
    }
}
