//! The loop and what is on it.
//!
//! One program, as each takes a second to link.

mod bottom_half;
mod call_at;
mod calls_in_place;
mod co_mutex;
mod co_rwlock;
mod context_end;
mod fd_handler;
mod foreign_loop;
mod future;
mod join;
mod listing;
mod panics;
mod polling;
mod pool_share;
mod shares;
mod simulation;
mod sleep;
mod thread_pool_wake;
mod timer;
mod util;
mod wake;
