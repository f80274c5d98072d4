//! Accepts connections and bounds what each may take: number, time, headers.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::listen::Stream;
use super::places::{Place, Places, Sent};
use super::{Access, Api, Limits, Listener, router};

/// Headers of one request; more is answered with 431.
const MAX_HEADERS: usize = 32;
/// Bytes of one request's head, and of what is written at one time.
const MAX_BUFFER: usize = 16 * 1024;
/// Pause after a connection could not be accepted: no file descriptor is free, and trying at once would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` completes, then lets the answers under way end for [`Limits::drain`] at most.
///
/// hyper is used directly: axum's own server (0.8) has no timeout for the headers of a request.
pub async fn serve(listeners: Vec<Listener>, api: Api, limits: Limits, shutdown: impl Future<Output = ()>) {
    let accumulating = tokio::spawn(api.clone().accumulate());
    let (close, closing) = watch::channel(false);
    let places = Places::new(limits.connections);
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let at = Common {
            router: router(api.clone(), listener.listen()),
            access: api.sources.access.clone(),
            limits,
            closing: closing.clone(),
        };
        accepting.spawn(accept(listener, at, places.clone()));
    }
    shutdown.await;
    close.send_replace(true);
    while accepting.join_next().await.is_some() {}
    accumulating.abort();
    // It was told to end; that it did is all that is left to know.
    let _ = accumulating.await;
}

/// What connections at one place have in common.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) router: Router,
    pub(super) access: watch::Receiver<Arc<Access>>,
    pub(super) limits: Limits,
    pub(super) closing: watch::Receiver<bool>,
}

async fn accept(listener: Listener, at: Common, places: Places) {
    let mut connections = JoinSet::new();
    let mut closing = at.closing.clone();
    loop {
        let accepted = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok(stream) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        let place = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => break,
            place = places.take() => place,
        };
        let at = at.clone();
        connections.spawn(async move {
            match stream {
                Stream::Tcp(stream) => tcp(stream, at, &place).await,
                Stream::Unix(stream) => connection(stream, at, &place).await,
            }
        });
    }
    drop(listener);
    let _ = timeout(at.limits.drain, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

async fn tcp(stream: TcpStream, at: Common, place: &Place) {
    let tls = at.access.borrow().tls.clone();
    match tls {
        None => connection(stream, at, place).await,
        // A client that does not finish the handshake has as long as for a request's headers.
        Some(tls) => {
            let mut closing = at.closing.clone();
            let handshake = timeout(at.limits.header_timeout, tls.accept(stream));
            let shaken = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => return,
                () = place.displaced() => return,
                shaken = handshake => shaken,
            };
            if let Ok(Ok(stream)) = shaken {
                connection(stream, at, place).await;
            }
        }
    }
}

pub(super) async fn connection<S>(stream: S, at: Common, place: &Place)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Common { router, limits, mut closing, .. } = at;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    let (seat, router) = (place.seat(), TowerToHyperService::new(router));
    let service = service_fn(move |request: Request<Incoming>| {
        let (answering, answer) = (seat.answer(), router.call(request));
        async move { Ok::<_, Infallible>(answer.await?.map(|body| Sent::new(body, answering))) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // How a client leaves is its own affair.
        _ = connection.as_mut() => return,
        () = place.displaced() => return,
        _ = closing.wait_for(|closing| *closing) => {}
        () = sleep(limits.lifetime) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.drain, connection).await;
}
