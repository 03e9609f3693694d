//! Types of exports that are the daemon's own. What all exports have in common is [`coblk::export`]; that of
//! NBD is [`NbdExportType`](coblk::nbd::NbdExportType).

mod vhost_user_blk;

pub use coblk::export::{ExportInfo, RemoveMode};
pub use vhost_user_blk::VhostUserBlkExportType;
