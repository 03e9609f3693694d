//! Nodes from options, in a test's own directory.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::options::NodeOptions;
use coblk_block::{BlockNode, BlockdevError, Blockdevs};

pub const IMAGE_BYTES: u64 = 1 << 20;

/// A context, nodes by name, and a directory with the image `a.img`.
pub struct Bench {
    pub ctx: AioContext,
    pub blockdevs: Arc<Blockdevs>,
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::write(dir.path().join("a.img"), vec![7; IMAGE_BYTES as usize]).unwrap();
        Bench {
            ctx: AioContext::for_test().unwrap(),
            blockdevs: Arc::new(Blockdevs::new(coblk_block::drivers())),
            dir,
        }
    }

    pub fn image(&self) -> String {
        self.dir.path().join("a.img").to_str().unwrap().to_owned()
    }

    /// Opens what a command line describes; `$` stands for the image.
    pub fn open(&self, line: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        let options = NodeOptions::from_keyval(line.replace('$', &self.image())).unwrap();
        self.blockdevs.open(&self.ctx, options)
    }

    #[track_caller]
    pub fn refused(&self, line: &str, expected: &str) {
        let before = self.names();
        let error = self.open(line).err().expect("refused").to_string();
        assert!(error.contains(expected), "{line}: {error}");
        assert_eq!(self.names(), before, "nothing stays open");
        assert_eq!(open_descriptors(&self.image()), 0, "{line}");
    }

    pub fn names(&self) -> Vec<String> {
        self.blockdevs.nodes().iter().map(|node| node.name().to_owned()).collect()
    }
}

/// How often this process has a file open.
pub fn open_descriptors(path: &str) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|link| fs::read_link(link.path()).is_ok_and(|it| it == Path::new(path))).count()
}
