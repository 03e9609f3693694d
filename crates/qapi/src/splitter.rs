//! [`Splitter`]: cuts what a client sends into JSON values, whatever pieces it comes in.
//!
//! It knows just enough of JSON to find where a value ends, and where one that is broken can be given
//! up: the same places as in QEMU, so that a session that went out of step finds back in the same way.

/// The longest value, in bytes. The options of a large graph take a few thousand.
pub const MAX_BYTES: usize = 1 << 20;
/// The deepest value, in objects and lists around each other: what `serde_json` reads.
pub const MAX_NESTING: usize = 127;

/// Finds the values in a stream of bytes.
#[derive(Default)]
pub struct Splitter {
    /// The value that has begun.
    text: Vec<u8>,
    /// Braces and brackets that are open. They are counted and not matched: that is the parser's.
    braces: usize,
    brackets: usize,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Plain,
    /// In a string that ends with this byte.
    String(u8),
    /// After its backslash.
    Escape(u8),
    /// After an error: skips what is probably a part of it.
    Recovery,
}

enum Step {
    /// The byte is taken, and there is no value yet.
    More,
    /// The byte was the value's last one.
    End,
    /// The value has ended before the byte.
    EndBefore,
    /// No value can be made of this.
    Broken(&'static str, State),
}

impl Splitter {
    /// Takes bytes from `input` until a value is whole, or turns out to be none; nothing if there is
    /// neither in all of `input`.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Vec<u8>, &'static str>> {
        while let Some((&byte, rest)) = input.split_first() {
            let step = self.step(byte);
            if !matches!(step, Step::EndBefore) {
                *input = rest;
            }
            match step {
                Step::More => {}
                Step::End | Step::EndBefore => return Some(Ok(self.restart(State::Plain))),
                Step::Broken(why, state) => {
                    self.restart(state);
                    return Some(Err(why));
                }
            }
        }
        None
    }

    /// Nothing has begun.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.state == State::Plain
    }

    fn restart(&mut self, state: State) -> Vec<u8> {
        (self.braces, self.brackets, self.state) = (0, 0, state);
        std::mem::take(&mut self.text)
    }

    fn step(&mut self, byte: u8) -> Step {
        if self.text.len() >= MAX_BYTES {
            return Step::Broken("JSON token size limit exceeded", State::Recovery);
        }
        match self.state {
            State::Plain => self.plain(byte),
            State::String(_) | State::Escape(_) if byte < b' ' => {
                Step::Broken("JSON parse error, control character in a string", State::Recovery)
            }
            _ if is_never_utf8(byte) => {
                Step::Broken("JSON parse error, not UTF-8", State::Recovery)
            }
            State::String(quote) => self.string(byte, quote),
            State::Escape(quote) => {
                // JSON needs none before an apostrophe, and has none.
                if byte != b'\'' {
                    self.text.push(b'\\');
                }
                self.text.push(byte);
                self.state = State::String(quote);
                Step::More
            }
            State::Recovery if is_structural(byte) || byte < b' ' => {
                self.state = State::Plain;
                self.plain(byte)
            }
            State::Recovery => Step::More,
        }
    }

    /// Outside of strings.
    fn plain(&mut self, byte: u8) -> Step {
        let is_top = self.braces + self.brackets == 0;
        // Of numbers, `true`, `false` and `null`.
        let is_word = match byte {
            b'E' => self.text.last().is_some_and(u8::is_ascii_digit),
            _ => matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'),
        };
        if is_top && !self.text.is_empty() && !is_word {
            return Step::EndBefore;
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' if is_top => return Step::More,
            b'"' | b'\'' => {
                self.text.push(b'"');
                self.state = State::String(byte);
                return Step::More;
            }
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ if is_structural(byte) => {}
            _ if is_word => {}
            _ => return Step::Broken("JSON parse error, stray character", State::Recovery),
        }
        self.text.push(byte);
        if is_word { Step::More } else { self.count(byte) }
    }

    fn count(&mut self, byte: u8) -> Step {
        match byte {
            b'{' => self.braces += 1,
            b'[' => self.brackets += 1,
            // One too many ends the value as well; it is none, and the parser will say so.
            b'}' if self.braces == 0 => return Step::End,
            b']' if self.brackets == 0 => return Step::End,
            b'}' => self.braces -= 1,
            b']' => self.brackets -= 1,
            _ => {}
        }
        match self.braces + self.brackets {
            0 => Step::End,
            depth if depth > MAX_NESTING => {
                Step::Broken("JSON nesting depth limit exceeded", State::Plain)
            }
            _ => Step::More,
        }
    }

    fn string(&mut self, byte: u8, quote: u8) -> Step {
        match byte {
            b'\\' => self.state = State::Escape(quote),
            _ if byte == quote => {
                self.text.push(b'"');
                self.state = State::Plain;
                if self.braces + self.brackets == 0 {
                    return Step::End;
                }
            }
            // Between apostrophes it stands for itself.
            b'"' => self.text.extend_from_slice(b"\\\""),
            _ => self.text.push(byte),
        }
        Step::More
    }
}

