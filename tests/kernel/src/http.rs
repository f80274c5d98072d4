//! One blocking HTTP GET, enough to ask the daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::process::patience;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head, status line included.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Asks `address` (`127.0.0.1:PORT`) for `path`; `None` if nobody answers there.
///
/// # Panics
/// If the answer is no HTTP.
#[must_use]
pub fn try_get(address: &str, path: &str) -> Option<Answer> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(patience())).ok()?;
    exchange(stream, address, path)
}

/// The same over a socket in the file system.
///
/// # Panics
/// If the answer is no HTTP.
#[must_use]
pub fn try_get_unix(socket: &Path, path: &str) -> Option<Answer> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(patience())).ok()?;
    exchange(stream, "localhost", path)
}

fn exchange(mut stream: impl Read + Write, host: &str, path: &str) -> Option<Answer> {
    // HTTP/1.0: the body ends with the connection, never in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Some(Answer {
        status: status.unwrap_or_else(|| panic!("no status: {head:?}")),
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// The same, where somebody must answer.
///
/// # Panics
/// If nobody does.
#[must_use]
pub fn get(address: &str, path: &str) -> Answer {
    try_get(address, path).unwrap_or_else(|| panic!("no answer from {address}{path}"))
}
