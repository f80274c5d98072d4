//! Paths and answers, and who is turned away before any of them is looked at.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;

use super::dashboard;
use super::negotiate;
use super::pages::{Page, off_reactor};
use super::{Access, Api, Listen, Readiness};
use crate::report::json::{self, incidents::Selection};
use crate::report::printable;
use crate::report::prometheus::Format;

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// Names under which a browser reaches this machine and no other.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "[::1]", "localhost"];

/// Every path, behind the checks that depend on where it is served.
pub fn router(api: Api, listen: &Listen) -> Router {
    let door = Arc::new(Door::of(&api, listen));
    Router::new()
        .route("/", get(dashboard::index))
        .route("/dashboard/{file}", get(dashboard::file))
        .route("/v1/snapshot", get(snapshot))
        .route("/v1/processes", get(processes))
        .route("/v1/processes/{pid}", get(process))
        .route("/v1/raises", get(raises))
        .route("/v1/crossings", get(crossings))
        .route("/v1/history", get(super::history::history))
        .route("/v1/diff", get(super::history::diff))
        .route("/v1/report", get(super::history::report))
        .route("/v1/health", get(health))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(not_found)
        .layer(from_fn_with_state(door, admit))
        .with_state(api)
}

/// Who is let in at one place. A page of another site that has its own name point here (DNS rebinding) sends that
/// name, and is refused.
#[derive(Debug)]
enum Door {
    /// A socket in the file system: its permissions decide, and no browser reaches it.
    Open,
    /// An address, with the names that it always has.
    Named(Vec<String>, watch::Receiver<Arc<Access>>),
}

/// Why a request is turned away.
enum Refused {
    Name,
    Token,
}

impl Door {
    fn of(api: &Api, listen: &Listen) -> Self {
        let Listen::Tcp(address) = listen else { return Door::Open };
        let mut names: Vec<String> = LOOPBACK.iter().map(ToString::to_string).collect();
        if !address.ip().is_unspecified() {
            names.push(if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() });
        }
        Door::Named(names, api.sources.access.clone())
    }

    fn admit(&self, request: &Request) -> Result<(), Refused> {
        let Door::Named(names, access) = self else { return Ok(()) };
        let access = Arc::clone(&access.borrow());
        let known = |authority: &Authority| {
            let named = |name: &String| name.eq_ignore_ascii_case(authority.host());
            !authority.as_str().contains('@') && (names.iter().any(named) || access.hosts.iter().any(named))
        };
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let named = hosts.next().and_then(|host| Authority::try_from(host.as_bytes()).ok());
        if !named.as_ref().is_some_and(known) || hosts.next().is_some() || !request.uri().authority().is_none_or(known)
        {
            return Err(Refused::Name);
        }
        // The dashboard's files hold nothing of the machine: they ask for the token that the documents want.
        let is_page = dashboard::is_at(request.uri().path());
        if !is_page && access.token.as_ref().is_some_and(|token| !token.is_shown_in(request.headers())) {
            return Err(Refused::Token);
        }
        Ok(())
    }
}

