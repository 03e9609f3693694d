//! [`OptionError`]: which parameter is wrong, in QEMU's words.

use std::fmt::Display;

use coblk::options::shorten;

/// What is wrong with options. Parameters have their full name, as `addr.path`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// It is needed.
    #[error("Parameter '{0}' is missing")]
    Missing(String),
    /// There is none of that name, or not here.
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(String),
    /// Not one of the values that there are.
    #[error("Parameter '{parameter}' does not accept value '{value}'")]
    Value {
        /// The parameter.
        parameter: String,
        /// Its value.
        value: String,
    },
    /// A value of another kind.
    #[error("Parameter '{parameter}' expects {expected}")]
    Kind {
        /// The parameter.
        parameter: String,
        /// What it can be.
        expected: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl OptionError {
    /// The error of a member, as one of the group it is in.
    pub(super) fn under(self, group: &str) -> OptionError {
        let full = |name: String| match name.is_empty() {
            true => group.to_owned(),
            false => format!("{group}.{name}"),
        };
        match self {
            OptionError::Missing(name) => OptionError::Missing(full(name)),
            OptionError::Unexpected(name) => OptionError::Unexpected(full(name)),
            OptionError::Value { parameter, value } => {
                OptionError::Value { parameter: full(parameter), value }
            }
            OptionError::Kind { parameter, expected } => {
                OptionError::Kind { parameter: full(parameter), expected }
            }
            OptionError::Other(text) => OptionError::Other(text),
        }
    }

    pub(super) fn kind(expected: &str) -> OptionError {
        OptionError::Kind { parameter: String::new(), expected: expected.to_owned() }
    }
}

impl serde::de::Error for OptionError {
    fn custom<T: Display>(text: T) -> OptionError {
        OptionError::Other(text.to_string())
    }

    fn missing_field(field: &'static str) -> OptionError {
        OptionError::Missing(field.to_owned())
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> OptionError {
        OptionError::Unexpected(shorten(field))
    }

    fn unknown_variant(variant: &str, _: &'static [&'static str]) -> OptionError {
        OptionError::Value { parameter: String::new(), value: shorten(variant) }
    }

    fn invalid_type(
        _: serde::de::Unexpected<'_>,
        expected: &dyn serde::de::Expected,
    ) -> OptionError {
        OptionError::kind(&expected.to_string())
    }

    fn invalid_value(
        _: serde::de::Unexpected<'_>,
        expected: &dyn serde::de::Expected,
    ) -> OptionError {
        OptionError::kind(&expected.to_string())
    }
}
