//! Random sequences of operations do through a mount what they do on the disk below.
//!
//! More of them, or one again: `cargo run -p tests --bin model -- --cases N --seed SEED`, or
//! `MORTAR_MODEL_CASES` and `MORTAR_MODEL_SEED` in the environment.

use tests::model::{Bricks, Run, run};
use tests::scale;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn sequences(bricks: Bricks, cases: u32) {
    let cases = number("MORTAR_MODEL_CASES").map_or(cases, |cases| cases as u32);
    let seed = number("MORTAR_MODEL_SEED").unwrap_or_else(rand::random);
    println!("MORTAR_MODEL_SEED={seed} MORTAR_MODEL_CASES={cases}");
    let asked = Run {
        cases,
        seed,
        bricks,
    };
    match run(asked) {
        Ok(summary) => println!("{summary}"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn random_operations_do_what_they_do_on_the_disk() {
    sequences(Bricks::Stay, scale::pick(16, 2_000));
}

#[test]
fn random_operations_do_the_same_while_bricks_are_killed_and_return() {
    sequences(Bricks::AreLost, scale::pick(4, 300));
}
