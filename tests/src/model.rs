//! Random sequences of operations through a mount, on the disk below the bricks, and on a tree in
//! memory. After each step everything that can be seen of the three is compared; a sequence that
//! fails is made as short as it can be. At the end of a cluster its bricks are compared.

pub mod draw;
pub mod look;
mod memory;
pub mod op;
pub mod side;

use std::fmt::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::cluster::{Cluster, Mount, VOLUME};
pub use draw::Bricks;
use look::Look;
use memory::Memory;
use op::{Act, Op, Outage};
use side::Side;

/// Sequences of one cluster; then a new one is made.
const CLUSTER_CASES: u32 = 200;
/// A cluster is not used longer than this: the harness ends those that seem to hang.
const CLUSTER_LIFE_MAX: Duration = Duration::from_secs(6 * 60);
/// Shorter sequences tried when one failed.
const SHRINKS_MAX: u32 = 400;
const SHRINKING_MAX: Duration = Duration::from_secs(120);
/// Differences listed of one step.
const LISTED_MAX: usize = 10;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Sequences.
    pub cases: u32,
    /// The seed of the first; the next has the next.
    pub seed: u64,
    /// Whether bricks are lost in them.
    pub bricks: Bricks,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Sequences.
    pub cases: u32,
    /// Operations that succeeded and that failed.
    pub steps: [u64; 2],
    /// Bricks that were killed.
    pub killed: u32,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [done, refused] = self.steps;
        write!(
            f,
            "{} sequences, {done} operations done and {refused} refused, {} bricks killed",
            self.cases, self.killed
        )
    }
}

/// Runs sequences, in clusters of their own.
///
/// # Errors
/// The shortest sequence found that fails, what differs, and how to run it again.
///
/// # Panics
/// When a cluster fails, or its bricks differ at the end.
pub fn run(run: Run) -> Result<Summary, String> {
    let mut summary = Summary::default();
    while summary.cases < run.cases {
        let mut place = Place::new();
        let began = Instant::now();
        for _ in 0..CLUSTER_CASES {
            if summary.cases == run.cases || began.elapsed() > CLUSTER_LIFE_MAX {
                break;
            }
            let seed = run.seed.wrapping_add(u64::from(summary.cases));
            place.case(seed, run.bricks)?;
            summary.cases += 1;
        }
        summary.steps = [0, 1].map(|at| summary.steps[at] + place.steps[at]);
        summary.killed += place.killed;
        place.end();
    }
    Ok(summary)
}

/// A cluster with its mount, and the disk below.
struct Place {
    cluster: Cluster,
    mount: Mount,
    /// The host whose brickd was killed.
    away: Option<String>,
    sequences: u32,
    steps: [u64; 2],
    killed: u32,
    /// Whether the disk tells two changes apart that follow each other at once.
    fine_times: bool,
}

impl Place {
    fn new() -> Self {
        let cluster = Cluster::two_hosts();
        let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
        let fine_times = tells_changes_apart(&cluster.folder("probe"));
        Place {
            cluster,
            mount,
            away: None,
            sequences: 0,
            steps: [0; 2],
            killed: 0,
            fine_times,
        }
    }

