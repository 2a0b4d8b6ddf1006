//! Runs the whole-cluster simulator: `simulate --seconds 60`, or one seed with its trace.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::simulator::{Bug, run};

/// Runs seeds until the time is over or a promise is broken.
#[derive(Parser)]
struct Arguments {
    /// For how long to run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run this seed alone, and print its trace if it fails.
    #[arg(long)]
    seed: Option<u64>,
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
    let mut operations = 0;
    let mut runs: u64 = 0;
    for seed in first..=last {
        match run(seed, Bug::None) {
            Ok(summary) => operations += summary.operations,
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
    println!(
        "{runs} clusters from seed {first}, {operations} operations, {:.1} s: every promise kept",
        began.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
