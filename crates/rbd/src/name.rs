//! `rbd:` file names: [`parse`] reads one, [`of`] writes one.

use crate::options::{RbdOptions, Setting};

const PROTOCOL: &str = "rbd:";
/// The letters that end a part of a name, and are a part of one behind a backslash.
const SPECIAL: [char; 4] = ['\\', '/', ':', '@'];
/// Those that end a value.
const SPECIAL_IN_VALUES: [char; 2] = ['\\', ':'];

/// The name of an image, for messages and lists, as [`parse`] reads it.
pub fn of(options: &RbdOptions) -> String {
    let mut name = format!("{PROTOCOL}{}/", escape(&options.pool));
    if let Some(namespace) = options.namespace.as_deref().filter(|it| !it.is_empty()) {
        name.push_str(&escape(namespace));
        name.push('/');
    }
    name.push_str(&escape(&options.image));
    if let Some(snapshot) = &options.snapshot {
        name.push('@');
        name.push_str(&escape(snapshot));
    }
    let members = [("id", &options.user), ("conf", &options.conf)];
    for (member, value) in members {
        if let Some(value) = value {
            name.push_str(&format!(":{member}={}", escape_value(value)));
        }
    }
    name
}

fn escape(text: &str) -> String {
    escape_letters(text, &SPECIAL)
}

fn escape_value(text: &str) -> String {
    escape_letters(text, &SPECIAL_IN_VALUES)
}

fn escape_letters(text: &str, special: &[char]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if special.contains(&letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// Reads the name of an image. `None` if it is of another protocol.
///
/// # Errors
/// What is wrong with it.
pub fn parse(name: &str) -> Option<Result<RbdOptions, String>> {
    let rest = name.strip_prefix(PROTOCOL)?;
    Some(parse_rest(rest).map_err(|why| format!("'{}': {why}", coblk_qapi::shorten(name))))
}

fn parse_rest(rest: &str) -> Result<RbdOptions, String> {
    if rest.contains('\0') {
        return Err("there is a zero in it".to_owned());
    }
    let (place, settings) = split(rest, ':');
    let (pool, path) = split(place, '/');
    let path = path.ok_or("it has no image: it is 'rbd:POOL/IMAGE'")?;
    let (path, snapshot) = split(path, '@');
    let (namespace, image) = match split(path, '/') {
        (namespace, Some(image)) => (Some(unescape(namespace)).filter(|it| !it.is_empty()), image),
        (image, None) => (None, image),
    };
    let mut options = RbdOptions::new(unescape(pool), unescape(image));
    if options.pool.is_empty() || options.image.is_empty() {
        return Err("pool and image have names".to_owned());
    }
    options.namespace = namespace;
    options.snapshot = snapshot.map(unescape);
    let mut settings = settings;
    while let Some(rest) = settings {
        let (member, following) = split(rest, ':');
        settings = following;
        let (key, value) = split(member, '=');
        let value = value.ok_or_else(|| format!("'{}' has no value", coblk_qapi::shorten(key)))?;
        let (key, value) = (unescape(key), unescape(value));
        match &*key {
            "id" => options.user = Some(value),
            "conf" => options.conf = Some(value),
            _ => {
                let more = options.x_coblk_settings.get_or_insert_default();
                more.push(Setting { name: key, value });
            }
        }
    }
    Ok(options)
}

/// What is before the first `end` that no backslash is before, and what is behind.
fn split(text: &str, end: char) -> (&str, Option<&str>) {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            letter if letter == end => return (&text[..at], Some(&text[at + end.len_utf8()..])),
            _ => {}
        }
    }
    (text, None)
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            // One at the end stands for itself.
            '\\' => plain.push(letters.next().unwrap_or('\\')),
            letter => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> RbdOptions {
        parse(name).expect("a name of rbd").expect("a good name")
    }

    #[test]
    fn names_are_read_as_qemu_reads_them() {
        assert_eq!(read("rbd:p/i"), RbdOptions::new("p", "i"));
        let all = read("rbd:p/n/i@s:id=u:conf=/etc/c.conf:mon_host=[\\:\\:1]\\:6789:key=a\\==");
        let mut wanted = RbdOptions::new("p", "i");
        wanted.namespace = Some("n".to_owned());
        wanted.snapshot = Some("s".to_owned());
        wanted.user = Some("u".to_owned());
        wanted.conf = Some("/etc/c.conf".to_owned());
        let setting = |name: &str, value: &str| Setting { name: name.into(), value: value.into() };
        wanted.x_coblk_settings =
            Some(vec![setting("mon_host", "[::1]:6789"), setting("key", "a==")]);
        assert_eq!(all, wanted);
        let odd = read("rbd:a\\/b\\:c/d\\@e\\\\@f\\=g");
        assert_eq!((&*odd.pool, &*odd.image), ("a/b:c", "d@e\\"));
        assert_eq!(odd.snapshot.as_deref(), Some("f=g"));
        for name in ["rbd", "file:rbd:p/i", "/rbd:p/i", "nbd:p/i"] {
            assert_eq!(parse(name), None, "{name}");
        }
        for name in ["rbd:", "rbd:p", "rbd:/i", "rbd:p/", "rbd:p/i:id", "rbd:p/n/", "rbd:p/i\0"] {
            assert!(matches!(parse(name), Some(Err(_))), "{name}: {:?}", parse(name));
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut options = RbdOptions::new("p/@:", "i\\=");
        assert_eq!(read(&of(&options)), options);
        options.namespace = Some("n:".to_owned());
        options.snapshot = Some("s@s".to_owned());
        options.user = Some("u".to_owned());
        options.conf = Some("/a:b/c d".to_owned());
        assert_eq!(read(&of(&options)), options);
    }
}
