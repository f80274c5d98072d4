//! How long it takes to find the probes of this machine's libc, without its debug file: anew, and from what was inferred
//! before.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use malloc_daemon::report::inference::{decode, encode};
use malloc_daemon::targets::locate::analyse_knowing;
use malloc_daemon::targets::{ContentId, analyse};

const PLACES: [&str; 4] =
    ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/usr/lib/libc.so.6"];

fn stripped_libc(criterion: &mut Criterion) {
    let Some(bytes) = PLACES.iter().find_map(|path| std::fs::read(path).ok()) else {
        criterion.bench_function("skipped: no libc.so.6 where it is looked for", |bencher| bencher.iter(|| ()));
        return;
    };
    let (_, made) = analyse_knowing(&*bytes, None::<&[u8]>, None).expect("a libc");
    let made = made.expect("nothing names its functions");
    let entry = encode(&ContentId::of(&bytes), &made);
    // As the service does both: what is in the folder is believed by the digest of the whole file.
    let mut group = criterion.benchmark_group("locate a stripped libc");
    group.bench_function("inferring", |bencher| {
        bencher.iter(|| {
            black_box(ContentId::of(black_box(&bytes)));
            analyse(black_box(&*bytes), None).expect("a libc")
        });
    });
    group.bench_function("taking from the cache", |bencher| {
        bencher.iter(|| {
            let before = decode(&ContentId::of(black_box(&bytes)), black_box(&entry)).expect("an entry");
            analyse_knowing(black_box(&*bytes), None::<&[u8]>, Some(&before)).expect("a libc")
        });
    });
    group.finish();
    criterion.bench_function("know a libc by its content", |bencher| {
        bencher.iter(|| ContentId::of(black_box(&bytes)));
    });
}

criterion_group!(benches, stripped_libc);
criterion_main!(benches);
