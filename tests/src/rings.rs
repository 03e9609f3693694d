//! What the rings of this process have registered, from the kernel's own word.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

/// How many rings of this process have registered an image, told by its path.
///
/// # Panics
/// If a descriptor's `/proc/self/fdinfo` cannot be read.
pub fn rings_with(image: &Path) -> usize {
    let image = image.to_str().expect("a path in UTF-8");
    let fds = fs::File::open("/proc/self/fd").expect("our descriptors");
    let listing = fs::read_dir(format!("/proc/self/fd/{}", fds.as_raw_fd())).expect("our list");
    let names = listing.map(|entry| entry.expect("a descriptor").file_name());
    let names: Vec<_> = names.map(|name| name.into_string().expect("a number")).collect();
    let rings = names.iter().filter(|name| {
        // Others may have been closed meanwhile.
        fs::read_link(format!("/proc/self/fd/{name}"))
            .is_ok_and(|to| to.to_str() == Some("anon_inode:[io_uring]"))
    });
    rings.filter(|name| registered(name).iter().any(|line| line == image)).count()
}

/// The paths of the files that a ring has registered. While a ring is inside a system call the
/// kernel leaves them out, so it is asked until it tells.
fn registered(ring: &str) -> Vec<String> {
    loop {
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{ring}")) else {
            return Vec::new();
        };
        let mut lines = info.lines();
        if !lines.any(|line| line.starts_with("UserFiles:")) {
            std::thread::yield_now();
            continue;
        }
        let files = lines.take_while(|line| !line.starts_with("UserBufs:"));
        let paths = files.filter_map(|line| line.split_once(": "));
        return paths.map(|(_, path)| path.trim().to_owned()).collect();
    }
}
