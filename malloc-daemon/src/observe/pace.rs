//! How often the service collects: as often as asked for, and less often where that would cost too much.

use std::time::Duration;

/// Collecting takes one in so many parts of a processor's time at most: 0.04 %, which leaves the rest of the daemon the
/// larger part of the 0.1 % it is to take at rest.
const PART: u32 = 2500;
/// Who asks for less than this gets it whatever it costs.
const ASKED: Duration = Duration::from_secs(1);
/// However much it costs, this long passes between two collections at most, unless more is asked for.
const LONGEST: Duration = Duration::from_secs(10);

/// The time between two collections, when `interval` is asked for and the last one took `cost` of CPU time.
#[must_use]
pub fn between(interval: Duration, cost: Duration) -> Duration {
    if interval < ASKED { interval } else { interval.max(cost.saturating_mul(PART).min(LONGEST)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dear_collection_is_followed_by_a_pause_that_has_an_end() {
        let second = Duration::from_secs(1);
        assert_eq!(between(second, Duration::from_micros(400)), second);
        assert_eq!(between(second, Duration::from_millis(2)), Duration::from_secs(5));
        assert_eq!(between(second, Duration::from_secs(1)), LONGEST);
        assert_eq!(between(60 * second, Duration::from_secs(1)), 60 * second);
        assert_eq!(between(second / 10, Duration::from_secs(1)), second / 10);
    }
}
