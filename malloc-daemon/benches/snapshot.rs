//! How long a thousand processes take from rows to a snapshot, and from a snapshot to JSON and metrics.

mod rows;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use malloc_common::depth::Depth;
use malloc_daemon::aggregate::model::Snapshot;
use malloc_daemon::aggregate::{Aggregate, Facts, Keep, Moment};
use malloc_daemon::collect::{RawImage, RawSnapshot};
use malloc_daemon::report::{json, prometheus};
use rows::rows;

fn snapshot(raw: &RawSnapshot) -> Snapshot {
    let mut aggregate =
        Aggregate::new(Keep { ended_ns: 0, ended_images: 0, killed_ns: 0, killed_images: 0, unchanged_ns: 0 });
    aggregate.apply(raw, Moment::default(), &|_: &RawImage| Facts { depth: Depth::Call, ..Facts::default() })
}

fn thousand(criterion: &mut Criterion) {
    let raw = rows();
    criterion.bench_function("aggregate 1,000 processes", |bencher| bencher.iter(|| snapshot(black_box(&raw))));
    let made = snapshot(&raw);
    criterion.bench_function("1,000 processes as JSON", |bencher| {
        bencher.iter(|| json::to_vec(&json::snapshot(black_box(&made))));
    });
    criterion.bench_function("1,000 processes as a list", |bencher| {
        bencher.iter(|| json::to_vec(&json::process_list(black_box(&made))));
    });
    let mut totals = prometheus::Totals::default();
    totals.feed(&made);
    criterion.bench_function("1,000 processes as metrics", |bencher| {
        bencher.iter(|| prometheus::render(black_box(&totals), "0", prometheus::Format::OpenMetrics));
    });
}

criterion_group!(benches, thousand);
criterion_main!(benches);
