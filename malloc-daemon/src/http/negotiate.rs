//! What a client already has, and what it can unpack: `If-None-Match` and `Accept-Encoding`.

use axum::http::{HeaderMap, HeaderName, header};

/// Whether the client takes gzip (RFC 9110, 12.5.3). Without the header nothing is packed: a client that says nothing
/// may not unpack.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut named = None;
    let mut any = None;
    for (coding, weight) in lists(headers, header::ACCEPT_ENCODING).map(weighed) {
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            named = Some(weight);
        } else if coding == "*" {
            any = Some(weight);
        }
    }
    named.or(any).unwrap_or(false)
}

/// Whether the client has the answer with this tag (RFC 9110, 13.1.2, by the weak comparison).
pub fn has(headers: &HeaderMap, tag: &str) -> bool {
    lists(headers, header::IF_NONE_MATCH).any(|held| held == "*" || held.strip_prefix("W/").unwrap_or(held) == tag)
}

fn lists(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// An entry and whether its weight is above nothing.
fn weighed(entry: &str) -> (&str, bool) {
    let mut parts = entry.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
    (name, weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), axum::http::HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn gzip_is_used_where_it_is_taken() {
        for (values, taken) in [
            (&["gzip"][..], true),
            (&["deflate, GZIP;q=0.5"], true),
            (&["br", "gzip"], true),
            (&["*"], true),
            (&["*;q=0, gzip"], true),
            (&["gzip;q=0, *"], false),
            (&["gzip;q=0.000"], false),
            (&["gzip; q=0"], false),
            (&["gzip;q=x"], false),
            (&["identity"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(takes_gzip(&headers(header::ACCEPT_ENCODING, values)), taken, "{values:?}");
        }
    }

    #[test]
    fn a_tag_is_recognized_among_others_and_weak() {
        for (values, has_it) in [
            (&["\"a\""][..], true),
            (&["\"b\", W/\"a\""], true),
            (&["*"], true),
            (&["\"b\""], false),
            (&["a"], false),
            (&[], false),
        ] {
            assert_eq!(has(&headers(header::IF_NONE_MATCH, values), "\"a\""), has_it, "{values:?}");
        }
    }
}
