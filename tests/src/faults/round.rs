//! One round: programs work, the nemesis disturbs, then everything is let go and judged.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mortar_proto::control::VolumeHealReply;

use super::check::{self, Rules, Violation};
use super::history::{Entry, History};
use super::nemesis::{Nemesis, Report};
use super::plan::Plan;
use super::seats::{Belief, Client};
use super::summary::Summary;
use super::work::{self, Works};
use crate::cluster::{Allowed, Cluster, VOLUME, brick_differences};
use crate::simulator::Random;

const CLIENTS: usize = 2;
/// A mount with the defaults believes a name for 1 s; the rest is for a loaded machine, where an
/// answer waits for its turn.
const BELIEVES: Duration = Duration::from_secs(4);
/// Programs come to their end within this once everything is let go.
const ENDS_WITHIN: Duration = Duration::from_secs(120);
/// A copy writes times back after a second of rest.
const EQUAL_WITHIN: Duration = Duration::from_secs(60);
/// The last heal comes to its end within this.
const HEALS_WITHIN: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SHOWN_MAX: usize = 5;

/// Log lines that faults bring about by right.
const ALLOWED: [Allowed<'static>; 4] = [
    Allowed {
        text: "locks are lost, files they were held on answer EIO",
        why: "a client that was put out while it held locks says so",
    },
    Allowed {
        text: "a change was under way when this client was put out",
        why: "its program gets EIO, which the checker judges",
    },
    Allowed {
        text: "every copy was started anew and the one that serves has another page cache",
        why: "a client whose copies all died, and which was never served by the one that takes over",
    },
    Allowed {
        text: "no brick may serve yet: whoever uses the mount waits",
        why: "a client that is mounted while the bricks are disturbed",
    },
];

/// A volume with clients, which rounds are run on one after the other.
pub struct Rig {
    cluster: Cluster,
    clients: Vec<Arc<Client>>,
    copies: usize,
}

/// What a round found.
#[derive(Debug)]
pub struct RoundFailed {
    plan: Plan,
    report: Report,
    violations: Vec<Violation>,
}

impl Rig {
    /// Three peers, of which the last is a witness if there are two `copies`.
    ///
    /// # Panics
    /// When the volume cannot be made or mounted.
    pub fn new(copies: usize) -> Self {
        let cluster = Cluster::three_peers_and(copies, &["client1", "client2"]);
        let clients = vec![
            Arc::new(Client::new(0, "client1", Belief::Default)),
            Arc::new(Client::new(1, "client2", Belief::None)),
        ];
        for client in &clients {
            client.mount(&cluster).unwrap_or_else(|why| panic!("{why}"));
        }
        Rig {
            cluster,
            clients,
            copies,
        }
    }

    /// Runs round number `round` of the plan of `seed`.
    ///
    /// # Errors
    /// When a promise was broken.
    pub fn round(&self, seed: u64, round: u64) -> Result<Summary, Box<RoundFailed>> {
        let plan = Plan::new(seed, round, CLIENTS);
        let mut random = Random::new(seed ^ round);
        self.cluster.lives_on();
        let history = Arc::new(History::default());
        let folder = format!("round-{round}");
        let works = Works::start(&self.clients, &history, &folder, &mut random);
        let nemesis = Nemesis::new(&self.cluster, &self.clients, &history, self.copies);
        let report = nemesis.carry_out(&plan);
        works.stop();
        let mut violations: Vec<Violation> = report.broken.iter().map(broken).collect();
        if end(works) {
            violations.extend(self.rest(&history, &folder));
        } else {
            violations.push(broken(format!(
                "programs do not end within {ENDS_WITHIN:?}"
            )));
        }
        let entries = history.entries();
        let rules = rules_of(&report);
        let verdict = check::judge(&entries, &rules);
        violations.extend(verdict.violations);
        if !violations.is_empty() {
            return Err(Box::new(RoundFailed {
                plan,
                report,
                violations,
            }));
        }
        let removed = self.clients[0]
            .root()
            .map(|root| fs::remove_dir_all(root.path.join(&folder)));
        if let Some(Err(error)) = removed {
            violations.push(broken(format!(
                "the round's folder cannot be removed: {error}"
            )));
            return Err(Box::new(RoundFailed {
                plan,
                report,
                violations,
            }));
        }
        Ok(Summary::of(
            self.copies,
            &entries,
            &report,
            verdict.undecided,
        ))
    }

