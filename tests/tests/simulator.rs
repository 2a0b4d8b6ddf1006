//! The whole cluster, simulated from seeds.

use std::thread;

use tests::simulator::{Bug, Summary, run};

/// Seeds of the test that runs with every build.
const SEEDS: u64 = 2_000;
/// A planted fault must show within this many seeds.
const BUG_SEEDS: u64 = 3_000;

#[test]
fn every_promise_is_kept_under_faults() {
    let threads = thread::available_parallelism()
        .map_or(2, |count| count.get())
        .min(8) as u64;
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            thread::spawn(move || -> Result<Vec<Summary>, String> {
                let seeds = (1..=SEEDS).filter(|seed| seed % threads == worker);
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
    // The runs must have gone through what they are for.
    let count = |what: fn(&Summary) -> bool| summaries.iter().filter(|run| what(run)).count();
    let operations: usize = summaries.iter().map(|run| run.operations).sum();
    println!(
        "{} clusters, {operations} operations; {} went on after a rollback, {} were split",
        summaries.len(),
        count(|run| run.rolled_back),
        count(|run| run.split)
    );
    // Closed though only one side went alone: a late decision of the registry, and rare.
    let closed = count(|run| run.operator && !run.split);
    assert!(
        closed * 500 <= summaries.len(),
        "{closed} sets were closed for no split"
    );
    assert!(operations > 100 * summaries.len());
    assert!(count(|run| run.joins > 0) > summaries.len() / 2);
    assert!(count(|run| run.epochs > 4) > summaries.len() / 4);
    assert!(count(|run| run.split) > 0 && count(|run| run.rolled_back) > 0);
}

fn is_found(bug: Bug) {
    let found = (1..=BUG_SEEDS).find_map(|seed| run(seed, bug).err());
    let failure = found.unwrap_or_else(|| panic!("{bug:?} was not found in {BUG_SEEDS} seeds"));
    println!(
        "{bug:?}: seed {}: {}",
        failure.seed,
        failure.what.lines().next().unwrap_or("")
    );
}

#[test]
fn applying_before_the_backups_hold_is_found() {
    is_found(Bug::ApplyEarly);
}

#[test]
fn reading_without_a_lease_is_found() {
    is_found(Bug::NoLease);
}

#[test]
fn counting_an_unhealed_copy_as_in_sync_is_found() {
    is_found(Bug::JoinUnhealed);
}
