//! Drivers by their names, and how they open nodes: the seam for authors of drivers.
//!
//! ```text
//! driver.rs     Driver, Reopen: all that a driver says of itself, in one place
//! creates.rs    Creates: a driver that makes images
//! creating.rs   Creating: what it is given to make one
//! drivers.rs    Drivers: a set of them, a value; reads their options
//! opening.rs    Opening: what a driver is given to open a node
//! reopening.rs  Reopening: what it is given to change one
//! names.rs      Registry: the nodes that there are, by name, and objects that options name
//! secret.rs     Secret: a password that options name
//! measures.rs   Measures: how long an image would be
//! event.rs      DriverEvent, EventSink: what a driver tells of its node later
//! inherited.rs  what a node is told by its options, and by its parent's
//! ```

mod creates;
mod creating;
mod driver;
mod drivers;
mod error;
mod event;
mod inherited;
mod measures;
mod names;
mod object;
mod opening;
mod reopening;
mod secret;

pub use creates::{CreateError, Creates, Creation};
pub use creating::Creating;
pub use driver::{Driver, Reopen};
pub use drivers::{Drivers, ReadFileName};
pub use error::{BlockdevError, OpenError};
pub(crate) use event::EventListener;
pub use event::{DriverEvent, EventData, EventSink, EventType};
pub(crate) use inherited::Inherited;
pub use inherited::NodeMode;
pub use measures::{Measure, Measures};
pub(crate) use names::{Entry, Names, Registry, Reserved};
pub use object::{NamedObject, ObjectFinder};
pub use opening::Opening;
pub use reopening::Reopening;
pub use secret::Secret;
