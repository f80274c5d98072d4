//! The page at `/`, as a browser gets it; its modules draw what this daemon answers.

use super::*;

/// Files that the page asks for.
const FILES: [&str; 12] = [
    "/",
    "/dashboard/style.css",
    "/dashboard/main.js",
    "/dashboard/ask.js",
    "/dashboard/charts.js",
    "/dashboard/columns.js",
    "/dashboard/dom.js",
    "/dashboard/figures.js",
    "/dashboard/health.js",
    "/dashboard/list.js",
    "/dashboard/process.js",
    "/dashboard/table.js",
];

#[tokio::test]
async fn the_page_takes_nothing_from_elsewhere_and_nothing_inline() {
    // PAGE-1
    let served = sample_served().await;
    for path in FILES {
        let answer = served.get(path).await;
        let media = match path.rsplit_once('.') {
            None => "text/html; charset=utf-8",
            Some((_, "css")) => "text/css; charset=utf-8",
            Some(_) => "text/javascript; charset=utf-8",
        };
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(media)), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        for part in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]
        {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
        let outside = answer.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http://") && !outside.contains("https://"), "{path}");
    }
    for path in ["/dashboard/", "/dashboard/index.html", "/dashboard/..%2fmod.rs", "/dashboard/%ff"] {
        assert_eq!(served.get(path).await.status, 404, "{path}");
    }
    served.end().await;
}

#[tokio::test]
async fn what_a_browser_has_of_the_page_is_not_sent_again() {
    let served = sample_served().await;
    for path in FILES {
        let first = served.get(path).await;
        let tag = first.header("etag").unwrap().to_owned();
        let again = served.ask("GET", path, &format!("host: localhost\r\nif-none-match: {tag}\r\n")).await;
        assert_eq!((again.status, again.body.as_str(), again.header("etag")), (304, "", Some(&*tag)), "{path}");
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept-encoding: gzip\r\n\r\n");
        let (head, body) = answers::exchange_bytes(&mut stream, &request).await;
        assert!(head.contains("content-encoding: gzip\r\n") && !head.contains(&tag), "{head}");
        let mut unpacked = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut unpacked).unwrap();
        assert_eq!(unpacked, first.body, "{path}");
    }
    served.end().await;
}

#[tokio::test]
async fn the_page_is_shown_without_the_token_that_the_documents_want() {
    // PAGE-2
    let served = sample_served().await;
    served.access.send_replace(Arc::new(Access { token: Some(access::token()), ..Access::default() }));
    for path in FILES {
        assert_eq!(served.get(path).await.status, 200, "{path}");
        assert_eq!(served.ask("GET", path, "host: other.example\r\n").await.status, 421, "{path}");
    }
    for path in ["/v1/processes?since=0", "/v1/health", "/dashboardx", "//", "/metrics"] {
        assert_eq!(served.get(path).await.status, 401, "{path}");
    }
    served.end().await;
}

#[cfg(feature = "compilers")]
mod drawn {
    use super::*;
    use crate::aggregate::model::*;
    use crate::report::printable;

    const MARKUP: &str = "<img src=x onerror=alert(1)>";
    const SCRIPT: &str = "<script>x()\x1b\u{202e}";

    fn stack() -> Arc<Stack> {
        let known = Frame {
            function: Some(MARKUP.to_owned()),
            file: Some("/src/\u{2028}x.c".to_owned()),
            line: Some(7),
            module: Some("/bin/x".to_owned()),
            offset: Some(0x1234),
            inlined: true,
            build_id: None,
        };
        Arc::new(Stack { frames: vec![Frame::default(), known], cut: Some("\x1b[2J".to_owned()) })
    }

    fn estimated() -> Process {
        let mut process = sample::sqlite();
        process.id.pid = 5;
        let estimate =
            Estimate { coverage_ppm: 250_000, calls_95: Some((600_000, 640_000)), bytes_95: Some((1, 1 << 40)) };
        process.funnel.call_estimate = Some(estimate);
        process.funnel.arena_estimate = Some(Estimate { calls_95: None, bytes_95: None, ..estimate });
        for function in process.functions.iter_mut().flatten() {
            function.estimate = Some(estimate);
        }
        process
    }

    /// Names chosen to harm wherever one is shown.
    fn hostile() -> Process {
        let mut process = sample::hostile();
        process.comm = SCRIPT.to_owned();
        process.cgroup = Some(format!("/\"'{MARKUP}"));
        process.heap_unread = Some(MARKUP.to_owned());
        process.heap = None;
        process
    }

    fn of(pid: u32) -> Process {
        let mut process = sample::sqlite();
        process.id.pid = pid;
        process
    }