    fn case(&mut self, seed: u64, bricks: Bricks) -> Result<(), String> {
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: SHRINKS_MAX,
            max_shrink_time: SHRINKING_MAX.as_millis() as u32,
            ..Config::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, random);
        let place = std::cell::RefCell::new(self);
        let outcome = runner.run(&draw::sequences(bricks), |ops| {
            let ended = place.borrow_mut().sequence(&ops);
            ended.map_err(TestCaseError::fail)
        });
        outcome.map_err(|failure| match failure {
            TestError::Fail(why, ops) => told(seed, bricks, &ops, &why.to_string()),
            TestError::Abort(why) => format!("no sequence could be drawn: {why}"),
        })
    }

    /// Does one sequence in new folders.
    fn sequence(&mut self, ops: &[Op]) -> Result<(), String> {
        self.sequences += 1;
        let name = format!("sequence-{}", self.sequences);
        let mut disk = Side::new(self.cluster.folder("disk").join(&name));
        let mut mount = Side::new(self.mount.join(&name));
        let mut memory = Memory::default();
        for op in draw::founding() {
            let told = [disk.perform(&op), mount.perform(&op)];
            let [Ok(_), Ok(told)] = told else {
                return Err(format!("{op:?}, before the first step: {told:?}"));
            };
            memory.apply(&op.act, &told)?;
        }
        let mut before = [Look::at(disk.root())?, Look::at(mount.root())?];
        for (number, op) in ops.iter().enumerate() {
            if let Act::Outage(outage) = &op.act {
                self.meet(*outage);
            }
            let step = |why: String| format!("step {number}, {op:?}: {why}");
            let outcomes = [disk.perform(op), mount.perform(op)];
            if outcomes[0] != outcomes[1] {
                let [on_disk, in_mount] = outcomes;
                return Err(step(format!(
                    "on the disk {}, in the mount {}",
                    short(&on_disk),
                    short(&in_mount)
                )));
            }
            if let Ok(told) = &outcomes[1] {
                memory.apply(&op.act, told).map_err(step)?;
            }
            self.steps[usize::from(outcomes[1].is_err())] += 1;
            let now = [Look::at(disk.root()), Look::at(mount.root())];
            let [now_disk, now_mount] = now;
            let now = [now_disk.map_err(step)?, now_mount.map_err(step)?];
            let mut lines = look::differences(&now[0], &now[1]);
            lines.extend(memory.differences(&now[1]));
            // One that failed changed nothing; ext4 stamps a folder whose entry it put a whiteout
            // in place of and had to take back.
            if self.fine_times && outcomes[1].is_ok() {
                lines.extend(look::times_kept(
                    [&before[0], &now[0]],
                    [&before[1], &now[1]],
                ));
            }
            if !lines.is_empty() {
                lines.truncate(LISTED_MAX);
                return Err(step(format!("\n   {}", lines.join("\n   "))));
            }
            before = now;
        }
        Ok(())
    }

    fn meet(&mut self, outage: Outage) {
        match outage {
            Outage::Return => self.bring_back(),
            Outage::KillPrimary | Outage::KillBackup => {
                self.bring_back();
                self.cluster.wait_in_sync(VOLUME);
                let host = match outage {
                    Outage::KillPrimary => self.cluster.primary(VOLUME),
                    _ => self.cluster.backup(VOLUME),
                };
                host.kill_brickd();
                self.away = Some(host.name.clone());
                self.killed += 1;
            }
        }
    }

    fn bring_back(&mut self) {
        if let Some(host) = self.away.take() {
            self.cluster.host(&host).start_brickd();
        }
    }

    fn end(mut self) {
        self.bring_back();
        self.cluster.assert_healed_and_equal();
        self.mount.unmount();
        self.cluster.assert_logs_clean(&[]);
    }
}

fn told(seed: u64, bricks: Bricks, ops: &[Op], why: &str) -> String {
    let mut text = format!("seed {seed} fails at {why}\nthe shortest sequence that does:\n");
    for (number, op) in ops.iter().enumerate() {
        writeln!(text, "{number:4} {op:?}").expect("a string grows");
    }
    let outages = match bricks {
        Bricks::Stay => "",
        Bricks::AreLost => " --outages",
    };
    writeln!(
        text,
        "again: cargo run -p tests --bin model -- --cases 1 --seed {seed}{outages}"
    )
    .expect("a string grows");
    text
}

/// An outcome without most of its bytes.
fn short(outcome: &side::Outcome) -> String {
    const SHOWN_MAX: usize = 200;
    let mut text = format!("{outcome:?}");
    if let Some((at, _)) = text.char_indices().nth(SHOWN_MAX) {
        text.truncate(at);
        text.push('…');
    }
    text
}

fn tells_changes_apart(folder: &Path) -> bool {
    const CHANGES: u32 = 20;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let mode = std::fs::Permissions::from_mode(0o700 + change % 2);
        std::fs::set_permissions(folder, mode).expect("the mode of a folder of the test's");
        let meta = std::fs::metadata(folder).expect("a folder of the test's");
        times.push((meta.ctime(), meta.ctime_nsec()));
    }
    times.dedup();
    times.len() == CHANGES as usize
}
