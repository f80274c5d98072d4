//! Both formats of the same snapshot, read back.

use std::io::Read;

use prost::Message;

use super::message::{Location, Profile};
use super::*;
use crate::aggregate::model::{Count, CrossingStacks, Frame};
use crate::report::sample;

fn frame(function: &str, line: u32, inlined: bool) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        module: Some("/usr/bin/server".to_owned()),
        offset: Some(0x1000 + u64::from(line)),
        file: Some("/src/buffers.c".to_owned()),
        line: Some(line),
        inlined,
        build_id: Some("ab12".into()),
    }
}

/// 90 of 100 crossings stood for by two stacks; three raises, one with a stack, one of which nothing is kept.
fn snapshot() -> Snapshot {
    let mut process = sample::sqlite();
    process.crossings.as_mut().expect("measured").count = Count { calls: 100, bytes: 100_000 };
    process.threshold.as_mut().expect("measured").raises = 3;
    let libc = Frame { module: Some("/usr/lib/libc.so.6".to_owned()), offset: Some(0x99), ..Frame::default() };
    let one = Stack { frames: vec![libc.clone(), frame("fill", 7, true), frame("grow", 8, false)], cut: None };
    let hostile = Frame { function: Some("a;b\n\x1b[2J c".to_owned()), ..Frame::default() };
    let other = Stack { frames: vec![libc, hostile], cut: Some("the copied part of the stack ends".to_owned()) };
    let share =
        |calls, stack: &Stack| StackShare { calls, bytes: calls * 1000, samples: 1, stack: Arc::new(stack.clone()) };
    let stacks = vec![share(60, &one), share(30, &other)];
    let told = CrossingStacks { id: process.id, image_ns: process.image_ns, samples: 2, stacks };
    let raise = Raise {
        number: 1,
        id: process.id,
        comm: "sqlite3".to_owned(),
        tid: 4243,
        ns: 5,
        unix_ms: 1_700_000_000_000,
        from_bytes: 131_072,
        to_bytes: 1_052_672,
        chunk_bytes: Some(1_052_672),
        stack: Some(Arc::new(one)),
        mapped_by: None,
    };
    let unseen = Raise { number: 2, stack: None, chunk_bytes: None, ..raise.clone() };
    let mut snapshot = sample::snapshot(vec![sample::at_depth_syscall(), process]);
    snapshot.stacks = vec![Arc::new(told)];
    snapshot.raises = vec![Arc::new(raise), Arc::new(unseen)];
    snapshot
}

fn read(bytes: &[u8]) -> Profile {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).expect("gzip");
    Profile::decode(plain.as_slice()).expect("a profile")
}

impl Profile {
    fn at(&self, index: i64) -> &str {
        &self.string_table[usize::try_from(index).expect("an index")]
    }

    fn sum(&self, index: usize) -> i64 {
        self.sample.iter().map(|sample| sample.value[index]).sum()
    }

    fn names(&self, location: &Location) -> Vec<String> {
        let name = |id: u64| self.at(self.function.iter().find(|function| function.id == id).expect("one").name);
        location.line.iter().map(|line| format!("{}:{}", name(line.function_id), line.line)).collect()
    }
}

#[test]
fn folded_lines_sum_to_the_crossings_and_no_name_breaks_a_line() {
    let lines = collapsed(&snapshot(), Weight::Calls);
    insta::assert_snapshot!(lines);
    let weight = |line: &str| line.rsplit_once(' ').and_then(|(_, weight)| weight.parse::<u64>().ok());
    assert_eq!(lines.lines().map(|line| weight(line).expect("a weight")).sum::<u64>(), 100);
    let bytes = collapsed(&snapshot(), Weight::Bytes);
    assert_eq!(bytes.lines().map(|line| weight(line).expect("a weight")).sum::<u64>(), 100_000);
}

#[test]
fn a_profile_reads_back_with_its_sums_lines_and_build_ids() {
    let profile = read(&pprof(&snapshot()));
    assert_eq!(profile.string_table[0], "");
    let types: Vec<_> =
        profile.sample_type.iter().map(|kind| (profile.at(kind.r#type), profile.at(kind.unit))).collect();
    assert_eq!(types, [("crossings", "count"), ("crossing_bytes", "bytes"), ("raises", "count")]);
    assert_eq!([profile.sum(0), profile.sum(1), profile.sum(2)], [100, 100_000, 3]);
    assert_eq!((profile.time_nanos, profile.duration_nanos), (1_700_000_000_000_000_000, 10_000_000_000));
    // The inlined call and the function it was put into are one location, the innermost first.
    let first = &profile.sample[0];
    let by_id = |id: &u64| profile.location.iter().find(|location| location.id == *id).expect("one");
    let places: Vec<Vec<String>> = first.location_id.iter().map(|id| profile.names(by_id(id))).collect();
    assert_eq!(places, [vec!["[libc.so.6+0x99]:0"], vec!["fill:7", "grow:8"]]);
    for location in &profile.location {
        let mapping = profile.mapping.iter().find(|mapping| mapping.id == location.mapping_id);
        assert!(mapping.is_none_or(|m| (m.memory_start..m.memory_limit).contains(&location.address)));
        assert_eq!(mapping.is_none(), location.mapping_id == 0);
    }
    let server = profile.mapping.iter().find(|mapping| profile.at(mapping.filename) == "/usr/bin/server").expect("one");
    assert_eq!(profile.at(server.build_id), "ab12");
    let label = &first.label;
    assert_eq!((profile.at(label[0].str), label[1].num), ("sqlite3", 4242));
    let comments: Vec<&str> = profile.comment.iter().map(|comment| profile.at(*comment)).collect();
    assert!(comments[0].contains("2 of 100 crossings were sampled"), "{comments:?}");
    assert!(comments[1].contains("1 other images are not measured"), "{comments:?}");
    assert!(!profile.string_table.iter().any(|text| text.chars().any(char::is_control)));
}

#[test]
fn nothing_measured_is_an_empty_profile_that_says_so() {
    let snapshot = sample::snapshot(vec![sample::at_depth_syscall()]);
    assert_eq!(collapsed(&snapshot, Weight::Calls), "");
    assert!(read(&pprof(&snapshot)).sample.is_empty());
    assert!(caveats(&snapshot)[0].contains("not the same as none"));
    assert!(caveats(&sample::snapshot(vec![sample::sqlite()]))[0].contains("0 of 1 crossings"));
}
