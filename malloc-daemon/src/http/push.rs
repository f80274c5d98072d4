//! Pushes the metrics to a collector, for fleets that do not scrape: OTLP over HTTP, off unless asked for.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Api;
use super::pages::Page;
use crate::report::otlp::{Origin, request};
use crate::report::printable;
use crate::report::prometheus::Format;

/// How long one push may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read of a refusal.
const REFUSAL_BYTES: usize = 4096;

/// A collector: `http://HOST[:PORT][/PATH]`, by default port 4318 and `/v1/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    authority: String,
    path: String,
}

/// A text that names no collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no collector: give http://HOST:PORT/v1/metrics; for TLS let a collector on this machine pass it on")]
pub struct CollectorParseError(String);

impl FromStr for Collector {
    type Err = CollectorParseError;

    fn from_str(text: &str) -> Result<Self, CollectorParseError> {
        let wrong = || CollectorParseError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|a| uri.scheme_str() == Some("http") && !a.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?;
        let authority = match authority.port_u16() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:4318"),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { authority, path: if path == "/" { "/v1/metrics".to_owned() } else { path.to_owned() } })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Pushes for ever. A collector that does not answer is tried again at the next turn: counters go on counting, so that
/// nothing is lost but resolution.
pub async fn push(api: Api, to: Collector, interval: Duration) {
    let mut turns = tokio::time::interval(interval);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut well = true;
    loop {
        turns.tick().await;
        let pushed = tokio::time::timeout(PATIENCE, once(&api, &to, &host)).await;
        let failure = pushed.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))).err();
        // Said when it begins and when it ends, not at every turn.
        match (&failure, well) {
            (Some(why), true) => tracing::warn!("cannot push metrics to {to}: {why}; trying on"),
            (None, false) => tracing::warn!("metrics reach {to} again"),
            _ => {}
        }
        well = failure.is_none();
    }
}

async fn once(api: &Api, to: &Collector, host: &str) -> Result<(), String> {
    let pages = api.pages();
    let (page, _) = api.page(&pages, Page::Metrics(Format::OpenMetrics), false).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let origin = Origin {
        version: &api.version,
        host,
        start_unix_ms: pages.snapshot.window.start_unix_ms,
        now_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    };
    let body = request(&String::from_utf8_lossy(&page), &origin);
    send(to, Bytes::from(body)).await
}

async fn send(to: &Collector, body: Bytes) -> Result<(), String> {
    let stream = TcpStream::connect(&to.authority).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let post = Request::post(&to.path)
        .header(HOST, &to.authority)
        .header(CONTENT_TYPE, crate::report::otlp::MEDIA_TYPE)
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender.send_request(post).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let told =
            Limited::new(answer.into_body(), REFUSAL_BYTES).collect().await.map(http_body_util::Collected::to_bytes);
        let told = told.unwrap_or_default();
        Err(format!("it answers {status}: {}", printable(&String::from_utf8_lossy(&told), 200)))
    };
    tokio::pin!(exchange);
    tokio::select! {
        told = &mut exchange => told,
        ended = connection => match ended {
            // The answer may have come with the end of the connection.
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn a_collector_is_an_http_address_with_the_usual_port_and_path() {
        let parse = |text: &str| text.parse::<Collector>().map(|collector| collector.to_string());
        assert_eq!(parse("http://localhost").as_deref(), Ok("http://localhost:4318/v1/metrics"));
        assert_eq!(
            parse("http://10.0.0.1:9090/api/v1/otlp/v1/metrics").as_deref(),
            Ok("http://10.0.0.1:9090/api/v1/otlp/v1/metrics")
        );
        assert_eq!(parse("http://[::1]:4318").as_deref(), Ok("http://[::1]:4318/v1/metrics"));
        for wrong in ["https://collector", "collector:4318", "http://user@collector", "", "http://"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    async fn answers_with(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to =
            format!("http://{}/v1/metrics", listener.local_addr().expect("an address")).parse().expect("a collector");
        let collector = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut seen = Vec::new();
            while !seen.ends_with(b"{\"x\":1}") {
                let mut bytes = [0; 1024];
                let read = stream.read(&mut bytes).await.expect("a request");
                assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
                seen.extend_from_slice(&bytes[..read]);
            }
            stream.write_all(answer.as_bytes()).await.expect("an answer");
            String::from_utf8(seen).expect("text")
        });
        let sent = send(&to, Bytes::from_static(b"{\"x\":1}")).await;
        let seen = collector.await.expect("the collector");
        assert!(seen.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("content-type: application/x-protobuf\r\n"), "{seen}");
        sent
    }

    #[tokio::test]
    async fn a_push_is_one_post_and_its_refusal_is_told_in_the_collectors_words() {
        assert_eq!(answers_with("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await, Ok(()));
        let refused = answers_with("HTTP/1.1 415 Unsupported\r\ncontent-length: 4\r\n\r\nno\x1bo").await;
        let why = refused.expect_err("a refusal");
        assert!(why.starts_with("it answers 415") && !why.contains('\x1b'), "{why}");
        assert!(answers_with("").await.is_err());
    }
}
