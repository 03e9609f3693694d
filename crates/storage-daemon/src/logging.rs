//! Messages go to the standard error: warnings and errors, what `RUST_LOG` asks for, and the events
//! that `--trace` asks for.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use coblk::qapi::{from_keyval, path};
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::trace_events;

/// The name before messages.
pub const PROGRAM: &str = "coblk-storage-daemon";

/// Why events cannot be traced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The text is not understood.
    #[error("--trace {}: {why}", text.display())]
    Text {
        /// What was given.
        text: OsString,
        /// What is wrong with it.
        why: coblk::qapi::Error,
    },
    /// A file cannot be read or written.
    #[error("--trace: cannot open '{}': {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is a subscriber already.
    #[error("messages go elsewhere already")]
    Taken,
}

/// Begins to write messages, and the events that these texts of `--trace` ask for.
pub fn start(texts: &[OsString]) -> Result<(), TraceError> {
    let mut traced = Traced::default();
    texts.iter().try_for_each(|text| traced.add(text))?;
    let unknown: Vec<String> = traced.unknown().map(str::to_owned).collect();
    let messages =
        EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    let file = traced.file.take();
    let registry = tracing_subscriber::registry();
    let started = match file {
        None => {
            let layer = layer().with_writer(io::stderr).with_filter(messages.or(traced));
            registry.with(layer).try_init()
        }
        Some(file) => {
            let events = layer().with_writer(Mutex::new(file)).with_filter(traced);
            let messages = layer().with_writer(io::stderr).with_filter(messages);
            registry.with(events).with(messages).try_init()
        }
    };
    started.map_err(|_| TraceError::Taken)?;
    for pattern in unknown {
        tracing::warn!("trace event '{pattern}' does not exist");
    }
    Ok(())
}

fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> fmt::Layer<S> {
    fmt::layer().with_ansi(false)
}

/// Which events are traced.
#[derive(Default)]
struct Traced {
    /// Patterns for names; those that are true add, others take away. The last that matches counts.
    patterns: Vec<(String, bool)>,
    file: Option<File>,
}

/// What a text of `--trace` says.
#[derive(Deserialize)]
struct TraceOptions {
    /// A pattern.
    enable: Option<String>,
    /// A file of patterns.
    #[serde(default, deserialize_with = "path::option::deserialize")]
    events: Option<PathBuf>,
    /// Where events go.
    #[serde(default, deserialize_with = "path::option::deserialize")]
    file: Option<PathBuf>,
}

impl Traced {
    /// Takes over what a text of `--trace` says.
    fn add(&mut self, text: &OsStr) -> Result<(), TraceError> {
        let options = from_keyval(text, "enable");
        let TraceOptions { enable, events, file } =
            options.map_err(|why| TraceError::Text { text: text.to_owned(), why })?;
        enable.iter().for_each(|pattern| self.add_pattern(pattern));
        if let Some(path) = events {
            let patterns = std::fs::read_to_string(&path);
            let patterns = patterns.map_err(|source| TraceError::File { path, source })?;
            let lines = patterns.lines().map(str::trim);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.for_each(|line| self.add_pattern(line));
        }
        if let Some(path) = file {
            let file = File::create(&path);
            self.file = Some(file.map_err(|source| TraceError::File { path, source })?);
        }
        Ok(())
    }

    /// A pattern; with a minus before it, it takes away.
    fn add_pattern(&mut self, pattern: &str) {
        self.patterns.push(match pattern.strip_prefix('-') {
            Some(pattern) => (pattern.to_owned(), false),
            None => (pattern.to_owned(), true),
        });
    }

    /// Patterns that are names, of nothing that is there.
    fn unknown(&self) -> impl Iterator<Item = &str> {
        let names = self.patterns.iter().map(|(pattern, _)| pattern.as_str());
        names.filter(|name| !name.contains(['*', '?']) && !trace_events::NAMES.contains(name))
    }

    fn shows(&self, metadata: &Metadata<'_>) -> bool {
        let is_event = *metadata.level() == tracing::Level::TRACE;
        let last = |name| self.patterns.iter().rfind(|(it, _)| trace_events::matches(it, name));
        is_event && last(metadata.name()).is_some_and(|(_, adds)| *adds)
    }
}

impl<S> Filter<S> for Traced {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.shows(metadata)
    }

    /// Once for each place in the source, so that what is not traced costs nothing.
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.shows(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let traces = !self.patterns.is_empty();
        Some(if traces { LevelFilter::TRACE } else { LevelFilter::OFF })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("foo=1", "Parameter 'foo' is unexpected"),
            ("events=/nonexistent/events", "/nonexistent/events"),
            ("a,b", "'b'"),
        ] {
            let error = Traced::default().add(text.as_ref()).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn names_that_are_unknown_are_found() {
        let mut traced = Traced::default();
        for text in ["blk_co_preadv", "frob", "frob*"] {
            traced.add(text.as_ref()).unwrap();
        }
        assert_eq!(traced.unknown().collect::<Vec<_>>(), ["frob"]);
    }
}
