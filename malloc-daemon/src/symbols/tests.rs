//! Stacks, registers and rules that lie.

use proptest::prelude::*;

use super::unwind::{CallFrames, Context, Placed, Registers, StackBytes, step_by_frame_pointer};
use super::*;
use crate::host::process::{Pid, maps};

fn own_pid() -> u32 {
    std::process::id()
}

/// Addresses of code of this process, which has rules for each, and others.
fn addresses() -> Vec<u64> {
    let own = maps(Pid(own_pid())).unwrap().unwrap();
    let code = own.iter().filter(|mapping| mapping.permissions.execute);
    let inside = code.flat_map(|mapping| (0..64).map(|at| mapping.start + (mapping.end - mapping.start) / 64 * at + 5));
    inside.chain([0, 1, 8, u64::MAX, 1 << 63]).collect()
}

fn assert_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn a_process_that_does_not_exist_has_one_unknown_frame() {
    let mut symbolizer = assert_send(Symbolizer::new(Limits::default()));
    let sample = Sample { pid: u32::MAX, ip: 0x1000, sp: 0x7000, bp: 0, kept: None, stack: &[0; 64], stack_cut: false };
    let frame = Frame { address: 0x1000, ..Frame::default() };
    assert_eq!(symbolizer.stack(&sample), Stack { frames: vec![frame], end: StackEnd::ProcessGone });
    symbolizer.note_process(u32::MAX);
    symbolizer.forget(u32::MAX);
    assert_eq!(symbolizer.usage().0, 0);
}

#[test]
fn no_time_gives_no_frames_and_says_so() {
    let mut symbolizer = Symbolizer::new(Limits { deadline: Duration::ZERO, ..Limits::default() });
    let sample = Sample { pid: own_pid(), ip: 0x1000, sp: 0x7000, bp: 0, kept: None, stack: &[], stack_cut: true };
    assert_eq!(symbolizer.stack(&sample), Stack { frames: Vec::new(), end: StackEnd::Deadline });
}

#[test]
fn a_frame_pointer_that_points_down_ends_the_walk() {
    let stack = StackBytes { base: 0x1000, bytes: &[0xff; 64], cut: false };
    assert!(step_by_frame_pointer(&Registers::new(5, 0x1010, 0x1008), &stack).is_err());
    assert!(step_by_frame_pointer(&Registers::new(5, 0x1010, u64::MAX - 7), &stack).is_err());
    assert!(step_by_frame_pointer(&Registers::new(5, 0x1010, 0x1018), &stack).unwrap().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn corrupt_stacks_end_within_the_limits(
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u8..4), 0..400),
        ip in any::<prop::sample::Index>(), sp in prop_oneof![Just(0x7000u64), any::<u64>()], below: bool, cut: bool,
    ) {
        let code = addresses();
        let words = picks.iter().map(|(index, random, kind)| match kind {
            0 => *random,
            1 => sp.wrapping_add(random % 4096 / 8 * 8),
            _ => code[index.index(code.len())],
        });
        let stack: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let bp = if below { sp.wrapping_sub(8) } else { sp.wrapping_add(16) };
        let limits = Limits { frames: 20, debug_bytes: 0, deadline: Duration::from_secs(100), ..Limits::default() };
        let mut symbolizer = Symbolizer::new(limits);
        let sample = Sample { pid: own_pid(), ip: code[ip.index(code.len())], sp, bp, kept: None, stack: &stack, stack_cut: cut };
        let named = symbolizer.stack(&sample);
        prop_assert!(!named.frames.is_empty() && named.frames.len() <= 20);
        prop_assert!(cut || named.end != StackEnd::StackCut);
        prop_assert!(named.end != StackEnd::FrameLimit || named.frames.len() == 20);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_rules_make_a_step_panic(
        mut entries in prop::collection::vec(any::<u8>(), 0..200),
        program in prop::collection::vec(any::<u8>(), 0..40),
        header in prop::option::of(prop::collection::vec(any::<u8>(), 0..64)),
        address: u64, text: u64, lookup in 0u64..0x2000, sp: u64, stack in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        // Half of the time rules that parse and cover the address, with a random program.
        if text % 2 == 0 {
            entries = vec![20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x00, 0x0c, 7, 8, 0x90, 1, 0, 0];
            let length = u32::try_from(4 + 16 + 1 + program.len()).unwrap();
            entries.extend(length.to_le_bytes());
            entries.extend(28u32.to_le_bytes());
            entries.extend(0u64.to_le_bytes());
            entries.extend(0x2000u64.to_le_bytes());
            entries.push(0);
            entries.extend(program);
        }
        let header = header.map(|mut bytes| {
            for (slot, byte) in bytes.iter_mut().zip([1, 0x1b, 3, 0x3b]) {
                *slot = byte;
            }
            Placed { address: 0x1000, bytes }
        });
        let rules = CallFrames::new(Placed { address, bytes: entries }, header, text, text);
        let stack = StackBytes { base: sp, bytes: &stack, cut: false };
        let _ = rules.step(&mut Context::new(), lookup, &Registers::new(lookup, sp, sp ^ 8), &stack);
    }
}
