use malloc_daemon::targets::locate;
#[test]
fn dev() {
    for suite in ["bullseye", "bookworm", "trixie", "sid", "experimental"] {
        for arch in ["amd64", "arm64"] {
            if std::env::var("ONLY").is_ok_and(|o| o != format!("{suite}-{arch}")) {
                continue;
            }
            let dir = format!("/tmp/libcs/x/{suite}-{arch}");
            let t = if arch == "amd64" { "x86_64-linux-gnu" } else { "aarch64-linux-gnu" };
            let p = [format!("{dir}/lib/{t}/libc.so.6"), format!("{dir}/usr/lib/{t}/libc.so.6")];
            let bytes = p.iter().find_map(|p| std::fs::read(p).ok()).unwrap();
            let id = malloc_daemon::targets::elf::build_id(&*bytes).unwrap().to_string();
            let dbg = std::fs::read(format!("{dir}/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..])).unwrap();
            let start = std::time::Instant::now();
            let inferred = locate(&*bytes, None).unwrap();
            let took = start.elapsed();
            let truth = locate(&*bytes, Some(&*dbg)).unwrap();
            println!("=== {suite} {arch} {:?} {took:?} by {:?}", inferred.version(), inferred.located_by);
            println!(
                "mp {:?} {:?} arena {:?} {:?} {:?}",
                inferred.mp == truth.mp,
                inferred.mp.map(|m| m.layout),
                inferred.main_arena == truth.main_arena,
                inferred.arena_layout,
                truth.arena_layout
            );
            for m in &inferred.missing {
                println!("  missing {:?} {}: {}", m.depth, m.what, m.why);
            }
            for m in &truth.missing {
                println!("  truth missing {:?} {}: {}", m.depth, m.what, m.why);
            }
            let base =
                |f: &malloc_daemon::targets::locate::AllocatorFunction| f.name.split('.').next().unwrap().to_owned();
            for f in &inferred.functions {
                if matches!(
                    f.source,
                    malloc_daemon::targets::symbols::Source::Inferred | malloc_daemon::targets::symbols::Source::Usdt
                ) {
                    let t = truth.functions.iter().find(|t| t.vaddr == f.vaddr);
                    println!(
                        "  {} {:#x}+{} {:?} {}",
                        f.name,
                        f.vaddr,
                        f.size,
                        f.source,
                        match t {
                            None => "?? no such function".into(),
                            Some(t) if base(t) == base(f) =>
                                format!("ok {} {}", t.name, if t.size == f.size { "" } else { "SIZE" }),
                            Some(t) => format!("WRONG {}", t.name),
                        }
                    );
                }
            }
            let key = |l: &malloc_daemon::targets::Located| {
                l.hooks
                    .iter()
                    .map(|h| {
                        (h.file_offset, format!("{:?}", h.role), format!("{}+{:#x}", h.symbol, h.offset_in_symbol))
                    })
                    .collect::<Vec<_>>()
            };
            let (a, b) = (key(&inferred), key(&truth));
            for x in &b {
                if !a.iter().any(|y| (y.0, &y.1) == (x.0, &x.1)) {
                    println!("  lost hook {x:x?}");
                }
            }
            for x in &a {
                if !b.iter().any(|y| (y.0, &y.1) == (x.0, &x.1)) {
                    println!("  extra hook {x:x?}");
                }
            }
            println!("  hooks {} truth {}, usdt {}", a.len(), b.len(), inferred.usdt.len());
        }
    }
}