    /// When nothing changes any more: everything is read, and the bricks are compared.
    fn rest(&self, history: &Arc<History>, folder: &str) -> Vec<Violation> {
        self.cluster.lives_on();
        let since = Instant::now();
        if let Err(why) = self.healed() {
            return vec![broken(why)];
        }
        // Nothing that a mount believed while things changed is believed any more.
        std::thread::sleep(BELIEVES.saturating_sub(since.elapsed()));
        work::read_all(&self.clients, history, folder);
        let bricks = self.bricks();
        let first = &bricks[0];
        let mut found = Vec::new();
        for other in &bricks[1..] {
            let start = Instant::now();
            let mut differences = brick_differences(first, other);
            while !differences.is_empty() && start.elapsed() < EQUAL_WITHIN {
                std::thread::sleep(LOOK_EVERY);
                differences = brick_differences(first, other);
            }
            if !differences.is_empty() {
                found.push(Violation {
                    what: format!("{} and {} differ", first.display(), other.display()),
                    around: differences,
                });
            }
        }
        found
    }

    /// Waits until every copy is in sync and nothing is marked.
    fn healed(&self) -> Result<(), String> {
        let peer = self.cluster.any_peer();
        let healed = || {
            peer.in_sync(VOLUME)?;
            let lacks = |reply: VolumeHealReply| {
                let bricks = reply.bricks.iter();
                bricks.map(|brick| brick.total).sum::<u64>()
            };
            match peer.heal_info(VOLUME).map(lacks)? {
                0 => Ok(()),
                left => Err(format!("{left} entries are to be healed")),
            }
        };
        let start = Instant::now();
        while let Err(why) = healed() {
            if start.elapsed() > HEALS_WITHIN {
                return Err(format!(
                    "not healed {HEALS_WITHIN:?} after the last fault: {why}"
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn bricks(&self) -> Vec<PathBuf> {
        let hosts = self.cluster.hosts()[..self.copies].iter();
        hosts.map(|host| self.cluster.brick(&host.name)).collect()
    }

    /// Unmounts, and asserts that nothing a human must look at was logged.
    ///
    /// # Panics
    /// When something was.
    pub fn finish(self) -> Summary {
        self.clients.iter().for_each(|client| client.unmount());
        self.cluster.assert_logs_clean(&ALLOWED);
        Summary::of_logs(
            self.cluster
                .hosts()
                .iter()
                .flat_map(crate::cluster::Host::logs),
        )
    }
}

fn broken(what: impl ToString) -> Violation {
    Violation {
        what: what.to_string(),
        around: Vec::new(),
    }
}

/// Whether the programs have ended; those that have not are left to the end of their mounts.
fn end(works: Works) -> bool {
    let start = Instant::now();
    while !works.have_ended() {
        if start.elapsed() > ENDS_WITHIN {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    works.join();
    true
}

fn rules_of(report: &Report) -> Rules {
    Rules {
        believes_names: vec![BELIEVES, Duration::ZERO],
        still: report.still.clone(),
        excuses: report.excuses.clone(),
    }
}

impl fmt::Display for RoundFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "planned:\n{}done:", self.plan)?;
        self.report
            .log
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))?;
        writeln!(f, "{} promises were broken:", self.violations.len())?;
        let shown = self.violations.iter().take(SHOWN_MAX);
        shown
            .into_iter()
            .try_for_each(|violation| writeln!(f, "- {violation}"))
    }
}

/// Operations whose time is not another's waiting.
pub(super) fn is_timed(entry: &Entry) -> bool {
    use super::history::Op;
    !matches!(entry.op, Op::Section(..) | Op::Insert(_) | Op::ReadRows)
}
