//! The graph of nodes: drains that reach those above, and changes while requests run.

mod change;
mod drain;
mod freeze;
mod height;
mod load;
mod media;
mod movable;
mod permissions;
mod slots;
mod slots_load;
mod slots_model;
mod tagged;
mod users;
