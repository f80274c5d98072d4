//! The line that says what observing cost the process.

use super::{Style, Tone};
use crate::aggregate::model::{Cost, Process};
use crate::report::units::{count, nanoseconds};

/// One sentence below the funnel; nothing where the price of a hit is not known.
pub(super) fn render(out: &mut String, process: &Process, style: Style) {
    if let Some(cost) = &process.cost {
        style.sentence(out, 2, Tone::Quiet, &sentence(cost));
    }
}

/// `observing cost about 802.4 ms, 77.9 % of its 1.0 s of CPU time: 1,235,430 hits at depth call (790.7 ms), ..`
fn sentence(cost: &Cost) -> String {
    let mut text = format!("observing cost about {}", nanoseconds(cost.ns()));
    if let (Some(share), Some(cpu_ns)) = (cost.share(), cost.cpu_ns) {
        text.push_str(&format!(", {:.1} % of its {} of CPU time", share * 100.0, nanoseconds(cpu_ns)));
    }
    let parts: Vec<String> = cost
        .hits
        .by_depth()
        .into_iter()
        .zip(cost.ns_by_depth)
        .rev()
        .filter(|((_, hits), _)| *hits > 0)
        .map(|((depth, hits), ns)| {
            let noun = if hits == 1 { "hit" } else { "hits" };
            format!("{} {noun} at depth {depth} ({})", count(hits), nanoseconds(ns))
        })
        .collect();
    if !parts.is_empty() {
        text.push_str(": ");
        text.push_str(&parts.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_dearest_depth_comes_first_and_a_share_only_with_a_cpu_time() {
        let mut cost = sample::sqlite().cost.expect("calibrated");
        assert_eq!(
            sentence(&cost),
            "observing cost about 802.4 ms, 77.9 % of its 1.0 s of CPU time: 1,235,430 hits at depth call (790.7 ms), \
             18,146 hits at depth arena (11.4 ms), 330 hits at depth sysmalloc (280.6 us), \
             203 hits at depth syscall (60.9 us)"
        );
        cost.cpu_ns = None;
        assert!(sentence(&cost).starts_with("observing cost about 802.4 ms: 1,235,430 hits"));
    }
}
