//! As much of Rust's syntax as is needed here.

/// Where a function is, and how long.
pub struct Function {
    pub name: String,
    /// From 1.
    pub line: usize,
    /// From the line with `fn` to its closing brace.
    pub lines: usize,
}

/// The text with comments, strings and characters blanked; lines stay where they are.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = token_to_blank(bytes, at).unwrap_or(at);
        if end == at {
            code.push(char::from(if bytes[at].is_ascii() { bytes[at] } else { b'?' }));
            at += 1;
            continue;
        }
        for byte in &bytes[at..end] {
            code.push(if *byte == b'\n' { '\n' } else { ' ' });
        }
        at = end;
    }
    code
}

/// If a comment, string or character begins at `at`: where it ends.
fn token_to_blank(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let part_of_word = at > 0 && is_word(bytes[at - 1]);
    match rest[0] {
        b'/' if rest.starts_with(b"//") => Some(at + find(rest, b"\n").unwrap_or(rest.len())),
        b'/' if rest.starts_with(b"/*") => Some(at + block_comment(rest)),
        b'"' => Some(at + quoted(rest, 1)),
        b'r' | b'b' | b'c' if !part_of_word => prefixed_string(rest).map(|len| at + len),
        b'\'' => character(rest).map(|len| at + len),
        _ => None,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// A string whose text begins at `from`.
fn quoted(rest: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"..."`, `r#"..."#`, `b"..."`, `br"..."`, `c"..."`, `b'x'`.
fn prefixed_string(rest: &[u8]) -> Option<usize> {
    let letters = rest.iter().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let hashes = rest[letters..].iter().take_while(|byte| **byte == b'#').count();
    let raw = rest[..letters].contains(&b'r');
    match rest.get(letters + hashes) {
        Some(b'"') if raw => {
            let mut end = vec![b'"'];
            end.extend(std::iter::repeat_n(b'#', hashes));
            let from = letters + hashes + 1;
            Some(find(&rest[from..], &end).map_or(rest.len(), |len| from + len + end.len()))
        }
        Some(b'"') if hashes == 0 && letters == 1 => Some(quoted(rest, letters + 1)),
        Some(b'\'') if rest[0] == b'b' && letters == 1 => character(&rest[1..]).map(|len| len + 1),
        _ => None,
    }
}

/// A character, unless it is a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return find(&rest[3..], b"'").map(|len| len + 4);
    }
    let text = std::str::from_utf8(&rest[..rest.len().min(6)]);
    let text = text.unwrap_or_else(|error| {
        std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default()
    });
    let len = text.chars().nth(1)?.len_utf8();
    (rest.get(1 + len) == Some(&b'\'')).then_some(len + 2)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The words of code, with where each begins.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let bytes = code.as_bytes();
        while at < bytes.len() && !is_word(bytes[at]) {
            at += 1;
        }
        let from = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        (from < at).then(|| (from, &code[from..at]))
    })
}

/// The functions in code that [`code_only`] made, those without a body left out.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut previous = "";
    for (at, word) in words(code) {
        // `fn(` is a type.
        let named = previous == "fn" && code[..at].trim_end().ends_with("fn");
        previous = word;
        if !named {
            continue;
        }
        if let Some(end) = end_of_body(&code[at..]) {
            let line = code[..at].matches('\n').count() + 1;
            let lines = code[at..at + end].matches('\n').count() + 1;
            found.push(Function { name: word.to_owned(), line, lines });
        }
    }
    found
}

fn end_of_body(code: &str) -> Option<usize> {
    let (mut braces, mut others) = (0, 0);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => others += 1,
            b')' | b']' => others -= 1,
            b'{' => braces += 1,
            b'}' => braces -= 1,
            b';' if braces == 0 && others == 0 => return None,
            _ => {}
        }
        if byte == b'}' && braces == 0 && others == 0 {
            return Some(at);
        }
    }
    None
}

#[test]
fn strings_and_comments_are_no_code() {
    let text =
        "a \"x\\\"{\" b /* { /* } */ */ c 'q' '\\'' &'a r#\"{\"# // {\nd b\"{\" br\"{\" '{' e";
    let code = code_only(text);
    let code: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(code, ["a", "b", "c", "&'a", "d", "e"]);
}

#[test]
fn functions_are_measured() {
    let code = "fn a() -> [u8; 2] {\n  let f: fn(u8) = g;\n}\ntrait T { fn b(&self); fn c() {} }";
    let found: Vec<(String, usize, usize)> =
        functions(code).into_iter().map(|it| (it.name, it.line, it.lines)).collect();
    assert_eq!(found, [("a".to_owned(), 1, 3), ("c".to_owned(), 4, 1)]);
}
