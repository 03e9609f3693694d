//! [`Terminal`]: the standard input and output as a character device.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The terminal that the daemon was started at, as it was before; it becomes so again when this is
/// dropped.
#[derive(Debug)]
pub struct Terminal(Option<Termios>);

impl Terminal {
    /// With `signal` off, its keys send no signals.
    ///
    /// # Errors
    /// If the terminal cannot be set.
    pub fn set(signal: bool) -> io::Result<Terminal> {
        let input = io::stdin();
        if signal || !isatty(&input) {
            return Ok(Terminal(None));
        }
        let before = tcgetattr(&input)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ISIG);
        tcsetattr(&input, OptionalActions::Now, &quiet)?;
        Ok(Terminal(Some(before)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It may be gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Copies of the standard input and output.
///
/// # Errors
/// If one is closed, or there are no descriptors left.
pub fn ends() -> io::Result<(OwnedFd, OwnedFd)> {
    let (input, output) = (io::stdin(), io::stdout());
    Ok((input.as_fd().try_clone_to_owned()?, output.as_fd().try_clone_to_owned()?))
}
