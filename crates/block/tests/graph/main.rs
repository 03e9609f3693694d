//! The graph of nodes: drains that reach those above, and changes while requests run.

mod change;
mod drain;
mod height;
mod load;
mod media;
mod permissions;
mod tagged;
mod users;
