//! Values as they are typed.

use std::time::Duration;

/// A client key as typed: `nodekey:HEX` or 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyArg(pub causeway_proto::key::NodePublic);

impl std::str::FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("privkey:") {
            return Err("this is a private key: give the public one (`nodekey:` and 64 hex digits)".to_owned());
        }
        let hex = text.strip_prefix("nodekey:").unwrap_or(text);
        let key = causeway_proto::key::NodePublic::from_untyped_hex(hex)
            .map_err(|_| "a key is `nodekey:` and 64 hex digits, or the 64 digits alone".to_owned())?;
        Ok(Self(key))
    }
}

/// Parses `500ms`, `30s`, `2m`, `1h`.
///
/// # Errors
/// A sentence saying what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || "a time is a number and a unit, such as 500ms, 30s, 2m, 1h".to_owned();
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds_per_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds_per_unit).map(Duration::from_millis).ok_or_else(wrong)
}

pub(super) fn parse_wait_healthy(text: &str) -> Result<Duration, String> {
    let time = text.strip_prefix("healthy=").ok_or("the only state to wait for is `healthy=TIME`, such as healthy=120s")?;
    parse_duration(time)
}

pub(super) fn parse_set(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("a setting is KEY=VALUE with a TOML path as KEY, such as limits.clients=100".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_in_both_forms_and_private_keys_are_not_echoed() {
        let private = causeway_proto::key::NodePrivate::generate();
        let public = private.public();
        assert_eq!(public.to_text().parse(), Ok(KeyArg(public)));
        assert_eq!(public.to_untyped_hex().parse(), Ok(KeyArg(public)));
        let refused = private.expose_text().parse::<KeyArg>().expect_err("private");
        assert!(refused.contains("private key") && !refused.contains(&private.expose_text()[8..]));
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
        }
        for wrong in ["", "s", "5", "5d", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_wait_healthy("healthy=2m"), Ok(Duration::from_secs(120)));
    }
}
