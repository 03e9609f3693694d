//! A process that keeps one CPU busy, and has no part in the work that is measured: [`Stranger`].

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

use crate::sys;

/// A busy process; it ends when this is dropped.
pub struct Stranger {
    child: Child,
}

impl Stranger {
    /// Takes a CPU.
    ///
    /// # Errors
    /// If it is none that this process may run on.
    pub fn take(cpu: usize) -> io::Result<Stranger> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["spin", &cpu.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        sys::end_with_this_thread(&mut command);
        let mut stranger = Stranger { child: command.spawn()? };
        let mut said = [0];
        // It says so when it is where it should be.
        let out = stranger.child.stdout.as_mut();
        out.ok_or_else(|| io::Error::other("no pipe"))?.read_exact(&mut said).map_err(|_| {
            io::Error::other(format!("a busy process does not start on CPU {cpu}")) //
        })?;
        Ok(stranger)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It does not end by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps a CPU busy, until the process is ended.
///
/// # Errors
/// If this process may not run there.
pub fn spin(cpu: usize) -> io::Result<()> {
    sys::run_on(&[cpu])?;
    io::stdout().write_all(b"\n")?;
    io::stdout().flush()?;
    loop {
        std::hint::spin_loop();
    }
}