    fn snapshot_of(mut processes: Vec<Process>) -> Snapshot {
        processes.sort_by_key(|process| process.id);
        let told = sample::hostile();
        let raise = Raise {
            number: 1,
            id: told.id,
            comm: SCRIPT.to_owned(),
            tid: 667,
            ns: 5,
            unix_ms: 1_700_000_001_000,
            from_bytes: 131_072,
            to_bytes: 1_052_672,
            chunk_bytes: Some(1_052_672),
            stack: Some(stack()),
            mapped_by: None,
        };
        let seen_later = Raise { number: 2, from_bytes: 0, chunk_bytes: None, stack: None, ..raise.clone() };
        let share = StackShare { calls: 1, bytes: 4096, samples: 1, stack: stack() };
        let stacks = CrossingStacks { id: told.id, image_ns: told.image_ns, samples: 1, stacks: vec![share] };
        let mut snapshot = sample::snapshot(processes);
        snapshot.raises = vec![Arc::new(raise), Arc::new(seen_later)];
        snapshot.stacks = vec![Arc::new(stacks)];
        snapshot
    }

    #[tokio::test]
    async fn the_modules_of_the_page_draw_every_document_and_no_name_becomes_markup() {
        // PAGE-1
        let first = vec![sample::sqlite(), sample::at_depth_syscall(), hostile(), estimated(), of(9)];
        let mut grown = sample::sqlite();
        grown.funnel.call = Some(Count { calls: 619_427, bytes: 61_298_567 });
        let mut guessed = estimated();
        guessed.funnel.call = Some(Count { calls: 618_500, bytes: 61_240_000 });
        let next = vec![grown, sample::at_depth_syscall(), hostile(), guessed, of(8)];

        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let served = served(snapshot_of(first), Limits::default()).await;
        let save = async |name: &str, path: &str| {
            let answer = served.get(path).await;
            assert_eq!(answer.status, 200, "{path}");
            write(&format!("{name}.json"), &answer.body);
        };
        save("list-1", "/v1/processes?since=0").await;
        save("health", "/v1/health").await;
        for pid in [4242, 77, 666, 5] {
            save(&format!("one-{pid}"), &format!("/v1/processes/{pid}")).await;
            save(&format!("raises-{pid}"), &format!("/v1/raises?pid={pid}")).await;
            save(&format!("stacks-{pid}"), &format!("/v1/crossings?by=stack&pid={pid}&limit=20")).await;
        }
        let window = Window { start_unix_ms: 1_700_000_000_000, end_unix_ms: 1_700_000_012_000, duration_ms: 12_000 };
        let lossy = sample::lossy();
        let probes = Snapshot { sequence: 43, window, ..snapshot_of(next) };
        let losses = Snapshot { probes: lossy.probes, losses: lossy.losses, complete: false, ..probes };
        served.snapshots.send_replace(Arc::new(losses));
        save("list-2", "/v1/processes?since=42").await;
        save("health-lossy", "/v1/health").await;
        for path in FILES.iter().filter(|path| path.ends_with(".js")) {
            write(path.trim_start_matches("/dashboard/"), &served.get(path).await.body);
        }
        write("index.html", &served.get("/").await.body);
        served.end().await;

        let names = ["a\\b", "\x1b[2J\u{9b}x", "a\u{202e}b\u{fe0f}\u{e0041}", "é漢字<>&\"'", &"x".repeat(70)];
        let escaped: Vec<(&str, String)> = names.iter().map(|name| (*name, printable(name, 64))).collect();
        write("printable.json", &serde_json::to_string(&escaped).unwrap());
        let sizes = [0, 999, 1000, 999_949, 999_950, 61_234_567, 1 << 40];
        let sizes: Vec<(u64, String)> = sizes.iter().map(|size| (*size, crate::report::units::bytes(*size))).collect();
        write("bytes.json", &serde_json::to_string(&sizes).unwrap());
        write("package.json", "{\"type\": \"module\"}");
        write("stub.mjs", include_str!("page/stub.mjs"));
        write("check.mjs", include_str!("page/check.mjs"));
        write("flow.mjs", include_str!("page/flow.mjs"));
        for (script, says) in [("check.mjs", "drawn\n"), ("flow.mjs", "flows\n")] {
            let node = std::process::Command::new("node").arg(script).current_dir(folder.path()).output();
            let node = node.expect("node is there (cargo xtask setup)");
            let said = [node.stdout, node.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            assert!(node.status.success() && said[0] == says, "{script}: {}{}", said[0], said[1]);
        }
    }
}
