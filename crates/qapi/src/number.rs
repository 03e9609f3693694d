//! Numbers as they stand on a command line, which are C's: a base before them, and units behind them.

/// A whole number, that fits into 64 bits with a sign or without: decimal, `0x` and hexadecimal, `0`
/// and octal. Blanks and a sign may come before it, and nothing after it.
pub fn integer(text: &str) -> Option<i128> {
    let (negative, text) = signed(text);
    let (digits, radix) = match text.get(..2) {
        Some("0x" | "0X") => (&text[2..], 16),
        Some(zero) if zero.starts_with('0') => (&text[1..], 8),
        _ => (text, 10),
    };
    let magnitude = i128::from(unsigned(digits, radix)?);
    let number = if negative { -magnitude } else { magnitude };
    (number >= i128::from(i64::MIN)).then_some(number)
}

/// A number of bytes: decimal, perhaps with a fraction, and a letter for a power of 1024; or
/// hexadecimal, without. A fraction of a byte is none.
pub fn size(text: &str) -> Option<u64> {
    let (negative, text) = signed(text);
    if negative {
        return None;
    }
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return unsigned(digits, 16);
    }
    let number = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let shift = match text[number.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = match (whole, fraction) {
        ("", "") => return None,
        ("", _) => 0,
        (digits, _) => unsigned(digits, 10)?,
    };
    let whole = whole.checked_mul(1 << shift)?;
    whole.checked_add(part_of(fraction, shift)?)
}

/// So much of `2^shift`, rounded to the nearest.
fn part_of(fraction: &str, shift: u32) -> Option<u64> {
    /// More make no difference to 60 bits.
    const MAX_DIGITS: usize = 19;
    if !fraction.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let digits = &fraction[..fraction.len().min(MAX_DIGITS)];
    if digits.is_empty() {
        return Some(0);
    }
    let numerator = u128::from(unsigned(digits, 10)?);
    if shift == 0 && fraction.bytes().any(|it| it != b'0') {
        return None;
    }
    let denominator = 10u128.pow(digits.len() as u32);
    let part = ((numerator << shift) + denominator / 2) / denominator;
    u64::try_from(part).ok()
}

fn signed(text: &str) -> (bool, &str) {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Digits, and nothing but digits.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    // Rust's own takes a sign.
    let all_digits = digits.chars().all(|it| it.is_digit(radix));
    u64::from_str_radix(digits, radix).ok().filter(|_| all_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_c() {
        for (text, number) in [
            ("0", 0),
            ("1024", 1024),
            ("0x400", 1024),
            ("0X1f", 31),
            ("010", 8),
            ("00", 0),
            ("+10", 10),
            (" \t10", 10),
            ("-10", -10),
            ("-0x10", -16),
            ("9223372036854775807", i128::from(i64::MAX)),
            ("-9223372036854775808", i128::from(i64::MIN)),
            ("18446744073709551615", i128::from(u64::MAX)),
        ] {
            assert_eq!(integer(text), Some(number), "{text:?}");
        }
        for text in [
            "",
            " ",
            "-",
            "x",
            "1G",
            "10 ",
            "08",
            "0x",
            "0x+1",
            "--1",
            "+-1",
            "1.0",
            "1e3",
            "é",
            "-9223372036854775809",
            "18446744073709551616",
            "99999999999999999999999",
        ] {
            assert_eq!(integer(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_units_and_fractions() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("0512", 512),
            ("0x200", 512),
            ("512B", 512),
            ("7b", 7),
            ("4k", 4096),
            ("1K", 1024),
            ("1G", 1 << 30),
            ("15e", 15 << 60),
            ("0.5k", 512),
            ("1.5k", 1536),
            ("1.k", 1024),
            (".5k", 512),
            ("1.1k", 1126),
            ("512.0", 512),
            ("512.", 512),
            ("0.00048828125M", 512),
            (" 512", 512),
            ("+512", 512),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Some(bytes), "{text:?}");
        }
        for text in [
            "",
            "k",
            ".",
            ".k",
            "-512",
            "1kk",
            "1kB",
            "1 k",
            "512 ",
            "0x200k",
            "0x1.8k",
            "0x",
            "0.5",
            "512.4B",
            "1.5B",
            "5e2",
            "1e3k",
            "1k1",
            "nan",
            "inf",
            "16E",
            "15.9999999999999999999E1",
            "18446744073709551616",
            "é",
            "1é",
        ] {
            assert_eq!(size(text), None, "{text:?}");
        }
    }
}
