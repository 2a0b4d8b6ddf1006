//! The whole cluster, simulated from seeds.

use std::thread;
use std::time::Instant;

use tests::scale::pick;
use tests::simulator::{Bug, Summary, run};

/// Seeds of the test that runs with every build.
const SEEDS: u64 = 20_000;
/// The same with the long tests.
const SEEDS_FULL: u64 = 500_000;
/// A planted fault must show within this many seeds: less than a minute of one core.
const BUG_SEEDS: u64 = 6_000;

#[test]
fn every_promise_is_kept_under_faults() {
    let seeds = pick(SEEDS, SEEDS_FULL);
    let threads = thread::available_parallelism()
        .map_or(2, |count| count.get())
        .min(8) as u64;
    let began = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            thread::spawn(move || -> Result<Vec<Summary>, String> {
                let seeds = (1..=seeds).filter(|seed| seed % threads == worker);
                seeds
                    .map(|seed| run(seed, Bug::None).map_err(|failure| failure.to_string()))
                    .collect()
            })
        })
        .collect();
    let mut summaries = Vec::new();
    for worker in workers {
        match worker.join().expect("a worker panicked") {
            Ok(runs) => summaries.extend(runs),
            Err(failure) => panic!("{failure}"),
        }
    }
    let mut total = Summary::default();
    summaries.iter().for_each(|run| total.add(run));
    let seconds = began.elapsed().as_secs_f64();
    let count = |what: fn(&Summary) -> bool| summaries.iter().filter(|run| what(run)).count();
    println!(
        "{} clusters, {total}; {} went on after a rollback, {} were split; {seconds:.1} s, {:.0} \
         clusters and {:.0} steps a second",
        summaries.len(),
        count(|run| run.rolled_back),
        count(|run| run.split),
        summaries.len() as f64 / seconds,
        total.steps as f64 / seconds
    );
    // The runs must have gone through what they are for.
    assert_eq!(total.missed_kinds(), Vec::<&str>::new());
    // Closed though only one side went alone: a late decision of the registry, and rare.
    let closed = count(|run| run.operator && !run.split);
    assert!(
        closed * 500 <= summaries.len(),
        "{closed} sets were closed for no split"
    );
    assert!(total.operations > 100 * summaries.len());
    assert!(count(|run| run.joins > 0) > summaries.len() / 2);
    assert!(count(|run| run.epochs > 4) > summaries.len() / 4);
    assert!(count(|run| run.split) > 0 && count(|run| run.rolled_back) > 0);
    // What a copy lacks is known, as a rule, even under so many faults.
    assert!(total.whole * 3 < total.heals, "too many full comparisons");
}

/// Every fault that was planted is found, by the checks that the product is held
/// to.
#[test]
fn every_planted_fault_is_found() {
    for bug in Bug::ALL {
        let began = Instant::now();
        let failure = (1..=BUG_SEEDS)
            .find_map(|seed| run(seed, bug).err())
            .unwrap_or_else(|| panic!("{bug:?} was not found in {BUG_SEEDS} seeds"));
        println!(
            "{bug:?}: {:.2} s, seed {}: {}",
            began.elapsed().as_secs_f64(),
            failure.seed,
            failure.what.lines().next().unwrap_or("")
        );
    }
}

/// What a failure prints is enough to see it again.
#[test]
fn a_failure_names_its_seed_and_shows_it_again() {
    let failure = (1..1_000)
        .find_map(|seed| run(seed, Bug::ApplyEarly).err())
        .expect("a failure");
    let again = run(failure.seed, Bug::ApplyEarly).expect_err("the same failure");
    assert_eq!((&again.what, &again.trace), (&failure.what, &failure.trace));
    assert!(!failure.trace.is_empty());
    let words = failure.to_string();
    let command = format!(
        "cargo run --release -p tests --bin simulate -- --seed {}",
        failure.seed
    );
    assert!(words.contains(&command), "{words}");
}
