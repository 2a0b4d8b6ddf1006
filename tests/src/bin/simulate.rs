//! Runs the whole-cluster simulator: `simulate --seconds 60`, or one seed with its trace.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::simulator::{Bug, Summary, run};

/// Runs seeds until the time is over or a promise is broken.
#[derive(Parser)]
struct Arguments {
    /// For how long to run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run this seed alone, and print its trace if it fails.
    #[arg(long)]
    seed: Option<u64>,
    /// Go on after a failure, and only count it.
    #[arg(long)]
    keep_going: bool,
    /// The first of the seeds.
    #[arg(long, default_value_t = 1)]
    from: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let (first, last) = match arguments.seed {
        Some(seed) => (seed, seed),
        None => (arguments.from, u64::MAX),
    };
    let mut total = Summary::default();
    let mut runs: u64 = 0;
    let mut failures: u64 = 0;
    for seed in first..=last {
        match run(seed, Bug::None) {
            Ok(summary) => total.add(&summary),
            Err(failure) if arguments.keep_going => {
                failures += 1;
                println!("seed {seed}: {}", failure.what.lines().next().unwrap_or(""));
            }
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
        runs += 1;
        if began.elapsed() >= Duration::from_secs(arguments.seconds) {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{runs} clusters from seed {first}, {total}; {seconds:.1} s, {:.0} clusters and {:.0} steps \
         a second",
        runs as f64 / seconds,
        total.steps as f64 / seconds
    );
    if failures == 0 {
        println!("every promise kept");
        ExitCode::SUCCESS
    } else {
        println!("{failures} broke a promise");
        ExitCode::FAILURE
    }
}
