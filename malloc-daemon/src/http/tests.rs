//! Real requests over real sockets.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::report::sample;

mod access;
mod answers;
mod dashboard;

/// Longer than any answer takes, shorter than a hang.
const PATIENCE: Duration = Duration::from_secs(20);

struct Served {
    address: SocketAddr,
    snapshots: watch::Sender<Arc<Snapshot>>,
    readiness: watch::Sender<Readiness>,
    configuration: watch::Sender<Arc<Configuration>>,
    access: watch::Sender<Arc<Access>>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn served(snapshot: Snapshot, limits: Limits) -> Served {
    let listener = bind("127.0.0.1:0").await;
    let Listen::Tcp(address) = *listener.listen() else { unreachable!() };
    served_at(vec![listener], address, snapshot, limits).await
}

async fn bind(listen: &str) -> Listener {
    Listener::bind(&listen.parse().unwrap(), SocketOptions::default()).await.unwrap()
}

async fn served_at(listeners: Vec<Listener>, address: SocketAddr, snapshot: Snapshot, limits: Limits) -> Served {
    let (snapshots, snapshots_seen) = watch::channel(Arc::new(snapshot));
    let (readiness, readiness_seen) = watch::channel(Readiness::Starting);
    let (configuration, configuration_seen) = watch::channel(Arc::default());
    let named = Access { hosts: vec!["Prod-1.example".to_owned()], ..Access::default() };
    let (access, access_seen) = watch::channel(Arc::new(named));
    let (stop, stopped) = oneshot::channel::<()>();
    let sources = Sources {
        snapshots: snapshots_seen,
        readiness: readiness_seen,
        configuration: configuration_seen,
        access: access_seen,
    };
    let server = tokio::spawn(serve(listeners, Api::new(sources, Totals::default(), "0.1.0"), limits, async {
        let _ = stopped.await;
    }));
    Served { address, snapshots, readiness, configuration, access, stop, server }
}

async fn sample_served() -> Served {
    served(sample::snapshot(vec![sample::sqlite(), sample::hostile()]), Limits::default()).await
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    fn code(&self) -> String {
        let value: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert!(value["error"]["message"].is_string());
        value["error"]["code"].as_str().unwrap().to_owned()
    }
}

async fn exchange(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

impl Served {
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        exchange(&mut stream, &format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n")).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "host: localhost\r\n").await
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        timeout(PATIENCE, self.server).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn every_path_answers_with_its_document() {
    let served = sample_served().await;
    for (path, schema) in
        [("/v1/snapshot", true), ("/v1/processes", true), ("/v1/processes/4242", true), ("/v1/health", true)]
    {
        let answer = served.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}");
        let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(value["schema_version"] == 1, schema, "{path}");
        assert_eq!(value["sequence"], 42, "{path}");
    }
    let index = served.get("/").await;
    assert_eq!((index.status, index.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for path in ["/v1/snapshot", "/v1/processes", "/v1/health", "/metrics", "/healthz", "/readyz"] {
        assert!(index.body.contains(&format!("href=\"{path}\"")), "{path}");
    }
    served.end().await;
}

#[tokio::test]
async fn metrics_come_in_the_format_that_was_asked_for() {
    let served = sample_served().await;
    let classic = served.get("/metrics").await;
    assert_eq!(classic.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(classic.body.contains("# TYPE malloc_calls_total counter\n"));
    let accept = "host: localhost\r\naccept: application/openmetrics-text; version=1.0.0\r\n";
    let open = served.ask("GET", "/metrics", accept).await;
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(open.body.ends_with("# EOF\n"));
    served.end().await;
}

#[tokio::test]
async fn a_new_snapshot_is_shown_at_once() {
    let served = sample_served().await;
    assert!(served.get("/v1/snapshot").await.body.contains("\"sequence\":42,"));
    served.snapshots.send_replace(Arc::new(Snapshot { sequence: 43, ..sample::snapshot(Vec::new()) }));
    assert!(served.get("/v1/snapshot").await.body.contains("\"sequence\":43,"));
    served.end().await;
}

#[tokio::test]
async fn a_large_snapshot_is_answered_whole() {
    let processes = (1..=500).map(|pid| {
        let mut process = sample::sqlite();
        process.id.pid = pid;
        process
    });
    let served = served(sample::snapshot(processes.collect()), Limits::default()).await;
    let answer = served.get("/v1/snapshot").await;
    let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(value["processes"].as_array().unwrap().len(), 500);
    assert!(served.get("/metrics").await.body.contains("malloc_mmap_crossings_total{comm=\"sqlite3\"} 500\n"));
    served.end().await;
}

#[tokio::test]
async fn what_is_not_there_has_a_code() {
    let served = sample_served().await;
    for (path, status, code) in [
        ("/v1/processes/1", 404, "process_not_found"),
        ("/v1/processes/x", 400, "bad_request"),
        ("/v1/processes/-1", 400, "bad_request"),
        ("/v1/processes/4294967296", 400, "bad_request"),
        ("/v1/processes/%ff", 400, "bad_request"),
        ("/v2/snapshot", 404, "not_found"),
        ("/v1/snapshot/", 404, "not_found"),
        ("/v1/snapshot?since=x", 400, "bad_request"),
        ("/v1/processes?limit=4", 400, "bad_request"),
    ] {
        let answer = served.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
    }
    assert!(served.get("/v1/health?since=4").await.body.contains("since"));
    served.end().await;
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let served = sample_served().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        let answer = served.ask(method, "/v1/snapshot", "host: localhost\r\n").await;
        assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"), "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    let head = served.ask("HEAD", "/v1/snapshot", "host: localhost\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), served.get("/v1/snapshot").await.header("content-length"));
    served.end().await;
}

#[tokio::test]
async fn another_name_for_this_machine_is_refused() {
    let served = sample_served().await;
    for host in
        ["evil.example", "evil.example:7878", "localhost.evil.example", "localhost@evil.example", "x@localhost", ""]
    {
        let answer = served.ask("GET", "/v1/snapshot", &format!("host: {host}\r\n")).await;
        assert_eq!((answer.status, answer.code().as_str()), (421, "misdirected"), "{host}");
    }
    assert_eq!(served.ask("GET", "/healthz", "").await.status, 421);
    assert_eq!(served.ask("GET", "/healthz", "host: localhost\r\nhost: localhost\r\n").await.status, 421);
    assert_eq!(served.ask("GET", "http://evil.example/healthz", "host: localhost\r\n").await.status, 421);
    for host in ["localhost", "LOCALHOST:7878", "127.0.0.1:1", "[::1]:7878", "prod-1.EXAMPLE"] {
        assert_eq!(served.ask("GET", "/healthz", &format!("host: {host}\r\n")).await.status, 200, "{host}");
    }
    served.end().await;
}

#[tokio::test]
async fn readiness_follows_the_probes_and_health_the_collector() {
    let served = sample_served().await;
    assert_eq!(served.get("/readyz").await.status, 503);
    served.readiness.send_replace(Readiness::Failed("no\x1b permission".to_owned()));
    assert_eq!(served.get("/readyz").await.body, "probes cannot be attached: no\\x1b permission\n");
    served.readiness.send_replace(Readiness::Ready);
    assert_eq!((served.get("/readyz").await.status, served.get("/healthz").await.status), (200, 200));
    let Served { address, snapshots, stop, server, .. } = served;
    drop(snapshots);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let answer = exchange(&mut stream, "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(answer.status, 503);
    drop(stop);
    timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_headers_is_closed() {
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let served = served(sample::snapshot(Vec::new()), limits).await;
    for begin in ["", "GET /healthz HTTP/1.1\r\nhost: loc"] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // The server ends the connection, by an end of the stream or a reset.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection is still open");
    }
    served.end().await;
}

/// The bounds as they are served: a thousand clients that never finish take no place for longer than 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_half_open_requests_are_closed_and_hold_nobody_up() {
    let served = served(sample::snapshot(Vec::new()), Limits { connections: 2_000, ..Limits::default() }).await;
    let begun = Instant::now();
    let mut half = Vec::new();
    for index in 0..1000 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let begin: &[u8] = if index % 2 == 0 { b"" } else { b"GET /healthz HTTP/1.1\r\nhost: loc" };
        stream.write_all(begin).await.unwrap();
        half.push(tokio::spawn(async move {
            let mut rest = Vec::new();
            let opened = Instant::now();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection is still open");
            opened.elapsed()
        }));
    }
    let asked = Instant::now();
    assert_eq!(served.get("/healthz").await.status, 200);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    for stream in half {
        let open = stream.await.unwrap();
        assert!(open >= Duration::from_secs(3) && open < Duration::from_secs(10), "{open:?}");
    }
    assert!(begun.elapsed() < PATIENCE);
    served.end().await;
}

#[tokio::test]
async fn a_connection_that_rests_between_requests_is_closed() {
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let served = served(sample::snapshot(Vec::new()), limits).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let answer = exchange(&mut stream, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
    served.end().await;
}

#[tokio::test]
async fn headers_beyond_the_bound_are_refused() {
    let served = sample_served().await;
    let many: String = (0..40).map(|index| format!("x-{index}: 1\r\n")).collect();
    assert_eq!(served.ask("GET", "/healthz", &format!("host: localhost\r\n{many}")).await.status, 431);
    served.end().await;
}

#[tokio::test]
async fn a_connection_that_asks_nothing_gives_its_place_to_a_new_one() {
    let hour = Duration::from_secs(3600);
    let limits = Limits { connections: 1, header_timeout: hour, lifetime: hour, ..Limits::default() };
    let served = served(sample::snapshot(Vec::new()), limits).await;
    let mut half = TcpStream::connect(served.address).await.unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: loc").await.unwrap();
    for _ in 0..3 {
        assert_eq!(served.get("/healthz").await.status, 200);
    }
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, half.read_to_end(&mut rest)).await.expect("the connection is still open");
    assert_eq!(rest, b"");
    served.end().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_rests() {
    let limits =
        Limits { header_timeout: Duration::from_secs(3600), lifetime: Duration::from_secs(3600), ..Limits::default() };
    let served = served(sample::snapshot(Vec::new()), limits).await;
    let mut resting = TcpStream::connect(served.address).await.unwrap();
    resting.write_all(b"GET /healthz HTTP/1.1\r\nhost: loc").await.unwrap();
    assert_eq!(served.get("/healthz").await.status, 200);
    let begun = Instant::now();
    let address = served.address;
    served.end().await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_old_connection_is_closed_although_its_client_does_not_read() {
    let limits = Limits {
        lifetime: Duration::from_millis(200),
        drain: Duration::from_millis(200),
        connections: 1,
        ..Limits::default()
    };
    let processes = (1..=3000).map(|pid| {
        let mut process = sample::sqlite();
        process.id.pid = pid;
        process
    });
    let served = served(sample::snapshot(processes.collect()), limits).await;
    let mut deaf = TcpStream::connect(served.address).await.unwrap();
    deaf.write_all(b"GET /v1/snapshot HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    // The only place becomes free although the answer was never read.
    assert_eq!(served.get("/healthz").await.status, 200);
    served.end().await;
}

#[tokio::test]
async fn a_socket_in_the_file_system_answers_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = bind(&format!("unix:{}", path.display())).await;
    let tcp = bind("127.0.0.1:0").await;
    let Listen::Tcp(address) = *tcp.listen() else { unreachable!() };
    let served = served_at(vec![listener, tcp], address, sample::snapshot(Vec::new()), Limits::default()).await;
    served.readiness.send_replace(Readiness::Ready);
    // Both places answer; a token is asked for where permissions do not decide.
    served.access.send_replace(Arc::new(Access { token: Some(access::token()), ..Access::default() }));
    assert_eq!(served.get("/readyz").await.status, 401);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let answer = exchange(&mut stream, "GET /readyz HTTP/1.1\r\nhost: anything\r\nconnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
    served.end().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn health_tells_which_configuration_is_in_force() {
    let served = sample_served().await;
    let configuration = async || {
        let health: serde_json::Value = serde_json::from_str(&served.get("/v1/health").await.body).unwrap();
        health["configuration"].clone()
    };
    assert_eq!(configuration().await["file"], serde_json::Value::Null);
    let refused = Some((7, "c.toml:1:1: wrong".to_owned()));
    let file = Some("c.toml".to_owned());
    served.configuration.send_replace(Arc::new(Configuration { file, refused, ..Configuration::default() }));
    let told = configuration().await;
    assert_eq!((&told["file"], &told["refused"]["why"]), (&"c.toml".into(), &"c.toml:1:1: wrong".into()));
    served.end().await;
}

#[tokio::test]
async fn a_process_that_came_and_went_between_two_scrapes_is_counted() {
    let served = served(sample::snapshot(vec![sample::sqlite()]), Limits::default()).await;
    assert!(served.get("/metrics").await.body.contains("malloc_mmap_crossings_total{comm=\"sqlite3\"} 1\n"));
    let mut other = sample::sqlite();
    other.id.pid = 7;
    let mut later = Snapshot { sequence: 43, ..sample::snapshot(vec![other]) };
    // One that ends stays in the snapshots for a minute.
    later.window.duration_ms += 15_000;
    served.snapshots.send_replace(Arc::new(later));
    // The accumulator runs on this thread as soon as the test waits for the answer.
    assert_eq!(served.get("/healthz").await.status, 200);
    served.snapshots.send_replace(Arc::new(Snapshot { sequence: 44, ..sample::snapshot(Vec::new()) }));
    assert!(served.get("/metrics").await.body.contains("malloc_mmap_crossings_total{comm=\"sqlite3\"} 2\n"));
    served.end().await;
}
