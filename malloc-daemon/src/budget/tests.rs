//! What the budget and the estimates promise, on simulated processes.

use super::simulated::{Behaviour, Doing, MS, SECOND, Simulation};
use super::{HitPrice, Level, PriceSource, Rung};

const PRICE: HitPrice = HitPrice { emulated_ns: 750, stepped_ns: 10_000, source: PriceSource::Measured };

fn doing(pairs: f64, work: f64) -> Doing {
    Doing { pairs, work, given: 1.0, large: 0.05 }
}

fn steady(pairs: f64, work: f64) -> Behaviour {
    Box::new(move |_, _, _| doing(pairs, work))
}

/// A program whose rate jumps at random moments to random values between nothing and as much as a processor can.
fn jumping(steps: Vec<(f64, f64, f64)>) -> Behaviour {
    let mut ends = Vec::new();
    let mut at = 0.0;
    for (seconds, exponent, work) in steps {
        at += seconds * SECOND as f64;
        ends.push((at, 10_f64.powf(exponent), work));
    }
    Box::new(move |now, _, _| {
        ends.iter()
            .find(|(end, ..)| (now as f64) < *end)
            .map_or(doing(0.0, 0.0), |(_, pairs, work)| doing(*pairs, *work))
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..Default::default() })]

    // COST-2: over any ten seconds, hits take no more than the budget and a tenth of a second; depth does not change more
    // than 13 times a minute.
    #[test]
    fn hits_stay_within_the_budget_whatever_the_rate_does(
        steps in proptest::collection::vec((0.2_f64..20.0, 2.0_f64..8.0, 0.02_f64..1.0), 1..12),
        seed in 1_u64..1_000_000,
    ) {
        let share = 0.01;
        let mut simulation = Simulation::new(share, PRICE, 750.0, seed, jumping(steps));
        let mut samples = vec![(0.0, 0.0)];
        for second in 1..=80 {
            simulation.run(second * SECOND);
            samples.push((simulation.cpu, simulation.paid));
        }
        for pair in samples.windows(11) {
            let (cpu, paid) = (pair[10].0 - pair[0].0, pair[10].1 - pair[0].1);
            // Saved 10 ms, a poll of 25 ms in full, two windows of 20 ms with 5 ms around each.
            let allowed = share * cpu + (10.0 + 25.0 + 2.0 * 25.0) * MS as f64;
            proptest::prop_assert!(paid <= allowed, "{} ms of {} ms", paid / 1e6, cpu / 1e6);
        }
        // From end to end what was paid once does not count again.
        let allowed = share * simulation.cpu + (10.0 + 25.0 + 2.0 * 25.0) * MS as f64;
        proptest::prop_assert!(simulation.paid <= allowed);
        for from in &simulation.changes {
            let minute = simulation.changes.iter().filter(|at| (*from..from + 60 * SECOND).contains(at)).count();
            proptest::prop_assert!(minute <= 13, "{:?}", simulation.changes);
        }
    }

    // A rate that stays the same lets full probing end once at most, and never flutters.
    #[test]
    fn a_constant_rate_does_not_make_it_oscillate(exponent in 2.0_f64..8.0, work in 0.05_f64..1.0, seed in 1_u64..1_000_000) {
        let mut simulation = Simulation::new(0.01, PRICE, 750.0, seed, steady(10_f64.powf(exponent), work));
        simulation.run(90 * SECOND);
        proptest::prop_assert!(simulation.changes.len() <= 3, "{:?}", simulation.changes);
    }
}

#[test]
fn a_jump_ends_full_probing_within_two_seconds_and_quiet_brings_it_back() {
    let behaviour = jumping(vec![(20.0, 3.0, 1.0), (20.0, 7.5, 1.0), (300.0, 3.0, 1.0)]);
    let mut simulation = Simulation::new(0.01, PRICE, 750.0, 1, behaviour);
    simulation.run(20 * SECOND);
    assert_eq!((simulation.controller.rung(), simulation.changes.len()), (Rung::Full, 0));
    simulation.run(22 * SECOND);
    assert_eq!(simulation.controller.rung(), Rung::Windows);
    assert!(simulation.changes[0] < 20 * SECOND + 200 * MS, "{:?}", simulation.changes);
    simulation.run(120 * SECOND);
    assert_eq!(simulation.controller.rung(), Rung::Full);
}

#[test]
fn a_program_within_its_budget_is_counted_and_not_estimated() {
    let mut simulation = Simulation::new(0.01, PRICE, 750.0, 1, steady(2_000.0, 1.0));
    simulation.run(60 * SECOND);
    for level in [Level::Call, Level::Arena] {
        let figures = simulation.figures(level);
        assert!(figures.sum.is_none() && figures.rows.iter().all(|figure| figure.estimate.is_none()));
    }
    let figures = simulation.figures(Level::Call);
    assert_eq!(figures.rows[0].row.calls, simulation.truth.rows[0].calls);
    assert_eq!(figures.rows[8].row.calls, simulation.truth.rows[8].calls);
}

#[test]
fn a_budget_of_everything_never_leaves_full_probing() {
    let mut simulation = Simulation::new(1.0, PRICE, 750.0, 1, steady(30_000_000.0, 1.0));
    simulation.run(30 * SECOND);
    assert_eq!((simulation.controller.rung(), simulation.changes.len()), (Rung::Full, 0));
}

// The arena fits where its entries are rare: it is exact although calls are not.
#[test]
fn the_arena_stays_exact_where_it_fits() {
    let mut simulation = Simulation::new(0.01, PRICE, 750.0, 1, steady(40_000.0, 1.0));
    simulation.run(60 * SECOND);
    assert_eq!(simulation.controller.rung(), Rung::Arena);
    let arena = simulation.figures(Level::Arena);
    assert_eq!(arena.rows[0].estimate, None);
    assert_eq!(arena.rows[0].row.calls, simulation.truth.rows[9].calls);
    assert!(simulation.figures(Level::Call).sum.is_some());
}

#[test]
fn the_buckets_sum_to_the_calls_in_estimates_too() {
    let mut simulation = Simulation::new(0.01, PRICE, 750.0, 1, steady(300_000.0, 1.0));
    simulation.run(30 * SECOND);
    let figures = simulation.figures(Level::Call);
    let row = &figures.rows[0].row;
    assert!(row.calls > 0 && row.calls == row.buckets.iter().sum::<u64>());
}
