//! `/v1/history`, `/v1/diff`, `/v1/report`: read from the store on disk, off the reactor, within bounds of time and size.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use jiff::Zoned;

use super::Api;
use super::router::{JSON, TEXT, answer, failure};
use crate::history::query::{Filter, QueryError, Range, View};
use crate::history::time;
use crate::report::json::{self, history as documents};
use crate::report::printable;
use crate::report::text::{self, Style};

/// Questions to the history that are answered at a time: each may hold some 20 MB.
pub(super) const AT_ONCE: usize = 2;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Processes of one answer.
const LIMIT: usize = 1000;
/// Where a question without `from` begins.
const AN_HOUR_MS: u64 = 3_600_000;

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    range: Range,
    filter: Filter,
    limit: usize,
    text: bool,
}

pub(super) async fn history(State(api): State<Api>, query: Pairs) -> Response {
    ask(api, query, &["from", "to", "step", "pid", "comm", "exe"], |view, question| {
        let course = view.course(question.range, &question.filter)?;
        Ok((JSON, json::to_vec(&documents::history(&course, question.range)), None))
    })
    .await
}

pub(super) async fn diff(State(api): State<Api>, query: Pairs) -> Response {
    ask(api, query, &["from", "to", "step", "pid", "comm", "exe", "limit"], |view, question| {
        let account = view.account(question.range, &question.filter)?;
        Ok((JSON, json::to_vec(&documents::diff(&account, question.range, question.limit)), None))
    })
    .await
}

pub(super) async fn report(State(api): State<Api>, query: Pairs) -> Response {
    ask(api, query, &["from", "to", "step", "pid", "comm", "exe", "limit", "format"], |view, question| {
        let account = view.account(question.range, &question.filter)?;
        if question.text {
            let style = Style { color: false, width: 100 };
            let text = text::account(&account, question.range, question.limit, &Zoned::now(), style);
            return Ok((TEXT, text.into_bytes(), Some(account.is_whole())));
        }
        let body = json::to_vec(&documents::report(&account, question.range, question.limit));
        Ok((JSON, body, Some(account.is_whole())))
    })
    .await
}

/// Whether nothing is missing from a report, which its text does not tell a program.
pub(crate) const COMPLETE: HeaderName = HeaderName::from_static("x-complete");