async fn admit(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    match door.admit(&request) {
        Ok(()) => {}
        Err(Refused::Name) => {
            let message = "this name is not one of the daemon's: ask for 127.0.0.1, [::1] or localhost, or list it \
                           under http.hosts in its configuration";
            return failure(StatusCode::MISDIRECTED_REQUEST, "misdirected", message);
        }
        Err(Refused::Token) => {
            let message = "this daemon wants a token: send the header \"Authorization: Bearer TOKEN\"";
            let mut answer = failure(StatusCode::UNAUTHORIZED, "unauthorized", message);
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return answer;
        }
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer =
            failure(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "only GET and HEAD are answered");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let takes_query = TAKE_QUERY.contains(&request.uri().path());
    if let Some(query) = request.uri().query().filter(|query| !query.is_empty() && !takes_query) {
        let parameter = query.split(['&', '=']).next().unwrap_or_default();
        let message = format!("there is no query parameter {:?} here", printable(parameter, 64));
        return failure(StatusCode::BAD_REQUEST, "bad_request", &message);
    }
    next.run(request).await
}

async fn snapshot(State(api): State<Api>, uri: Uri, headers: HeaderMap) -> Response {
    let since = match since(uri.query().unwrap_or_default()) {
        Ok(since) => since,
        Err(message) => return failure(StatusCode::BAD_REQUEST, "bad_request", &message),
    };
    shown(&api, since.map_or(Page::Snapshot, Page::Since), JSON, &headers).await
}

async fn processes(State(api): State<Api>, uri: Uri, headers: HeaderMap) -> Response {
    let since = match since(uri.query().unwrap_or_default()) {
        Ok(since) => since,
        Err(message) => return failure(StatusCode::BAD_REQUEST, "bad_request", &message),
    };
    shown(&api, since.map_or(Page::Processes, Page::ProcessesSince), JSON, &headers).await
}

/// A page of the current snapshot, unless the client has it.
async fn shown(api: &Api, page: Page, media_type: &'static str, headers: &HeaderMap) -> Response {
    let pages = api.pages();
    let varies = if matches!(page, Page::Metrics(_)) { "accept, accept-encoding" } else { "accept-encoding" };
    let kind = if let Page::Metrics(Format::OpenMetrics) = page { "o" } else { "" };
    let tag = format!("\"{:016x}-{}{kind}\"", api.run, pages.snapshot.sequence);
    // The tags of the packed answer and the plain one are two: caches keep them apart.
    let packed_tag = format!("{}z\"", tag.trim_end_matches('"'));
    let mut answer = if negotiate::has(headers, &tag) || negotiate::has(headers, &packed_tag) {
        let held = if negotiate::has(headers, &tag) { &tag } else { &packed_tag };
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        tagged(&mut answer, held);
        answer
    } else {
        let (body, packed) = api.page(&pages, page, negotiate::takes_gzip(headers)).await;
        let mut answer = answer(StatusCode::OK, media_type, body);
        tagged(&mut answer, if packed { &packed_tag } else { &tag });
        if packed {
            answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        answer
    };
    // May be kept, and is asked for again each time.
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static(varies));
    answer
}

fn tagged(answer: &mut Response, tag: &str) {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
}

/// `since=42`, at most once.
fn since(query: &str) -> Result<Option<u64>, String> {
    let mut parts = query.split('&').filter(|part| !part.is_empty());
    let Some(part) = parts.next() else { return Ok(None) };
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    if name != "since" {
        return Err(format!("there is no query parameter {:?} here: since is", printable(name, 64)));
    }
    if parts.next().is_some() {
        return Err("since stands alone".to_owned());
    }
    let wrong = || format!("{:?} is no sequence of a snapshot: a whole number", printable(value, 64));
    value.parse().map(Some).map_err(|_| wrong())
}

async fn process(State(api): State<Api>, pid: Result<Path<String>, PathRejection>) -> Response {
    let Some(pid) = pid.ok().and_then(|Path(pid)| pid.parse::<u32>().ok()) else {
        return failure(StatusCode::BAD_REQUEST, "bad_request", "a process id is a whole number, e.g. /v1/processes/1");
    };
    match json::one_process(&api.snapshot(), pid) {
        Some(one) => answer(StatusCode::OK, JSON, Bytes::from(json::to_vec(&one))),
        None => {
            let message = format!("process {pid} is not known: it does not run, or has not been observed");
            failure(StatusCode::NOT_FOUND, "process_not_found", &message)
        }
    }
}

/// Paths that take a query.
const TAKE_QUERY: [&str; 7] =
    ["/v1/snapshot", "/v1/processes", "/v1/raises", "/v1/crossings", "/v1/history", "/v1/diff", "/v1/report"];

async fn raises(State(api): State<Api>, uri: Uri) -> Response {
    match selection(uri.query().unwrap_or_default()) {
        Ok(which) => {
            answer(StatusCode::OK, JSON, Bytes::from(json::to_vec(&json::incidents::raises(&api.snapshot(), which))))
        }
        Err(message) => failure(StatusCode::BAD_REQUEST, "bad_request", &message),
    }
}

async fn crossings(State(api): State<Api>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    // `by=stack` is the one parameter that chooses another answer.
    let by_stack = query.split('&').any(|part| part == "by=stack");
    let rest: Vec<&str> = query.split('&').filter(|part| *part != "by=stack").collect();
    let (snapshot, rest) = (api.snapshot(), rest.join("&"));
    match selection(&rest) {
        Ok(which) if by_stack => {
            let told = json::incidents::crossings_by_stack(&snapshot, which);
            answer(StatusCode::OK, JSON, Bytes::from(json::to_vec(&told)))
        }
        Ok(which) => {
            answer(StatusCode::OK, JSON, Bytes::from(json::to_vec(&json::incidents::crossings(&snapshot, which))))
        }
        Err(message) => failure(StatusCode::BAD_REQUEST, "bad_request", &message),
    }
}

/// `pid=4242&limit=10`, each at most once, whole numbers.
fn selection(query: &str) -> Result<Selection, String> {
    let mut which = Selection::default();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let wrong = || format!("{:?} is no whole number for {:?}", printable(value, 64), printable(name, 64));
        match name {
            "pid" if which.pid.is_none() => which.pid = Some(value.parse().map_err(|_| wrong())?),
            "limit" if which.limit.is_none() => which.limit = Some(value.parse().map_err(|_| wrong())?),
            "pid" | "limit" => return Err(format!("{name} is given twice")),
            _ => return Err(format!("there is no query parameter {:?} here: pid and limit are", printable(name, 64))),
        }
    }
    Ok(which)
}

