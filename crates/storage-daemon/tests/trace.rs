//! `--trace` shows events by their names.

mod util;

use rustix::process::Signal;
use util::{NBD, Place};

#[test]
fn events_are_written_to_a_file_by_their_names() {
    let place = Place::new();
    std::fs::write(place.path("events"), "# comment\nblk_co_*\n-blk_co_flush\n").unwrap();
    let daemon = place.start(&format!("{NBD} --trace events=@/events,file=@/log"));
    place.check();
    daemon.stop(Signal::TERM);
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    for name in ["blk_co_pwritev", "blk_co_preadv"] {
        assert!(log.contains(&format!("{name} offset=4096 bytes=4096")), "{log}");
    }
    assert!(!log.contains("blk_co_flush") && !log.contains("bdrv_co_"), "{log}");
}
