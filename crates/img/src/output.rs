//! Standard output: lines for human readers, or JSON.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// The form of what a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Lines.
    #[default]
    Human,
    /// JSON.
    Json,
}

/// Prints a text, all of it or with an error. A reader that has gone, as `head` does, is none.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints a line, unless all is to be quiet.
pub(crate) fn say(is_quiet: bool, line: &str) -> io::Result<()> {
    match is_quiet {
        true => Ok(()),
        false => print(&format!("{line}\n")),
    }
}

/// Prints JSON over several lines, four columns a level.
pub(crate) fn print_json(value: &Value) -> io::Result<()> {
    let mut text = Vec::new();
    let mut serializer =
        Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer)?;
    text.push(b'\n');
    print(&String::from_utf8_lossy(&text))
}
