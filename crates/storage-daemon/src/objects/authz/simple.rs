//! `authz-simple`: one name.

use serde::{Deserialize, Serialize};

use super::{Authz, Decides};
use crate::error::DaemonError;
use crate::objects::object_type::{ObjectPlace, ObjectType};

/// The type `authz-simple`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthzSimpleType;

/// One client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct AuthzSimpleOptions {
    /// `identity`: the name of its certificate.
    pub identity: String,
}

impl Decides for String {
    fn allows(&self, identity: &str) -> bool {
        self == identity
    }
}

impl ObjectType for AuthzSimpleType {
    const NAME: &'static str = "authz-simple";
    type Options = AuthzSimpleOptions;
    type Object = Authz;

    fn co_make(
        &self,
        _: &ObjectPlace<'_, '_>,
        options: &AuthzSimpleOptions,
    ) -> Result<Authz, DaemonError> {
        Ok(Authz::new(options.identity.clone()))
    }
}
