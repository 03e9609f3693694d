//! How the device tells its driver something: [`Interrupt`].

use std::fmt;

use coblk_aio::{AioContext, EventNotifier};

/// What happens when the device interrupts its driver.
#[derive(Default)]
pub enum Interrupt {
    /// Nothing: the driver polls.
    #[default]
    None,
    /// A function is called on the device's home thread. It may submit requests, and it may poll
    /// the context.
    Callback(Box<dyn Fn(&AioContext)>),
    /// An eventfd is written, for a driver in another thread or process. It may be written while the
    /// rest of a kick is being served.
    Notifier(EventNotifier),
}

impl Interrupt {
    /// An interrupt that calls `callback`.
    pub fn callback(callback: impl Fn(&AioContext) + 'static) -> Interrupt {
        Interrupt::Callback(Box::new(callback))
    }

    pub(crate) fn raise(&self, ctx: &AioContext) {
        match self {
            Interrupt::None => {}
            Interrupt::Callback(callback) => callback(ctx),
            Interrupt::Notifier(notifier) => Self::notify(notifier),
        }
    }

    pub(crate) fn notify(notifier: &EventNotifier) {
        if let Err(error) = notifier.set() {
            tracing::error!(%error, "cannot interrupt the driver");
        }
    }
}

impl From<EventNotifier> for Interrupt {
    fn from(notifier: EventNotifier) -> Interrupt {
        Interrupt::Notifier(notifier)
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Interrupt::None => "None",
            Interrupt::Callback(_) => "Callback",
            Interrupt::Notifier(_) => "Notifier",
        })
    }
}
