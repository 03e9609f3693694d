//! Helpers of the integration tests, all in this one place.
//!
//! * `events`: what happened in what order on which thread, from `tracing` events;
//! * `guest`: a virtual disk as a guest sees it;
//! * `images`: places for image files, and other people's tools to make and check them;
//! * `certificates`: for TLS;
//! * `ceph`: a cluster of Ceph, and images in it;
//! * `model`: what a device should hold;
//! * `nbd`: an NBD server to talk to;
//! * `holder`: other programs that have an image open, and its locks;
//! * `liar`: a node whose flushes are a lie;
//! * `load`: random requests whose effects are known;
//! * `loop_device`: an image as a block device;
//! * `sandbox`: a test that runs itself again on a small file system, or with failing system
//!   calls;
//! * `storage_daemon`: the storage daemon, running;
//! * `survey`: looks at what a loss of power may leave of an image;
//! * `tools`: programs that tests run;
//! * `pairs`: two requests, one of them held while the other runs;
//! * `probe`: a block driver that notes what it is asked, and can be told to wait or fail;
//! * `random`: numbers from a seed;
//! * `recorded`: files in memory, and what a loss of power may leave of them;
//! * `register`: what the sectors of a disk may read as, also after a crash;
//! * `rings`: what the rings of this process have registered;
//! * `stacks`: nodes on nodes over an image;
//! * `sectors`: data that shows whether it is whole, and how old.
//!
//! A tool that is missing fails the test that needs it, with the name of the package that has it.
//! Nothing is skipped.
#![forbid(unsafe_code)]

pub mod ceph;
pub mod certificates;
pub mod events;
pub mod guest;
pub mod holder;
pub mod images;
pub mod liar;
pub mod load;
pub mod loop_device;
pub mod model;
pub mod nbd;
pub mod pairs;
pub mod probe;
pub mod random;
pub mod recorded;
pub mod register;
pub mod rings;
pub mod sandbox;
pub mod sectors;
pub mod stacks;
pub mod storage_daemon;
pub mod survey;
pub mod tools;

/// The errno of a result that must be an error.
#[track_caller]
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("succeeded, but should have failed"),
        Err(error) => error.raw_os_error().expect("an error with an errno"),
    }
}
