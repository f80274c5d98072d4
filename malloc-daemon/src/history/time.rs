//! Times as people and programs write them: pure.

use jiff::civil::{Date, DateTime, Time};
use jiff::{Timestamp, ToSpan, Zoned};

/// A text that names no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time: write -2h, now, 03:00, 2026-11-26 03:00, RFC 3339, or milliseconds since 1970")]
pub struct NoTime(String);

/// Milliseconds since 1970: of a time before `now` (`-1h30m`), of the last time at which a clock showed `03:00`, of a
/// civil time in the zone of `now`, of RFC 3339, or as they are.
///
/// # Errors
///
/// The text names no time, or one before 1970.
pub fn parse(text: &str, now: &Zoned) -> Result<u64, NoTime> {
    let wrong = || NoTime(text.chars().filter(|letter| !letter.is_control()).take(64).collect());
    let text = text.trim();
    let now_ms = u64::try_from(now.timestamp().as_millisecond()).map_err(|_| wrong())?;
    if text == "now" {
        return Ok(now_ms);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = humantime::parse_duration(ago).map_err(|_| wrong())?;
        return Ok(now_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| wrong());
    }
    let moment = if let Ok(moment) = text.parse::<Timestamp>() {
        Some(moment)
    } else if let Ok(civil) = text.parse::<DateTime>() {
        civil.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp())
    } else if let Ok(date) = text.parse::<Date>() {
        date.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp())
    } else {
        text.parse::<Time>().ok().and_then(|time| last(time, now))
    };
    moment.and_then(|moment| u64::try_from(moment.as_millisecond()).ok()).ok_or_else(wrong)
}

/// When a clock on the wall last showed a time.
fn last(time: Time, now: &Zoned) -> Option<Timestamp> {
    let today = now.date().to_datetime(time).to_zoned(now.time_zone().clone()).ok()?;
    let moment = if today.timestamp() <= now.timestamp() { today } else { today.checked_sub(1.day()).ok()? };
    Some(moment.timestamp())
}

/// A moment as a clock in the zone of `now` showed it; seconds without a fraction.
#[must_use]
pub fn shown(unix_ms: u64, now: &Zoned) -> String {
    let moment = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(
        || "beyond the calendar".to_owned(),
        |moment| moment.to_zoned(now.time_zone().clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Zoned {
        "2026-11-26T14:30:00+01:00[+01:00]".parse().unwrap()
    }

    fn rfc(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    #[test]
    fn a_time_is_read_as_people_write_it() {
        let now = now();
        for (text, meant) in [
            ("now", "2026-11-26T13:30:00Z"),
            ("-2h", "2026-11-26T11:30:00Z"),
            ("-1h30m", "2026-11-26T12:00:00Z"),
            ("03:00", "2026-11-26T02:00:00Z"),
            ("23:15:30", "2026-11-25T22:15:30Z"),
            ("2026-11-26 03:00", "2026-11-26T02:00:00Z"),
            ("2026-11-26T03:00:05", "2026-11-26T02:00:05Z"),
            ("2026-11-26", "2026-11-25T23:00:00Z"),
            ("2026-11-26T03:00:00Z", "2026-11-26T03:00:00Z"),
            ("2026-11-26T03:00:00+05:00", "2026-11-25T22:00:00Z"),
        ] {
            assert_eq!(parse(text, &now), Ok(rfc(meant)), "{text}");
        }
        assert_eq!(parse("1795651200000", &now), Ok(1_795_651_200_000));
        assert_eq!(shown(1_795_651_200_000, &now), "2026-11-26 01:00:00");
        for wrong in ["", "yesterday", "-", "-2", "25:00", "1e9", "2026-13-01"] {
            assert!(parse(wrong, &now).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_time_or_none(text in any::<String>(), shape in "[-+0-9:TZ. hmsd]{0,24}") {
            let _ = (parse(&text, &now()), parse(&shape, &now()));
        }

        #[test]
        fn any_moment_can_be_shown(unix_ms: u64) {
            prop_assert!(!shown(unix_ms, &now()).is_empty());
        }
    }
}
