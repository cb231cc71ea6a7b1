//! Quantities with their unit in the type: bytes, spans of time, moments of the scheduler's clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Reads and prints `12GiB`, `512MiB`, `3KiB`, `100B` (and `GB`, `MB`, `kB` as powers of ten).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Bytes(pub u64);

/// A length of time in milliseconds. Reads and prints `90s`, `10m`, `2h`, `1d`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Span {
    pub milliseconds: u64,
}

/// A moment of the scheduler's persisted, never-decreasing clock, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Moment(pub u64);

/// A quantity that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}")]
pub struct ParseUnitError {
    pub what: &'static str,
    pub text: String,
}

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

impl Bytes {
    pub const fn from_mebibytes(count: u64) -> Self {
        Bytes(count << 20)
    }
}

impl Span {
    pub const fn from_seconds(count: u64) -> Self {
        Span { milliseconds: count * 1000 }
    }
}

impl Moment {
    pub fn after(self, span: Span) -> Moment {
        Moment(self.0.saturating_add(span.milliseconds))
    }

    /// Time from `earlier` to `self`; nothing if `earlier` lies ahead.
    pub fn since(self, earlier: Moment) -> Span {
        Span { milliseconds: self.0.saturating_sub(earlier.0) }
    }
}

/// A decimal number followed by one of `units`, as a whole number of the smallest unit.
fn parse_quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let (suffix, factor) = units.iter().find(|(suffix, _)| text.ends_with(suffix))?;
    let digits = text[..text.len() - suffix.len()].trim();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(*factor);
    }
    let value = digits.parse::<f64>().ok()? * *factor as f64;
    (value.is_finite() && value < u64::MAX as f64).then_some(value.round() as u64)
}

impl FromStr for Bytes {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error =
            || ParseUnitError { what: "size with its unit, such as 512MiB or 12GiB", text: text.into() };
        parse_quantity(text, &BYTE_UNITS).map(Bytes).ok_or_else(error)
    }
}

impl FromStr for Span {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error =
            || ParseUnitError { what: "duration with its unit, such as 90s, 10m or 2h", text: text.into() };
        parse_quantity(text, &SPAN_UNITS).map(|milliseconds| Span { milliseconds }).ok_or_else(error)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BYTE_UNITS[..4].iter().find(|(_, factor)| self.0 >= *factor);
        match unit {
            Some((suffix, factor)) if self.0.is_multiple_of(*factor) => {
                write!(f, "{}{suffix}", self.0 / factor)
            }
            Some((suffix, factor)) => write!(f, "{:.1}{suffix}", self.0 as f64 / *factor as f64),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SPAN_UNITS[1..]
            .iter()
            .find(|(_, factor)| self.milliseconds >= *factor && self.milliseconds.is_multiple_of(*factor));
        match unit {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.milliseconds / factor),
            None => write!(f, "{}ms", self.milliseconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_need_their_unit() {
        assert_eq!("12GiB".parse(), Ok(Bytes(12 << 30)));
        assert_eq!("1.5 MiB".parse(), Ok(Bytes(3 << 19)));
        assert_eq!("90s".parse(), Ok(Span::from_seconds(90)));
        assert_eq!("250ms".parse(), Ok(Span { milliseconds: 250 }));
        for text in ["", "12", "GiB", "-1GiB", "1e9B", "99999999999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for text in ["", "5", "s", "5 weeks"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!(Bytes(12 << 30).to_string(), "12GiB");
        assert_eq!(Span::from_seconds(600).to_string(), "10m");
    }
}