fn is_structural(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':')
}

/// Bytes that no text in UTF-8 has; clients send 0xFF to be sure that what follows is looked at anew.
fn is_never_utf8(byte: u8) -> bool {
    matches!(byte, 0xC0 | 0xC1 | 0xF5..)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each input, and what it is cut into; `!` stands for an error.
    const INPUTS: [(&[u8], &[&str]); 30] = [
        (b"", &[]),
        (b" \r\n\t", &[]),
        (b"{}", &["{}"]),
        (b"{}{}\n{ }", &["{}", "{}", "{ }"]),
        (b"{\"a\": [1, {}]}", &["{\"a\": [1, {}]}"]),
        (b"\"}\" ", &["\"}\""]),
        (b"\"\\\"}\"{}", &["\"\\\"}\"", "{}"]),
        (b"\"\\\\\"{}", &["\"\\\\\"", "{}"]),
        (b"{'a\"b': 'it\\'s'}", &["{\"a\\\"b\": \"it's\"}"]),
        (b"1 2{}", &["1", "2", "{}"]),
        (b"-1.5e+3\n", &["-1.5e+3"]),
        (b"true", &[]),
        (b"true}", &["true", "}"]),
        (b"1\"a\"", &["1", "\"a\""]),
        (b"}]", &["}", "]"]),
        (b"{]{}", &["{]", "{}"]),
        (b"{[}]", &["{[}]"]),
        (b":,", &[":", ","]),
        (b"{\"a\"", &[]),
        (b"\"abc\n", &["!"]),
        (b"{\"a\nb\"}", &["!", "}"]),
        (b"{\"a\\\nb\"}", &["!", "}"]),
        (b"@@@", &["!"]),
        (b"@@@{}", &["!", "{}"]),
        (b"\xff{}", &["!", "{}"]),
        (b"{\"\xff{}", &["!", "{}"]),
        (b"\0\0{}", &["!", "!", "{}"]),
        (b"/* no */ {}", &["!", "{}"]),
        (b"\xf3\x80\x80\x80\n{}", &["!", "{}"]),
        ("{\"é\": 'ü'}".as_bytes(), &["{\"é\": \"ü\"}"]),
    ];

    fn split(splitter: &mut Splitter, mut input: &[u8], found: &mut Vec<String>) {
        while let Some(piece) = splitter.next(&mut input) {
            let text = piece.map(|text| String::from_utf8(text).unwrap());
            found.push(text.unwrap_or_else(|_| "!".to_owned()));
        }
        assert!(input.is_empty());
    }

    #[test]
    fn values_are_found_wherever_the_bytes_are_cut() {
        for (input, expected) in INPUTS {
            for cut in 0..=input.len() {
                let (mut splitter, mut found) = (Splitter::default(), Vec::new());
                split(&mut splitter, &input[..cut], &mut found);
                split(&mut splitter, &input[cut..], &mut found);
                assert_eq!(found, expected, "{:?} cut at {cut}", input.escape_ascii().to_string());
            }
            let (mut splitter, mut found) = (Splitter::default(), Vec::new());
            input.chunks(1).for_each(|byte| split(&mut splitter, byte, &mut found));
            assert_eq!(found, expected, "{:?} byte by byte", input.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_value_that_is_too_long_is_given_up() {
        for begin in [&b"\""[..], b"{\"a\": \"", b"[", b"1"] {
            let mut splitter = Splitter::default();
            let mut input = begin;
            assert_eq!(splitter.next(&mut input), None);
            let fill = vec![b'1'; MAX_BYTES + 1];
            let mut input = &fill[..];
            assert_eq!(splitter.next(&mut input), Some(Err("JSON token size limit exceeded")));
            assert_eq!(splitter.next(&mut input), None);
            assert_eq!(splitter.text.capacity(), 0, "it is not kept");
            let mut input = &b"{}"[..];
            assert_eq!(splitter.next(&mut input), Some(Ok(b"{}".to_vec())));
        }
    }

    #[test]
    fn a_value_that_is_too_deep_is_given_up() {
        let deep = |levels: usize| [vec![b'['; levels], vec![b']'; levels]].concat();
        let (good, bad) = (deep(MAX_NESTING), deep(MAX_NESTING + 1));
        let mut splitter = Splitter::default();
        assert_eq!(splitter.next(&mut &good[..]), Some(Ok(good.clone())));
        let mut input = &bad[..];
        assert_eq!(splitter.next(&mut input), Some(Err("JSON nesting depth limit exceeded")));
        assert_eq!(splitter.next(&mut input), Some(Ok(b"]".to_vec())));
    }
}
