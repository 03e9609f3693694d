//! Filters, each on a disk in memory.

mod blkdebug;
mod blklogwrites;
mod memory;
mod own;
mod throttle;
