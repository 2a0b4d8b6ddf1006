//! A whole cluster in one thread: the product's own replication core
//! ([`brickd::replica::core::Core`]), its order of changes ([`brickd::replica::keys::KeyQueue`]), its
//! index of what absent copies lack ([`brickd::replica::absent::Absent`], with the marks and their
//! journals), its sessions, results and locks ([`brickd::replica::memory::Memory`]) and its times
//! ([`brickd::replica::times::SetTime`]) for every copy; doubles for the registry, the network, the disks and the healer
//! that carries what is marked; clients that check what they see; and faults. All of it follows
//! from one seed.
//!
//! Checked at each step: what is acknowledged is on every in-sync copy; in one epoch only one life
//! of one copy answers; no read is answered in an epoch that another has replaced; no change is
//! older than one that was answered before. Checked again
//! and again: what an in-sync copy would heal each other one of covers all that differs even if
//! that one lost power. Checked at the end, when the faults have stopped: all copies are in sync,
//! equal, and every register's and every lock's history is linearizable, with each request done
//! once and refused requests never.
//!
//! With two voters both sides may go on alone. Then the split must be detected, the operator
//! chooses, and the copies must become equal; what one side acknowledged is given up by design.

mod check;
mod client;
mod copy;
mod faults;
mod heal;
mod index;
mod message;
mod network;
mod primary;
mod random;
mod registry;
mod sessions;
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
    /// A change is taken as held by the backups as soon as it is sent to them.
    AckEarly,
    /// The primary applies a change as soon as it is ordered.
    ApplyEarly,
    /// Epochs of the same number are taken for the same epoch.
    SameNumber,
    /// Reads are answered without asking for the lease.
    NoLease,
    /// A mark goes as soon as what it stands for is sent, and not when the copy has synced it.
    ClearEarly,
    /// A copy that is being healed answers reads.
    ServeSyncing,
    /// A brick that restarts goes on as the incarnation that it was.
    Resume,
    /// A copy that joins does not take the results of its predecessors.
    ForgetTable,
    /// A copy that joins does not learn how far slots without a result are.
    ForgetSlots,
    /// What a refused request came to is not recorded.
    ForgetRefusals,
    /// A new primary gives times by its own clock alone.
    ForgetTimes,
    /// Only the primary notes what absent copies lack.
    MarkOnOne,
    /// A refused connection is taken for a death.
    RefusedIsDead,
    /// A copy is taken into the epoch before it is healed.
    JoinUnhealed,
}

impl Bug {
    /// Every planted fault.
    pub const ALL: [Bug; 14] = [
        Bug::AckEarly,
        Bug::ApplyEarly,
        Bug::SameNumber,
        Bug::NoLease,
        Bug::ClearEarly,
        Bug::ServeSyncing,
        Bug::Resume,
        Bug::ForgetTable,
        Bug::ForgetSlots,
        Bug::ForgetRefusals,
        Bug::ForgetTimes,
        Bug::MarkOnOne,
        Bug::RefusedIsDead,
        Bug::JoinUnhealed,
    ];
}

/// What a run did, for the one who wants to know that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Operations that clients saw answered.
    pub operations: usize,
    /// Events that were handled.
    pub steps: u64,
    /// Epochs that were begun.
    pub epochs: u64,
    /// Faults that were injected.
    pub faults: usize,
    /// Which kinds of faults, a bit each.
    pub kinds: u32,
    /// Heals that were begun.
    pub heals: usize,
    /// Of these, those that compared everything.
    pub whole: usize,
    /// Copies that were healed and taken back.
    pub joins: usize,
    /// Sessions that clients found ended.
    pub fenced: usize,
    /// Requests that were sent more than once, changed nothing, and were recorded.
    pub settled: usize,
    /// Both sides of a two-voter pool went alone.
    pub split: bool,
    /// Two voters: the set was closed until the operator chose a copy.
    pub operator: bool,
    /// A copy that lost power took over, as no other had lived through.
    pub rolled_back: bool,
}

impl Summary {
    /// Counts another run in.
    pub fn add(&mut self, other: &Summary) {
        self.operations += other.operations;
        self.steps += other.steps;
        self.epochs += other.epochs;
        self.faults += other.faults;
        self.kinds |= other.kinds;
        self.heals += other.heals;
        self.whole += other.whole;
        self.joins += other.joins;
        self.fenced += other.fenced;
        self.settled += other.settled;
        self.split |= other.split;
        self.operator |= other.operator;
        self.rolled_back |= other.rolled_back;
    }

    /// Kinds of faults that did not occur.
    pub fn missed_kinds(&self) -> Vec<&'static str> {
        let kinds = faults::Fault::KINDS.iter().enumerate();
        let missed = kinds.filter(|(kind, _)| self.kinds >> kind & 1 == 0);
        missed.map(|(_, name)| *name).collect()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} steps, {} operations, {} faults, {} epochs, {} heals ({} of everything), {} joins, \
             {} sessions ended, {} requests settled",
            self.steps,
            self.operations,
            self.faults,
            self.epochs,
            self.heals,
            self.whole,
            self.joins,
            self.fenced,
            self.settled
        )
    }
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
            "again: cargo run --release -p tests --bin simulate -- --seed {}",
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
