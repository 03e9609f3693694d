//! An image as a block device.

use std::path::{Path, PathBuf};

use crate::tools;

/// A loop device, detached with the value.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Makes one of `image`, with blocks of so many bytes.
    ///
    /// # Panics
    /// If that is not allowed: only root may, and only where the kernel has loop devices.
    #[track_caller]
    pub fn new(image: &Path, block_bytes: u32) -> LoopDevice {
        let blocks = format!("--sector-size={block_bytes}");
        let output = tools::output("losetup", ["--find", "--show", &blocks, tools::text(image)]);
        assert!(
            output.status.success(),
            "this test needs root and loop devices (as in `tests/run` run by root, or a privileged \
             container): losetup: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = String::from_utf8(output.stdout).expect("a device name");
        LoopDevice { path: PathBuf::from(path.trim()) }
    }

    /// Takes over the length of the image, which has changed.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn refresh(&self) {
        tools::run("losetup", [Path::new("--set-capacity"), &self.path]);
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let output = tools::output("losetup", [Path::new("--detach"), &self.path]);
        if !output.status.success() {
            eprintln!("losetup: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
