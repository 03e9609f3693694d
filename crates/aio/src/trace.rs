//! Events for debugging, under the names of QEMU's trace points where one exists (decision D15).

/// Emits a `tracing` event at level TRACE, whose name and message are `$name`, with fields after
/// it. Switched off it costs one relaxed load.
///
/// ```
/// coblk_aio::trace_event!("blk_co_preadv", offset = 4096u64, bytes = 512);
/// ```
#[macro_export]
macro_rules! trace_event {
    ($name:literal) => {
        $crate::__tracing::trace!(name: $name, $name)
    };
    ($name:literal, $($fields:tt)+) => {
        $crate::__tracing::trace!(name: $name, $($fields)+, $name)
    };
}
