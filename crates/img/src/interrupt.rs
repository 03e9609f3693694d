//! Signals that end a command: the first one between two requests, the second one at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Whether a signal has told the command to stop.
#[derive(Clone)]
pub(crate) struct Interrupt {
    is_told: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Listens to SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// If the system does not let it.
    pub(crate) fn listen() -> io::Result<Interrupt> {
        let (is_told, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            // The second one meets the flag that the first one has set.
            flag::register_conditional_default(number, Arc::clone(&is_told))?;
            flag::register(number, Arc::clone(&is_told))?;
            flag::register_usize(number, Arc::clone(&signal), number as usize)?;
        }
        Ok(Interrupt { is_told, signal })
    }

    /// Whether there was one.
    pub(crate) fn is_told(&self) -> bool {
        self.is_told.load(Ordering::Relaxed)
    }

    /// Ends the process by the signal that there was, as its parent expects it.
    pub(crate) fn end_process(&self) {
        let signal = self.signal.load(Ordering::Relaxed);
        if let Ok(signal) = i32::try_from(signal)
            && signal != 0
        {
            let _ = low_level::emulate_default_handler(signal);
        }
    }
}