/// Media type, body, and whether nothing is missing where that is asked.
type Made = Result<(&'static str, Vec<u8>, Option<bool>), QueryError>;

async fn ask(api: Api, query: Pairs, known: &[&str], make: fn(&View, &Question) -> Made) -> Response {
    let Some(reader) = api.history.clone() else {
        let message = "no history is kept: start the daemon with --history DIR";
        return failure(StatusCode::NOT_FOUND, "no_history", message);
    };
    let pairs = match query {
        Ok(Query(pairs)) => pairs,
        Err(_) => return failure(StatusCode::BAD_REQUEST, "bad_request", "the query is not name=value pairs"),
    };
    let question = match question(&pairs, known, &Zoned::now()) {
        Ok(question) => question,
        Err(message) => return failure(StatusCode::BAD_REQUEST, "bad_request", &message),
    };
    let Ok(place) = api.questions.clone().try_acquire_owned() else {
        let message = "other questions to the history are being answered: ask again";
        return failure(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
    };
    let made = tokio::task::spawn_blocking(move || {
        let made = reader.view(PATIENCE).map_err(QueryError::from).and_then(|view| make(&view, &question));
        drop(place);
        made
    });
    match made.await {
        Ok(Ok((media_type, body, complete))) => {
            let mut answer = answer(StatusCode::OK, media_type, Bytes::from(body));
            if let Some(complete) = complete {
                let told = HeaderValue::from_static(if complete { "true" } else { "false" });
                answer.headers_mut().insert(COMPLETE, told);
            }
            answer
        }
        Ok(Err(error)) => {
            let code = if matches!(error, QueryError::TooSlow) { "too_slow" } else { "history_unavailable" };
            failure(StatusCode::SERVICE_UNAVAILABLE, code, &error.to_string())
        }
        // A store that was damaged while it was open can make the library panic.
        Err(_) => failure(StatusCode::SERVICE_UNAVAILABLE, "history_unavailable", "the history cannot be read"),
    }
}

/// Reads name=value pairs; what is not known, given twice or makes no sense is refused by name.
fn question(pairs: &[(String, String)], known: &[&str], now: &Zoned) -> Result<Question, String> {
    let now_ms = u64::try_from(now.timestamp().as_millisecond()).unwrap_or(0);
    let (mut from, mut to) = (None, None);
    let mut question = Question {
        range: Range { from_unix_ms: 0, to_unix_ms: 0, step_ms: None },
        filter: Filter::default(),
        limit: documents::LIMIT,
        text: false,
    };
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in pairs {
        if !known.contains(&name.as_str()) {
            let known = known.join(", ");
            return Err(format!("there is no query parameter {:?} here: {known} are", printable(name, 64)));
        }
        if seen.contains(&name.as_str()) {
            return Err(format!("{name} is given twice"));
        }
        seen.push(name);
        let wrong = |what: &str| format!("{name}: {:?} is no {what}", printable(value, 64));
        match name.as_str() {
            "from" => from = Some(moment(name, value, now)?),
            "to" => to = Some(moment(name, value, now)?),
            "step" => {
                let step = humantime::parse_duration(value).map_err(|_| wrong("length of time, e.g. 1m"))?;
                question.range.step_ms = Some(u64::try_from(step.as_millis()).unwrap_or(u64::MAX));
            }
            "pid" => question.filter.pid = Some(value.parse().map_err(|_| wrong("process number"))?),
            "comm" => question.filter.comm = Some(value.clone()),
            "exe" => question.filter.exe = Some(value.clone()),
            "limit" => {
                let limit: usize = value.parse().map_err(|_| wrong("whole number"))?;
                question.limit = limit.min(LIMIT);
            }
            "format" => {
                question.text = match value.as_str() {
                    "text" => true,
                    "json" => false,
                    _ => return Err(wrong("format: text and json are")),
                }
            }
            _ => return Err(wrong("value")),
        }
    }
    question.range.to_unix_ms = to.unwrap_or(now_ms);
    question.range.from_unix_ms = from.unwrap_or(question.range.to_unix_ms.saturating_sub(AN_HOUR_MS));
    if question.range.from_unix_ms >= question.range.to_unix_ms {
        return Err("from is not before to".to_owned());
    }
    Ok(question)
}

/// Reads a question as each path does, at a fixed moment.
#[cfg(any(test, fuzzing))]
pub(super) fn read_question(pairs: &[(String, String)]) {
    const ALL: [&str; 8] = ["from", "to", "step", "pid", "comm", "exe", "limit", "format"];
    let now =
        Zoned::new(jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(500_000), jiff::tz::TimeZone::UTC);
    if let Ok(question) = question(pairs, &ALL, &now) {
        assert!(question.range.from_unix_ms < question.range.to_unix_ms && question.limit <= LIMIT);
    }
}

/// A `+` of RFC 3339 that was not escaped arrives as a blank.
fn moment(name: &str, value: &str, now: &Zoned) -> Result<u64, String> {
    let parsed = time::parse(value, now).or_else(|error| {
        let plus = value.rsplit_once(' ').map(|(date, offset)| format!("{date}+{offset}"));
        plus.and_then(|value| time::parse(&value, now).ok()).ok_or(error)
    });
    parsed.map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [&str; 8] = ["from", "to", "step", "pid", "comm", "exe", "limit", "format"];

    fn read(query: &[(&str, &str)]) -> Result<Question, String> {
        let pairs: Vec<_> = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        question(&pairs, &ALL, &"2026-11-26T14:30:00+01:00[+01:00]".parse().unwrap())
    }

    #[test]
    fn a_question_is_read_whole_or_refused_by_name() {
        let hour = read(&[]).unwrap().range;
        assert_eq!(hour.to_unix_ms - hour.from_unix_ms, 3_600_000);
        let asked = read(&[("from", "-2h"), ("to", "-1h"), ("step", "1m"), ("pid", "7"), ("limit", "5000")]).unwrap();
        assert_eq!(asked.range.to_unix_ms - asked.range.from_unix_ms, 3_600_000);
        assert_eq!((asked.range.step_ms, asked.filter.pid, asked.limit), (Some(60_000), Some(7), LIMIT));
        let plus = read(&[("from", "2026-11-26T03:00:00 01:00")]).unwrap();
        assert_eq!(plus.range.from_unix_ms, read(&[("from", "2026-11-26 03:00")]).unwrap().range.from_unix_ms);
        for (query, word) in [
            (&[("from", "tomorrow")][..], "from"),
            (&[("from", "now"), ("to", "-1h")], "before"),
            (&[("pid", "x")], "pid"),
            (&[("pid", "1"), ("pid", "1")], "twice"),
            (&[("step", "1")], "step"),
            (&[("since", "1")], "since"),
            (&[("format", "xml")], "format"),
        ] {
            let message = read(query).unwrap_err();
            assert!(message.contains(word), "{query:?}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_a_question_or_refused(
            pairs in proptest::collection::vec((proptest::sample::select(&ALL[..]), any::<String>()), 0..5),
            name in any::<String>(),
        ) {
            let mut pairs: Vec<_> = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let now = "2026-11-26T14:30:00+00:00[+00:00]".parse().unwrap();
            if let Ok(question) = question(&pairs, &ALL, &now) {
                prop_assert!(question.range.from_unix_ms < question.range.to_unix_ms && question.limit <= LIMIT);
            }
            pairs.push((name.clone(), String::new()));
            prop_assert!(ALL.contains(&name.as_str()) || question(&pairs, &ALL, &now).is_err());
        }
    }
}
