//! Asks a running daemon over HTTP.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::http::Token;
use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Bytes of an answer that are read.
const LARGEST: usize = 64 << 20;
/// How long connecting and answering may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a daemon answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// `http://HOST:PORT`
    Tcp(String),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let host = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match host.filter(|host| host.contains(':') && !host.contains(['/', '?', '#', ' '])) {
            Some(host) => Ok(Self::Tcp(host.to_owned())),
            None => Err("write http://ADDRESS:PORT or unix:/PATH".to_owned()),
        }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host) => write!(f, "http://{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A good answer.
pub struct Answer {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// The answer to a GET, with the token that the daemon wants; one that is no success is an error with the daemon's own
/// words.
pub fn get(url: &Url, token: Option<&Token>, path_and_query: &str) -> anyhow::Result<Answer> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let answer = async {
        match url {
            Url::Tcp(host) => {
                let addresses: Vec<SocketAddr> =
                    host.to_socket_addrs().with_context(|| format!("{url}: no such address"))?.collect();
                let stream = TcpStream::connect(&*addresses).await.with_context(|| nobody(url))?;
                exchange(stream, host, token, path_and_query).await
            }
            Url::Unix(path) => {
                let stream = UnixStream::connect(path).await.with_context(|| nobody(url))?;
                exchange(stream, "localhost", token, path_and_query).await
            }
        }
    };
    let limited = async { tokio::time::timeout(PATIENCE, answer).await };
    let (status, answer) = runtime.block_on(limited).with_context(|| format!("{url} does not answer"))??;
    if status == StatusCode::UNAUTHORIZED {
        bail!(
            "{url} wants a token{}: name its file with --token-file",
            if token.is_some() { ", and not this one" } else { "" }
        );
    }
    if status != StatusCode::OK {
        bail!("{url}: {}", message(&answer.body).unwrap_or_else(|| status.to_string()));
    }
    Ok(answer)
}

fn nobody(url: &Url) -> String {
    format!("no daemon answers at {url}: start `malloc-daemon serve`, or name another with --url")
}

async fn exchange<S>(
    stream: S,
    host: &str,
    token: Option<&Token>,
    path_and_query: &str,
) -> anyhow::Result<(StatusCode, Answer)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.context("no HTTP is spoken there")?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get(path_and_query).header(header::HOST, host);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token.shown().context("the token is no text")?);
    }
    let request = request.body(Body::empty());
    let answer = sender.send_request(request.context("cannot ask")?).await.context("the connection broke")?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?.to_bytes().to_vec();
    // It has nothing left to do.
    connection.abort();
    Ok((status, Answer { headers, body }))
}

/// The message of an error document.
fn message(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("\"message\":\"")?;
    let (message, _) = rest.rsplit_once("\"}}")?;
    Some(crate::report::printable(&message.replace("\\\"", "\""), 300))
}

/// A value as it may stand in a query.
pub fn escaped(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_reads_back_from_its_text() {
        for text in ["http://127.0.0.1:7878", "unix:/run/x.sock", "http://[::1]:80"] {
            assert_eq!(text.parse::<Url>().unwrap().to_string(), text);
        }
        for text in ["", "127.0.0.1:7878", "https://x:1", "http://x", "unix:x", "http://x:1/y"] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_shown_and_a_refusal_names_the_remedy() {
        use std::io::{Read, Write};
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "0123456789abcdef").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let token = Token::read(&file).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::Tcp(listener.local_addr().unwrap().to_string());
        let daemon = std::thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    head.extend(byte);
                }
                let knows = String::from_utf8(head).unwrap().contains("authorization: Bearer 0123456789abcdef\r\n");
                let status = if knows { "200 OK" } else { "401 Unauthorized" };
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}").unwrap();
            }
        });
        assert_eq!(get(&url, Some(&token), "/v1/health").unwrap().body, b"{}");
        let refused = |token: Option<&Token>| get(&url, token, "/v1/health").err().unwrap().to_string();
        assert!(refused(None).ends_with("wants a token: name its file with --token-file"));
        std::fs::write(&file, "fedcba9876543210").unwrap();
        assert!(refused(Some(&Token::read(&file).unwrap())).contains("not this one"));
        daemon.join().unwrap();
    }

    #[test]
    fn the_words_of_a_refusal_are_told() {
        let body = br#"{"error":{"code":"bad_request","message":"from: \"x\" is no time"}}"#;
        assert_eq!(message(body).as_deref(), Some("from: \"x\" is no time"));
        assert_eq!(message(b"<html>"), None);
    }

    #[test]
    fn a_value_is_escaped_for_a_query() {
        assert_eq!(escaped("a b&c/é"), "a%20b%26c%2F%C3%A9");
    }
}
