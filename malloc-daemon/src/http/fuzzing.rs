//! Requests as they come over the wire, for the fuzzer: through hyper, the door and every path, without a socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Query;
use axum::http::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::places::Places;
use super::serve::{Common, connection};
use super::{Access, Api, Limits, Listen, Readiness, Sources, history, router};
use crate::report::prometheus::Totals;
use crate::report::sample;

/// What a client sends at most: three times the longest head that is taken.
const SENT_BYTES: usize = 48 << 10;
/// The bytes of all answers to one connection: [`SENT_BYTES`] are at most some 1,500 requests, answers some 20 KiB each.
const ANSWER_BYTES: usize = 64 << 20;

/// A connection of which everything that the client sends is known beforehand.
struct Wire<'a> {
    sent: &'a [u8],
    answered: Vec<u8>,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.sent.split_at(self.sent.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.sent = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answered.extend_from_slice(bytes);
        assert!(self.answered.len() <= ANSWER_BYTES, "one connection takes no end of answers");
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A daemon's answers, without a daemon.
struct Served {
    runtime: Runtime,
    tcp: Common,
    unix: Common,
}

impl Served {
    fn new() -> Self {
        let snapshot = sample::snapshot(vec![sample::sqlite(), sample::hostile()]);
        // Who sends is gone, what was sent last stays.
        let (_, snapshots) = watch::channel(Arc::new(snapshot));
        let (_, readiness) = watch::channel(Readiness::Ready);
        let (_, configuration) = watch::channel(Arc::default());
        let (_, access) = watch::channel(Arc::<Access>::default());
        let (_, closing) = watch::channel(false);
        let sources = Sources { snapshots, readiness, configuration, access: access.clone() };
        let api = Api::new(sources, Totals::default(), "0.1.0");
        let place = |listen: &str| {
            let listen: Listen = listen.parse().expect("a place to listen at");
            let (access, closing) = (access.clone(), closing.clone());
            Common { router: router(api.clone(), &listen), access, limits: Limits::default(), closing }
        };
        let (tcp, unix) = (place("127.0.0.1:7878"), place("unix:/run/malloc-daemon.sock"));
        Self { runtime: Builder::new_current_thread().enable_time().build().expect("a runtime"), tcp, unix }
    }

    fn answers(&self, sent: &[u8]) -> Vec<u8> {
        let at = if sent.len().is_multiple_of(2) { &self.tcp } else { &self.unix };
        let mut wire = Wire { sent, answered: Vec::new() };
        self.runtime.block_on(async {
            let place = Places::new(1).take().await;
            connection(&mut wire, at.clone(), &place).await;
        });
        wire.answered
    }
}

/// What a client sends over one connection, and its first line as a question to the history.
pub fn http(bytes: &[u8]) {
    thread_local! {
        static SERVED: Served = Served::new();
    }
    let answered = SERVED.with(|served| served.answers(&bytes[..bytes.len().min(SENT_BYTES)]));
    assert!(answered.is_empty() || answered.starts_with(b"HTTP/1."), "an answer begins with its status");
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Ok(uri) = Uri::try_from(line)
        && let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
    {
        history::read_question(&pairs);
    }
}
