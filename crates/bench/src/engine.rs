//! Our engines, by name.

use std::io;
use std::str::FromStr;

use coblk::AioContext;
use coblk::aio::WaitMode;
use coblk::drivers;

/// What does the I/O of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Worker threads.
    Threads,
    /// The context's io_uring.
    IoUring,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 2] = [Engine::Threads, Engine::IoUring];

    /// Its name, which is also that of QEMU's.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Threads => "threads",
            Engine::IoUring => "io_uring",
        }
    }

    /// Whether it runs here. The driver falls back to threads in silence, and then we would measure
    /// something else.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(self) -> io::Result<()> {
        match self {
            Engine::Threads => Ok(()),
            Engine::IoUring => {
                AioContext::test_builder().wait_mode(WaitMode::Ring).build().map(|_| ())
            }
        }
    }
}

impl From<Engine> for drivers::Engine {
    fn from(engine: Engine) -> drivers::Engine {
        match engine {
            Engine::Threads => drivers::Engine::Threads,
            Engine::IoUring => drivers::Engine::IoUring,
        }
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(word: &str) -> Result<Engine, String> {
        let found = Engine::ALL.into_iter().find(|engine| engine.name() == word);
        found.ok_or_else(|| format!("'{word}' is neither threads nor io_uring"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for engine in Engine::ALL {
            assert_eq!(engine.name().parse(), Ok(engine));
        }
        assert!("libaio".parse::<Engine>().is_err());
        assert!(Engine::Threads.check().is_ok());
    }
}
