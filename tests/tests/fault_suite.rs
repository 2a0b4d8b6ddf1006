//! The cluster fault suite: seeded faults on real processes and mounts, and a record of what
//! programs were told that must hold ([`tests::faults`]).
//!
//! Two minutes; `MORTAR_FAULT_SECONDS=3600` runs for an hour. The seed is printed:
//! `MORTAR_FAULT_SEED=N` repeats its plan, `MORTAR_FAULT_ROUND=M` one round of it alone.

use std::time::{Duration, Instant};

use tests::faults::{Rig, Summary};
use tests::report;

const SECONDS: u64 = 120;
/// Rounds on each of the first two clusters: of two copies, and of three.
const FIRST_ROUNDS: u64 = 2;
/// Rounds on one cluster later on before the hosts are made anew.
const ROUNDS_A_CLUSTER: u64 = 5;
/// Every so many clusters one has three copies.
const THREE_COPIES_EVERY: u64 = 3;

/// Which cluster a round runs on, and how many copies that has.
fn cluster_of(round: u64) -> (u64, usize) {
    let number = match round / FIRST_ROUNDS {
        first @ 0..2 => first,
        _ => 2 + (round - 2 * FIRST_ROUNDS) / ROUNDS_A_CLUSTER,
    };
    match number % THREE_COPIES_EVERY {
        1 => (number, 3),
        _ => (number, 2),
    }
}

#[test]
fn no_promise_is_broken_by_what_happens_to_hosts() {
    let seed = number("MORTAR_FAULT_SEED").unwrap_or_else(rand::random);
    let budget = Duration::from_secs(number("MORTAR_FAULT_SECONDS").unwrap_or(SECONDS));
    let only = number("MORTAR_FAULT_ROUND");
    report::say(&format!("MORTAR_FAULT_SEED={seed}"));
    let mut replay = Replay { seed, round: 0 };
    let mut total = Summary::default();
    let start = Instant::now();
    let mut rig: Option<(u64, Rig)> = None;
    for round in only.unwrap_or(0).. {
        replay.round = round;
        let (number, copies) = cluster_of(round);
        if rig.as_ref().is_none_or(|(of, _)| *of != number) {
            if let Some((_, old)) = rig.take() {
                total.add(&old.finish());
            }
            rig = Some((number, Rig::new(copies)));
        }
        let Some((_, rig)) = &rig else { continue };
        match rig.round(seed, round) {
            Ok(summary) => {
                report::say(&format!("round {round} holds: {}", summary.line()));
                total.add(&summary);
            }
            Err(failed) => panic!("round {round}: {failed}"),
        }
        if only.is_some() || start.elapsed() > budget && total.rounds_of_three_copies() > 0 {
            break;
        }
    }
    if let Some((_, rig)) = rig {
        total.add(&rig.finish());
    }
    let seconds = start.elapsed().as_secs();
    total
        .lines()
        .iter()
        .for_each(|line| report::say(&format!("in {seconds} s: {line}")));
    assert!(
        total.faults() > 0 && total.operations() > 0,
        "nothing was tested"
    );
}

/// Says how a failure is repeated.
struct Replay {
    seed: u64,
    round: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report::say(&format!(
                "to repeat: MORTAR_FAULT_SEED={} MORTAR_FAULT_ROUND={} cargo test -p tests --test \
                 fault_suite",
                self.seed, self.round
            ));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
    )
}
