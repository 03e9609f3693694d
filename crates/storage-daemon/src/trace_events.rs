//! The names of events that `--trace` can show.

use std::fmt::Write;

/// All of them. A test compares this list with the source.
pub(crate) const NAMES: &[&str] = &[
    "aio_arm_idle_timer",
    "aio_coroutine_enter",
    "aio_dispatch_fd",
    "aio_notify",
    "aio_release_idle_memory",
    "aio_sleep",
    "bdrv_append",
    "bdrv_close",
    "bdrv_co_block_status",
    "bdrv_co_flush",
    "bdrv_co_pdiscard",
    "bdrv_co_preadv",
    "bdrv_co_pwrite_zeroes",
    "bdrv_co_pwritev",
    "bdrv_co_truncate",
    "bdrv_make_empty",
    "bdrv_replace_node",
    "bdrv_snapshot_goto",
    "blk_aio_complete",
    "blk_aio_flush",
    "blk_aio_pdiscard",
    "blk_aio_preadv",
    "blk_aio_pwrite_zeroes",
    "blk_aio_pwritev",
    "blk_co_block_status",
    "blk_co_flush",
    "blk_co_pdiscard",
    "blk_co_preadv",
    "blk_co_pwrite_zeroes",
    "blk_co_pwritev",
    "blk_co_truncate",
    "blk_wait_while_drained",
    "block_io_error",
    "co_call_at",
    "coroutine_terminate",
    "coroutine_yield",
    "file_co_flush",
    "file_co_preadv",
    "file_co_pwritev",
    "file_read_in_place",
    "luring_co_submit",
    "luring_process_completion",
    "nbd_negotiate_options_check_option",
    "nbd_receive_request",
    "simulated_job",
    "thread_pool_complete",
    "thread_pool_completion_bh",
    "thread_pool_submit_aio",
    "thread_pool_submit_co",
    "thread_pool_worker_end",
    "thread_pool_worker_start",
    "throttle_group_wait",
    "tracked_request_wait",
    "virtio_blk_handle_read",
    "virtio_blk_handle_write",
    "virtio_blk_req_complete",
    "virtio_blk_rw_complete",
    "virtio_blk_submit_multireq",
    "virtio_notify",
    "virtio_queue_notify",
    "virtqueue_pop",
];

/// One a line.
pub(crate) fn list() -> String {
    let mut text = String::new();
    for name in NAMES {
        // A string takes everything.
        let _ = writeln!(text, "{name}");
    }
    text
}

/// Whether `name` matches a pattern, in which `*` stands for any text and `?` for any letter.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut in_name) = (0, 0);
    // Where to go on after the last star if what follows does not fit.
    let mut again: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                again = Some((at + 1, in_name));
                at += 1;
            }
            Some(letter) if *letter == b'?' || *letter == name[in_name] => {
                at += 1;
                in_name += 1;
            }
            _ => match &mut again {
                Some((after_star, tried)) => {
                    *tried += 1;
                    (at, in_name) = (*after_star, *tried);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("blk_*", "blk_co_preadv", true),
            ("*_co_*", "blk_co_preadv", true),
            ("*v", "blk_co_preadv", true),
            ("blk_co_pread?", "blk_co_preadv", true),
            ("*", "", true),
            ("", "", true),
            ("*a*b*c", "xaxbxbxc", true),
            ("blk", "blk_co_preadv", false),
            ("*x", "blk", false),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    /// Every text after `trace_event!(` in the source of the other crates.
    #[test]
    fn the_list_is_that_of_the_source() {
        let mut found = BTreeSet::new();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for package in ["aio", "block", "nbd", "virtio-blk", "vhost-user-blk"] {
            look_in(&crates.join(package).join("src"), &mut found);
        }
        let listed: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found, listed);
    }

    fn look_in(place: &Path, found: &mut BTreeSet<String>) {
        if place.is_dir() {
            for entry in std::fs::read_dir(place).unwrap() {
                look_in(&entry.unwrap().path(), found);
            }
            return;
        }
        let text = std::fs::read_to_string(place).unwrap();
        let code: Vec<&str> =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for after in code.join("\n").split("trace_event!(").skip(1) {
            let name = after.trim_start().strip_prefix('"').and_then(|it| it.split('"').next());
            found.extend(name.map(str::to_owned));
        }
    }
}
