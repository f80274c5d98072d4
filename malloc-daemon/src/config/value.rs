//! Values of the configuration that TOML has no type for, each refused with what to write instead.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

use super::select::Pattern;
use crate::http::Listen;
use crate::report::prometheus::Label;

/// Places to listen at, at most.
const PLACES: usize = 16;

struct Parsed<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Parsed).map_err(D::Error::custom)
    }
}

/// Anything that reads itself from a word and says what it wants instead.
pub fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    Parsed::deserialize(deserializer).map(|parsed| parsed.0)
}

/// The same; the empty word is none.
pub fn optional<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

pub fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Listen>, D::Error> {
    let places = Vec::<Parsed<Listen>>::deserialize(deserializer)?;
    if places.is_empty() || places.len() > PLACES {
        return Err(D::Error::custom(format!(
            "1 to {PLACES} places to listen at are needed: ADDRESS:PORT or unix:/PATH"
        )));
    }
    Ok(places.into_iter().map(|place| place.0).collect())
}

pub fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let known = humantime::parse_duration(&text).ok();
    known
        .filter(|time| (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(time))
        .ok_or_else(|| D::Error::custom(format!("{text:?} is no time from 10ms to 1h: write 1s, 500ms or 2m")))
}

pub fn between<'de, D: Deserializer<'de>, const LO: u32, const HI: u32>(deserializer: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(deserializer)?;
    u32::try_from(number)
        .ok()
        .filter(|number| (LO..=HI).contains(number))
        .ok_or_else(|| D::Error::custom(format!("{number} is not between {LO} and {HI}")))
}

/// A path; the empty one is none.
pub fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "" => Ok(None),
        path if path.starts_with('/') && !path.contains('\0') => Ok(Some(PathBuf::from(path))),
        _ => Err(D::Error::custom(format!("{text:?} is no path from the root: begin it with /"))),
    }
}

/// A part of a hundred.
pub fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let percent = f64::deserialize(deserializer)?;
    if (0.01..=100.0).contains(&percent) {
        Ok(percent)
    } else {
        Err(D::Error::custom(format!("{percent} is no budget: write 0.01 to 100, in per cent")))
    }
}

/// A word; the empty one is none.
pub fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(|text| Some(text).filter(|text| !text.is_empty()))
}

pub fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.chars().all(|digit| digit.is_digit(8));
    u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| digits && *mode <= 0o777)
        .ok_or_else(|| D::Error::custom(format!("{text:?} is no mode: write the octal digits, e.g. \"0660\"")))
}

pub fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let hosts = Vec::<String>::deserialize(deserializer)?;
    let is_name = |host: &&String| {
        !host.is_empty() && host.parse::<axum::http::uri::Authority>().is_ok_and(|name| name.host() == host.as_str())
    };
    match hosts.iter().find(|host| !is_name(host)) {
        Some(wrong) => {
            Err(D::Error::custom(format!("{wrong:?} is no name of a host: write it without scheme, port and path")))
        }
        None => Ok(hosts),
    }
}

pub fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Label, D::Error> {
    let text = String::deserialize(deserializer)?;
    [Label::Comm, Label::Cgroup]
        .into_iter()
        .find(|label| label.name() == text)
        .ok_or_else(|| D::Error::custom(format!("{text:?} is no label: write \"comm\" or \"cgroup\"")))
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}
