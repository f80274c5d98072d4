//! A program that does nothing: what is left of a hit's price when nothing is counted.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

#[uprobe]
fn blank(_ctx: ProbeContext) -> u32 {
    0
}
