//! Sizes on the command line, and for human readers.

use coblk::qapi::{Size, from_keyval};
use serde::Deserialize;

use crate::failure::Failure;

/// Prefixes of units, each 1024 of the one before.
const PREFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// Reads a number of bytes with an optional unit, as `64k`. `what` is its name in messages.
///
/// # Errors
/// If it is none.
pub(crate) fn parse(what: &str, text: &str) -> Result<u64, Failure> {
    #[derive(Deserialize)]
    struct Only {
        size: Size,
    }
    // Other characters mean something in a list of options.
    let is_plain = text.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'.');
    let only = is_plain.then(|| from_keyval::<Only>(format!("size={text}"), "size").ok());
    only.flatten().map(|it| it.size.0).ok_or_else(|| {
        let units = "a number of bytes, which may end in k, M, G, T, P or E";
        Failure::new(format!("Invalid {what} specified: '{text}' is not {units}"))
    })
}

/// Reads a plain number from `min` to `max`, which may be hexadecimal (`0x1f`) or octal (`017`).
///
/// # Errors
/// If it is none, or not in the range.
pub(crate) fn parse_number(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    let number = plain_number(text).filter(|it| (min..=max).contains(it));
    let wrong = || Failure::new(format!("Invalid {what} '{text}': from {min} to {max}"));
    number.ok_or_else(wrong)
}

/// A number as C programs read it.
fn plain_number(text: &str) -> Option<u64> {
    let text = text.trim_ascii_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // The parser takes a sign, too.
    let is_plain = digits.bytes().all(|it| it.is_ascii_hexdigit());
    is_plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// A number of bytes in the largest unit that leaves less than 1000, with three digits.
pub(crate) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut prefix = 0;
    while value >= 1000.0 && prefix + 1 < PREFIXES.len() {
        value /= 1024.0;
        prefix += 1;
    }
    format!("{} {}B", three_digits(value), PREFIXES[prefix])
}

/// As C's `%.3g`, for values from 0 to less than 10,000.
fn three_digits(value: f64) -> String {
    if value >= 999.5 {
        return "1e+03".to_owned();
    }
    let decimals = match value {
        it if it >= 99.95 => 0,
        it if it >= 9.995 => 1,
        it if it >= 0.9995 || it == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("1.5M", 3 << 19), ("2T", 2 << 40)] {
            assert_eq!(parse("size", text).unwrap(), bytes);
        }
        for text in ["", "x", "-1", "1,size=2", "1Q", "99999999999E"] {
            assert!(parse("size", text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_as_c_programs_read_them() {
        for (text, number) in
            [("5", 5), ("0", 0), ("0x10", 16), ("0XfF", 255), ("010", 8), (" 7", 7), ("+7", 7)]
        {
            assert_eq!(parse_number("number", text, 0, 255).unwrap(), number, "{text}");
        }
        for text in ["", "x", "08", "0x", "0x+1", "++1", "-1", "5k", "5 ", "256", "1e1", "0b1"] {
            assert!(parse_number("number", text, 0, 255).is_err(), "{text}");
        }
    }

    #[test]
    fn humans_read_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (331_776, "324 KiB"),
            (1_023_488, "1e+03 KiB"),
            (1_454_080, "1.39 MiB"),
            (53_687_091_200, "50 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
