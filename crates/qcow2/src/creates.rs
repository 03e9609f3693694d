//! What the driver does for images that are not there yet.

use coblk_block::{CreateError, Creates, Creating};

use crate::create::{self, Qcow2CreateOptions};
use crate::driver::Qcow2;

/// An image is made in the node `file`, and in `data-file`. What is in `file` is lost, unless the options
/// are refused. If a creation fails, no image is there.
impl Creates for Qcow2 {
    const NAME: &'static str = "qcow2";
    type Options = Qcow2CreateOptions;

    fn co_create(
        creating: &Creating<'_, '_>,
        options: Qcow2CreateOptions,
    ) -> Result<(), CreateError> {
        create::co_create(creating, &options)
    }
}
