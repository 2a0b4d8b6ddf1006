//! A whole cluster in one thread: the product's [`brickd::replica::core::Core`] for every copy,
//! doubles for the registry, the network, the disks and the heal engine, clients that check what
//! they see, and faults. All of it follows from one seed.
//!
//! Checked at each step: what is acknowledged is on every in-sync copy; no read is answered in an
//! epoch that another has replaced. Checked at the end, when the faults have stopped: all copies
//! are in sync, equal, and every register's history is linearizable, with each request done once.
//!
//! With two voters both sides may go on alone. Then the split must be detected, the operator
//! chooses, and the copies must become equal; what one side acknowledged is given up by design.

mod check;
mod client;
mod copy;
mod faults;
mod heal;
mod message;
mod network;
mod primary;
mod random;
mod registry;
mod stream;
mod world;

pub use random::Random;

use world::World;

/// A fault planted in the simulator's driver, to show that the checks find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Bug {
    /// The driver does as the state machine says.
    #[default]
    None,
    /// The primary applies a change as soon as it is ordered.
    ApplyEarly,
    /// Reads are answered without asking for the lease.
    NoLease,
    /// A copy is taken into the epoch before it is healed.
    JoinUnhealed,
}

/// What a run did, for the one who wants to know that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Operations that clients saw answered.
    pub operations: usize,
    /// Epochs that were begun.
    pub epochs: u64,
    /// Faults that were injected.
    pub faults: usize,
    /// Copies that were healed and taken back.
    pub joins: usize,
    /// Both sides of a two-voter pool went alone.
    pub split: bool,
    /// Two voters: the set was closed until the operator chose a copy.
    pub operator: bool,
    /// A copy that lost power took over, as no other had lived through.
    pub rolled_back: bool,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// Which promise, and where.
    pub what: String,
    /// The last events before it.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(
            f,
            "again: cargo run -p tests --bin simulate -- --seed {}",
            self.seed
        )
    }
}

/// Runs one seed.
///
/// # Errors
/// The promise that was broken, with the trace of a second run of the same seed.
pub fn run(seed: u64, bug: Bug) -> Result<Summary, Box<Failure>> {
    World::new(seed, bug, Tracing::Off).run().map_err(|first| {
        let traced = World::new(seed, bug, Tracing::On).run();
        traced.err().unwrap_or(first)
    })
}

/// Whether a run keeps its trace: keeping it is most of the cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracing {
    /// Nothing is kept.
    Off,
    /// The last lines are kept.
    On,
}
