//! [`Reader`]: takes the options of one node out of a tree of names and values, one by one, and
//! complains about what is left.

use serde_json::{Map, Value};

use super::error::{OptionsError, describe, shorten};

/// The deepest tree: nodes in nodes, and their groups of options.
const MAX_DEPTH: usize = 32;

/// Where the values come from, and so how they are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    /// Numbers and booleans are such.
    Json,
    /// All values are text: `on` and `off`, numbers with suffixes.
    Keyval,
}

/// The options of a node, or a group of them such as `cache`, that have not been taken yet.
pub(super) struct Reader {
    /// What the node is called in messages.
    node: String,
    /// How this group is reached from the top, such as `file.cache.`.
    prefix: String,
    depth: usize,
    notation: Notation,
    left: Map<String, Value>,
}

type Taken<T> = Result<Option<T>, OptionsError>;

impl Reader {
    pub(super) fn new(options: Map<String, Value>, notation: Notation) -> Reader {
        let node = name_of(&options).unwrap_or_else(|| "(unnamed)".to_owned());
        Reader { node, prefix: String::new(), depth: 1, notation, left: options }
    }

    /// An option's full name.
    fn path(&self, option: &str) -> String {
        format!("{}{}", self.prefix, shorten(option))
    }

    pub(super) fn invalid(&self, option: &str, why: impl Into<String>) -> OptionsError {
        let (node, option) = (self.node.clone(), self.path(option));
        OptionsError::Invalid { node, option, why: why.into() }
    }

    fn wrong_type(&self, option: &str, expected: &str, value: &Value) -> OptionsError {
        self.invalid(option, format!("expected {expected}, not {}", describe(value)))
    }

    pub(super) fn required<T>(&self, option: &str, value: Option<T>) -> Result<T, OptionsError> {
        value.ok_or_else(|| OptionsError::Missing {
            node: self.node.clone(),
            option: self.path(option),
        })
    }

    pub(super) fn text(&mut self, option: &str) -> Taken<String> {
        match self.left.remove(option) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(option, "text", &other)),
        }
    }

    /// `on` or `off` on a command line, or QEMU's other words for these; true or false in JSON.
    pub(super) fn flag(&mut self, option: &str) -> Taken<bool> {
        match self.left.remove(option) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(Value::String(text)) if self.notation == Notation::Keyval => match text.as_str() {
                "on" | "yes" | "true" | "y" => Ok(Some(true)),
                "off" | "no" | "false" | "n" => Ok(Some(false)),
                _ => Err(self
                    .invalid(option, format!("expected 'on' or 'off', not '{}'", shorten(&text)))),
            },
            Some(other) => Err(self.wrong_type(option, "true or false", &other)),
        }
    }

    /// A number.
    pub(super) fn number(&mut self, option: &str) -> Taken<u64> {
        self.number_by(option, |text| {
            let digits = text.bytes().all(|it| it.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        })
    }

    /// A number of bytes; on a command line it may have a suffix, as `64k`.
    pub(super) fn size(&mut self, option: &str) -> Taken<u64> {
        self.number_by(option, parse_size)
    }

    fn number_by(&mut self, option: &str, parse: impl Fn(&str) -> Option<u64>) -> Taken<u64> {
        let Some(value) = self.left.remove(option) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) if self.notation == Notation::Keyval => parse(text),
            _ => None,
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong_type(option, "a whole number from 0 on", &value)),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, option: &str, words: &[(&str, T)]) -> Taken<T> {
        let Some(text) = self.text(option)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let (text, words) = (shorten(&text), words.join(", "));
                let why = format!("'{text}' is not supported; there is {words}");
                Err(self.invalid(option, why))
            }
        }
    }

    /// A child: the name of a node, or the options of one.
    pub(super) fn child(&mut self, option: &str) -> Taken<Result<String, Reader>> {
        match self.left.remove(option) {
            None => Ok(None),
            Some(Value::String(name)) => Ok(Some(Ok(name))),
            Some(Value::Object(options)) => {
                let node = name_of(&options).unwrap_or_else(|| format!("{}/{option}", self.node));
                self.inner(option, node, options).map(|it| Some(Err(it)))
            }
            Some(other) => {
                Err(self.wrong_type(option, "the name of a node, or the options of one", &other))
            }
        }
    }

    /// A group of options of the same node; an empty one if there is none.
    pub(super) fn group(&mut self, option: &str) -> Result<Reader, OptionsError> {
        match self.left.remove(option) {
            None => self.inner(option, self.node.clone(), Map::new()),
            Some(Value::Object(options)) => self.inner(option, self.node.clone(), options),
            Some(other) => Err(self.wrong_type(option, "a group of options", &other)),
        }
    }

    /// A list of groups.
    pub(super) fn groups(&mut self, option: &str) -> Result<Vec<Reader>, OptionsError> {
        let items = match self.left.remove(option) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong_type(option, "a list", &other)),
        };
        let each = items.into_iter().enumerate().map(|(index, item)| {
            let name = format!("{option}.{index}");
            match item {
                Value::Object(options) => self.inner(&name, self.node.clone(), options),
                other => Err(self.wrong_type(&name, "a group of options", &other)),
            }
        });
        each.collect()
    }

    fn inner(
        &self,
        option: &str,
        node: String,
        left: Map<String, Value>,
    ) -> Result<Reader, OptionsError> {
        if self.depth == MAX_DEPTH {
            return Err(self.invalid(option, format!("more than {MAX_DEPTH} levels deep")));
        }
        let prefix = format!("{}.", self.path(option));
        Ok(Reader { node, prefix, depth: self.depth + 1, notation: self.notation, left })
    }

    /// A list of words.
    pub(super) fn words<T: Copy>(
        &mut self,
        option: &str,
        words: &[(&str, T)],
    ) -> Result<Vec<T>, OptionsError> {
        let items = match self.left.remove(option) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong_type(option, "a list", &other)),
        };
        let items = items.into_iter().enumerate();
        let mut group: Map<String, Value> =
            items.map(|(index, item)| (index.to_string(), item)).collect();
        let count = group.len();
        let mut reader = self.inner(option, self.node.clone(), std::mem::take(&mut group))?;
        let taken =
            (0..count).filter_map(|index| reader.word(&index.to_string(), words).transpose());
        taken.collect()
    }

    /// An option that there is no use for.
    pub(super) fn unsupported(&mut self, option: &str) -> Result<(), OptionsError> {
        match self.left.remove(option) {
            None => Ok(()),
            Some(_) => Err(self.invalid(option, "not supported")),
        }
    }

    /// Everything must have been taken.
    pub(super) fn finish(self, what: &str) -> Result<(), OptionsError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(option) => Err(OptionsError::Unknown {
                node: self.node.clone(),
                option: self.path(option),
                what: what.to_owned(),
            }),
        }
    }
}

fn name_of(options: &Map<String, Value>) -> Option<String> {
    options.get("node-name")?.as_str().map(shorten)
}

/// Bytes, with a suffix for powers of 1024: `64k`. `None` if it is not that.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    if !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        for (text, size) in [("0", 0), ("512", 512), ("4k", 4096), ("1G", 1 << 30), ("7b", 7)] {
            assert_eq!(parse_size(text), Some(size), "{text}");
        }
        for text in ["", "k", "-1", "+1", "1kk", "1 k", "0x10", "16E", "18446744073709551616", "é"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
