//! Random sequences of operations against the disk and a tree in memory: `model --cases 1000`, or
//! one that failed: `model --cases 1 --seed SEED`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tests::model::{Bricks, Run, run};

/// Runs sequences until all are done or one fails. Needs root.
#[derive(Parser)]
struct Arguments {
    /// How many sequences.
    #[arg(long, default_value_t = 100)]
    cases: u32,
    /// The seed of the first; the next has the next. By default a random one.
    #[arg(long)]
    seed: Option<u64>,
    /// Kill bricks in the middle and let them return.
    #[arg(long)]
    outages: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let asked = Run {
        cases: arguments.cases,
        seed: arguments.seed.unwrap_or_else(rand::random),
        bricks: if arguments.outages {
            Bricks::AreLost
        } else {
            Bricks::Stay
        },
    };
    println!("seed {}", asked.seed);
    match run(asked) {
        Ok(summary) => {
            println!("{summary}; {:.1} s", began.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
