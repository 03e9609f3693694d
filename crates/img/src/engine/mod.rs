//! Work on whole images, by many requests in flight on contexts of their own.
//!
//! ```text
//! walker   asks for the status of the images ahead          walk
//!    | runs of one kind
//!    v
//! queue    gives them out in pieces, so many at a time      queue
//!    | pieces
//!    v
//! crew     a thread with a context a CPU, and on each       crew
//!          several coroutines: they read, compare, write    copy
//! ```

mod copy;
mod crew;
mod order;
mod queue;
mod rate;
mod walk;

pub(crate) use copy::{
    Copy, Kind, Quiet, Target, is_zero, max_bytes, max_bytes_of_data, max_writes,
};
pub(crate) use crew::Crew;
pub(crate) use order::Order;
pub(crate) use queue::{Queue, Run};
pub(crate) use rate::Rate;
pub(crate) use walk::Part;
