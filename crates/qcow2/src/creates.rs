//! What the driver does for images that are not there yet.

use coblk_aio::Co;
use coblk_block::{BlockBackend, CreateError, Creates, Creating, Measure, Measures};

use crate::create::{self, Qcow2CreateOptions, Qcow2MeasureOptions};
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

impl Measures for Qcow2 {
    const NAME: &'static str = "qcow2";
    type Options = Qcow2MeasureOptions;

    fn co_measure(
        co: &Co<'_>,
        options: Qcow2MeasureOptions,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError> {
        create::co_measure(co, &options, source)
    }
}
