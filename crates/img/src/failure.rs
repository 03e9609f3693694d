//! [`Failure`]: why a command ends with another code than 0.

use std::fmt;

/// Why a command has failed, and the exit code that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// Empty if everything has been said.
    text: String,
    /// Whether the command line is wrong, and its help is of use.
    pub(crate) is_usage: bool,
}

impl Failure {
    /// Any error: code 1.
    pub(crate) fn new(text: impl fmt::Display) -> Failure {
        Failure { code: 1, text: text.to_string(), is_usage: false }
    }

    /// An error of the command line.
    pub(crate) fn usage(text: impl fmt::Display) -> Failure {
        Failure { is_usage: true, ..Failure::new(text) }
    }

    /// The end with a code, after everything has been said.
    pub(crate) fn silent(code: u8) -> Failure {
        Failure { code, text: String::new(), is_usage: false }
    }

    /// The same failure with another code.
    pub(crate) fn with_code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }

    /// What to tell; nothing if everything has been said.
    pub(crate) fn text(&self) -> Option<&str> {
        Some(&*self.text).filter(|text| !text.is_empty())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Standard output cannot be written.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(format!("cannot print: {error}"))
    }
}

/// The words for an errno, as C has them.
pub(crate) fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
