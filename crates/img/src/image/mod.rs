//! Images: how they are named on the command line, probed, opened, and closed.

mod cache;
mod name;
mod open;

pub(crate) use cache::Cache;
pub(crate) use name::path_of;
pub(crate) use open::{Backing, Image, ImageSpec, Images};
