//! The layer: requests, nodes, options.
//!
//! One program, as each takes a second to link.

mod accounting;
mod blockdevs;
mod blockstats;
mod chain;
mod close;
mod create;
mod detect_zeroes;
mod driver_events;
mod entered;
mod error_policy;
mod file_transfers;
mod flags;
mod flush;
mod format_seam;
mod image_format;
mod inactive;
mod length_and_status;
mod list_options;
mod lying_driver;
mod metadata;
mod node_info;
mod odd_lengths;
mod options;
mod own_io;
mod padding;
mod range_locks;
mod raw_and_null;
mod read_mapped;
mod registry;
mod resize;
mod slot_options;
mod snapshot_reads;
mod tmpfs;
mod unwound_changes;
mod unwritten_reads;
mod util;
mod write_threshold;
mod zeroes;
