//! fio's words on the command line: sizes with a suffix, switches that are 0 or 1.

/// Bytes in a word like `512`, `4k`, `1m`, `1G`, `2GiB`: powers of 1024, in either case, as fio
/// takes them.
///
/// # Errors
/// A message, if it is no such word.
pub fn size(word: &str) -> Result<u64, String> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = word.split_at(digits);
    let wrong = || format!("'{word}' is not a size like 512, 4k or 1G");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(1 << shift).ok_or_else(|| format!("'{word}' is too large"))?;
    if bytes == 0 { Err(format!("'{word}': a size is at least 1")) } else { Ok(bytes) }
}

/// Seconds in a word like `5`, `0.5`, `5s`, `200ms`, `1m`.
///
/// # Errors
/// A message, if it is no such word.
pub fn seconds(word: &str) -> Result<f64, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("", 1.0)];
    let (number, scale) = units
        .into_iter()
        .find_map(|(suffix, scale)| Some((word.strip_suffix(suffix)?, scale)))
        .unwrap_or((word, 1.0));
    let wrong = || format!("'{word}' is not a time like 5, 0.5 or 200ms");
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * scale;
    if seconds > 0.0 && seconds < 1e9 { Ok(seconds) } else { Err(wrong()) }
}

/// A switch: `1`, `0`, or the words for them.
///
/// # Errors
/// A message, if it is none of these.
pub fn switch(word: &str) -> Result<bool, String> {
    match word {
        "1" | "true" | "on" => Ok(true),
        "0" | "false" | "off" => Ok(false),
        _ => Err(format!("'{word}' is neither 1 nor 0")),
    }
}

/// A size as fio would write it: `4k` for 4096.
pub fn size_word(bytes: u64) -> String {
    let units = [(1 << 40, "t"), (1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(unit, word)| format!("{}{word}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (word, bytes) in
            [("512", 512), ("4k", 4096), ("4K", 4096), ("1G", 1 << 30), ("2MiB", 2 << 20)]
        {
            assert_eq!(size(word), Ok(bytes), "{word}");
        }
        for word in ["", "k", "4x", "-1", "4 k", "0", "99999999t", "1.5k"] {
            assert!(size(word).is_err(), "{word}");
        }
        assert!(size("4x").unwrap_err().contains("'4x' is not a size"));
    }

    #[test]
    fn sizes_back_to_words() {
        for word in ["512", "4k", "1g", "3m", "5000"] {
            assert_eq!(size_word(size(word).unwrap()), word);
        }
    }

    #[test]
    fn times_and_switches() {
        assert_eq!(seconds("5"), Ok(5.0));
        assert_eq!(seconds("0.5s"), Ok(0.5));
        assert_eq!(seconds("200ms"), Ok(0.2));
        assert_eq!(seconds("2m"), Ok(120.0));
        assert!(seconds("0").is_err() && seconds("x").is_err() && seconds("inf").is_err());
        assert_eq!((switch("1"), switch("off")), (Ok(true), Ok(false)));
        assert!(switch("yes").is_err());
    }
}
