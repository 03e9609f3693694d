//! [`Error`]: which parameter is wrong, in QEMU's words.

use std::fmt::{self, Display};

use serde::de::{Expected, Unexpected};

use crate::path;

/// What is wrong with options, and with which parameter: by its full name, as `file.cache.direct`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    path: String,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    Missing,
    Unexpected,
    /// It is not one of the words that there are.
    Word {
        value: String,
        /// Joined, for people.
        words: String,
    },
    /// A value of another type.
    Type(String),
    /// A value that is none of its type.
    Expects(String),
    /// A number that no parameter of this kind can have.
    Range(String),
    /// Anything else about it.
    Invalid(String),
    /// About none in particular.
    Other(String),
}

impl Error {
    fn new(problem: Problem) -> Error {
        Error { path: String::new(), problem }
    }

    /// About no parameter in particular.
    pub fn other(text: impl Display) -> Error {
        Error::new(Problem::Other(text.to_string()))
    }

    /// The parameter is needed.
    pub fn missing(parameter: &str) -> Error {
        Error::new(Problem::Missing).within(parameter)
    }

    /// There is no such parameter, or not here.
    pub fn unexpected(parameter: &str) -> Error {
        Error::new(Problem::Unexpected).within(parameter)
    }

    /// The parameter cannot have its value; why not.
    pub fn invalid(parameter: &str, why: impl Display) -> Error {
        Error::new(Problem::Invalid(why.to_string())).within(parameter)
    }

    /// The value of the parameter is none of these words, where a registry knows them.
    pub fn not_accepted(parameter: &str, value: &str, words: &[&str]) -> Error {
        let (value, words) = (shorten(value), words.join(", "));
        Error::new(Problem::Word { value, words }).within(parameter)
    }

    /// A value is not of this type, in QEMU's names of types.
    pub(crate) fn wrong_type(expected: impl Display) -> Error {
        Error::new(Problem::Type(expected.to_string()))
    }

    pub(crate) fn expects(expected: impl Display) -> Error {
        Error::new(Problem::Expects(expected.to_string()))
    }

    pub(crate) fn out_of_range(value: impl Display) -> Error {
        Error::new(Problem::Range(shorten(&value.to_string())))
    }

    /// The parameter's full name; empty if the error is about none.
    pub fn parameter(&self) -> &str {
        &self.path
    }

    /// The error of a member, as one of the group that it is in.
    #[must_use]
    pub fn within(mut self, group: &str) -> Error {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{}{dot}{}", shorten(group), self.path);
        self
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.problem {
            Problem::Missing => write!(f, "Parameter '{path}' is missing"),
            Problem::Unexpected => write!(f, "Parameter '{path}' is unexpected"),
            Problem::Word { value, words } => {
                write!(f, "Parameter '{path}' does not accept value '{value}'")?;
                match words.as_str() {
                    "" => Ok(()),
                    words => write!(f, "; there is {words}"),
                }
            }
            Problem::Type(expected) => {
                write!(f, "Invalid parameter type for '{path}', expected: {expected}")
            }
            Problem::Expects(expected) => write!(f, "Parameter '{path}' expects {expected}"),
            Problem::Range(value) => {
                write!(f, "Value '{value}' is out of range for parameter '{path}'")
            }
            Problem::Invalid(text) if path.is_empty() => f.write_str(text),
            Problem::Invalid(text) => write!(f, "Parameter '{path}': {text}"),
            Problem::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: Display>(text: T) -> Error {
        Error::new(Problem::Invalid(text.to_string()))
    }

    fn missing_field(field: &'static str) -> Error {
        Error::missing(field)
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Error {
        Error::unexpected(field)
    }

    fn duplicate_field(field: &'static str) -> Error {
        Error::invalid(field, "given twice, by two names")
    }

    fn unknown_variant(variant: &str, words: &'static [&'static str]) -> Error {
        Error::new(Problem::Word { value: shorten(variant), words: words.join(", ") })
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::wrong_type(expected)
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::expects(expected)
    }
}

/// A text for messages, which what was sent must not make long: its first 60 characters. What is not
/// UTF-8 is replaced.
pub fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    if path::has_bytes(text) {
        return shorten(
            &String::from_utf8_lossy(&path::unescape(text)).replace(path::is_byte, "\u{FFFD}"),
        );
    }
    match text.char_indices().nth(MAX_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