async fn health(State(api): State<Api>) -> Response {
    let snapshot = api.snapshot();
    let configuration = Arc::clone(&api.sources.configuration.borrow());
    let body = off_reactor(snapshot.processes.len(), move || {
        let mut health = json::health(&snapshot, &configuration, &api.version);
        health.history = api.history.as_ref().map(|history| json::history::health(&history.status()));
        Bytes::from(json::to_vec(&health))
    });
    answer(StatusCode::OK, JSON, body.await)
}

async fn metrics(State(api): State<Api>, headers: HeaderMap) -> Response {
    let accepted = |value: &HeaderValue| value.to_str().is_ok_and(|v| Format::from_accept(v) == Format::OpenMetrics);
    let open = headers.get_all(header::ACCEPT).iter().any(accepted);
    let format = if open { Format::OpenMetrics } else { Format::Classic };
    shown(&api, Page::Metrics(format), format.media_type(), &headers).await
}

async fn healthz(State(api): State<Api>) -> Response {
    // The collector owns the sender: when it is gone, what is shown here no longer changes.
    if api.sources.snapshots.has_changed().is_err() {
        return line(StatusCode::SERVICE_UNAVAILABLE, "the collector has stopped");
    }
    line(StatusCode::OK, "ok")
}

async fn readyz(State(api): State<Api>) -> Response {
    let readiness = api.sources.readiness.borrow().clone();
    match readiness {
        Readiness::Ready => line(StatusCode::OK, "ready"),
        Readiness::Starting => line(StatusCode::SERVICE_UNAVAILABLE, "probes are being attached"),
        Readiness::Failed(why) => {
            let why = printable(&why, 300);
            line(StatusCode::SERVICE_UNAVAILABLE, &format!("probes cannot be attached: {why}"))
        }
    }
}

pub(super) async fn not_found() -> Response {
    failure(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path; / lists what there is")
}

fn line(status: StatusCode, text: &str) -> Response {
    answer(status, TEXT, Bytes::from(format!("{text}\n")))
}

pub(super) fn failure(status: StatusCode, code: &str, message: &str) -> Response {
    answer(status, JSON, Bytes::from(json::to_vec(&json::failure(code, message))))
}

pub(super) fn answer(status: StatusCode, media_type: &'static str, body: Bytes) -> Response {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let headers: [(HeaderName, &'static str); 3] = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_read_whole_or_refused_by_name() {
        assert_eq!(selection(""), Ok(Selection::default()));
        assert_eq!(selection("limit=3&pid=7"), Ok(Selection { pid: Some(7), limit: Some(3) }));
        for (query, word) in [("limit=minus", "limit"), ("pid=1&pid=2", "pid"), ("since=1", "since"), ("pid", "pid")] {
            assert!(selection(query).is_err_and(|message| message.contains(word)), "{query}");
        }
    }

    #[test]
    fn a_sequence_is_read_whole_or_refused_by_name() {
        assert_eq!((since(""), since("since=42")), (Ok(None), Ok(Some(42))));
        for query in ["since", "since=", "since=-1", "since=1&since=2", "limit=1", "since=18446744073709551616"] {
            assert!(since(query).is_err_and(|message| message.contains("since") || message.contains("sequence")));
        }
    }
}
