//! How long it takes to find the probes of this machine's libc, without its debug file.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use malloc_daemon::targets::analyse;

const PLACES: [&str; 4] =
    ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/usr/lib/libc.so.6"];

fn stripped_libc(criterion: &mut Criterion) {
    let Some(bytes) = PLACES.iter().find_map(|path| std::fs::read(path).ok()) else {
        criterion.bench_function("skipped: no libc.so.6 where it is looked for", |bencher| bencher.iter(|| ()));
        return;
    };
    criterion.bench_function("locate a stripped libc", |bencher| {
        bencher.iter(|| analyse(black_box(&*bytes), None).expect("a libc"));
    });
}

criterion_group!(benches, stripped_libc);
criterion_main!(benches);
