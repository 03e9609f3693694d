//! Objects that say which clients are let in, by the names of their certificates: `authz-simple`, `authz-list`
//! and `authz-list-file`.

mod list;
mod list_file;
mod simple;

use std::fmt;

pub use list::{AuthzListOptions, AuthzListType, Format, Policy, Rule};
pub use list_file::{AuthzListFileOptions, AuthzListFileType};
pub use simple::{AuthzSimpleOptions, AuthzSimpleType};

/// One of these objects. Any thread.
pub struct Authz(Box<dyn Decides>);

/// How it decides.
trait Decides: Send + Sync {
    /// Whether a client of this name is let in. May block.
    fn allows(&self, identity: &str) -> bool;
}

impl Authz {
    fn new(decides: impl Decides + 'static) -> Authz {
        Authz(Box::new(decides))
    }

    /// Whether a client of this name is let in. May block: a list may have to be read.
    pub fn allows(&self, identity: &str) -> bool {
        self.0.allows(identity)
    }
}

impl fmt::Debug for Authz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authz").finish_non_exhaustive()
    }
}
