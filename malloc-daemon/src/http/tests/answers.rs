//! What a client already has is not sent again, and what it takes packed comes packed.

use super::*;

/// What a client reads that asks once, and how the body came.
pub(super) async fn exchange_bytes(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    request: &str,
) -> (String, Vec<u8>) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let at = bytes.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let body = bytes.split_off(at + 4);
    (String::from_utf8(bytes).unwrap(), body)
}

#[tokio::test]
async fn a_large_answer_is_packed_for_those_who_take_it() {
    let served = sample_served().await;
    let plain = served.get("/v1/snapshot").await;
    let tag = plain.header("etag").unwrap().to_owned();
    for (headers, packed) in [("accept-encoding: gzip\r\n", true), ("accept-encoding: gzip;q=0\r\n", false)] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request = format!("GET /v1/snapshot HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        let (head, body) = exchange_bytes(&mut stream, &request).await;
        assert_eq!(head.contains("content-encoding: gzip\r\n"), packed, "{head}");
        assert!(head.contains("vary: accept-encoding\r\n"), "{head}");
        assert_eq!(head.contains(&format!("etag: {tag}\r\n")), !packed, "a packed answer has a tag of its own: {head}");
        if packed {
            assert!(body.len() * 3 < plain.body.len(), "{} of {}", body.len(), plain.body.len());
            let mut unpacked = String::new();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut unpacked).unwrap();
            assert_eq!(unpacked, plain.body);
        } else {
            assert_eq!(body, plain.body.as_bytes());
        }
    }
    assert!(served.ask("GET", "/healthz", "host: localhost\r\naccept-encoding: gzip\r\n").await.body == "ok\n");
    served.end().await;
}

#[tokio::test]
async fn what_a_client_has_is_not_sent_again() {
    let served = sample_served().await;
    for path in ["/v1/snapshot", "/v1/snapshot?since=1", "/v1/processes", "/v1/processes?since=1", "/metrics"] {
        let first = served.get(path).await;
        let tag = first.header("etag").unwrap().to_owned();
        let again = async || served.ask("GET", path, &format!("host: localhost\r\nif-none-match: {tag}\r\n")).await;
        let answer = again().await;
        assert_eq!((answer.status, answer.body.as_str(), answer.header("etag")), (304, "", Some(&*tag)), "{path}");
        let sequence = served.snapshots.borrow().sequence + 1;
        let next = Snapshot { sequence, ..sample::snapshot(vec![sample::sqlite()]) };
        served.snapshots.send_replace(Arc::new(next));
        let answer = again().await;
        assert_eq!(answer.status, 200, "{path}");
        assert_ne!(answer.header("etag"), Some(&*tag), "{path}");
    }
    // The same sequence of another run is another answer.
    let other = sample_served().await;
    let tags = [served.get("/v1/processes").await, other.get("/v1/processes").await];
    assert_ne!(tags[0].header("etag"), tags[1].header("etag"));
    other.end().await;
    served.end().await;
}

#[tokio::test]
async fn a_difference_has_what_changed_since_and_a_mark_when_it_is_whole() {
    let served = sample_served().await;
    let ask = async |since: u64| {
        let body = served.get(&format!("/v1/snapshot?since={since}")).await.body;
        serde_json::from_str::<serde_json::Value>(&body).unwrap()
    };
    let pids = |document: &serde_json::Value| {
        let processes = document["processes"].as_array().unwrap();
        processes.iter().map(|process| process["pid"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    // Nobody asked before: what changed since 41 is not known.
    let whole = ask(41).await;
    assert_eq!((&whole["whole"], &whole["sequence"], pids(&whole).len()), (&true.into(), &42.into(), 2));
    assert_eq!((ask(42).await["whole"].clone(), pids(&ask(42).await)), (false.into(), vec![]));
    let mut late = sample::at_depth_syscall();
    late.id.pid = 7;
    let next = Snapshot { sequence: 43, ..sample::snapshot(vec![sample::sqlite(), late]) };
    served.snapshots.send_replace(Arc::new(next));
    let document = ask(42).await;
    assert_eq!((&document["whole"], &document["since"], pids(&document)), (&false.into(), &42.into(), vec![7]));
    let hostile = sample::hostile();
    let gone = &document["gone"][0];
    assert_eq!((&gone["pid"], &gone["image_ns"]), (&hostile.id.pid.into(), &hostile.image_ns.into()));
    assert_eq!(document["gone"].as_array().unwrap().len(), 1);
    assert_eq!(ask(44).await["whole"], true, "a sequence that is yet to come");
    served.end().await;
}
