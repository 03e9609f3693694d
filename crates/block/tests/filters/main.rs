//! Filters, each on a disk in memory.

mod blkdebug;
mod memory;
mod throttle;
