//! Carries out a plan on a cluster, and notes what was done when.

mod act;
mod roles;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::{Excuse, Span, Why};
use super::history::{History, Time};
use super::plan::{Fault, Group, Plan, Then, Timed};
use super::seats::Client;
use crate::cluster::{Cluster, VOLUME};

use act::Hold;
use roles::Roles;

/// I/O goes on within this when all is let go, however slow the machine.
const GOES_ON_WITHIN: Duration = Duration::from_secs(120);
/// A heal comes to its end within this when all is let go.
const HEALS_WITHIN: Duration = Duration::from_secs(240);
/// A heal that is not seen within this was over before.
const HEAL_SEEN_WITHIN: Duration = Duration::from_secs(10);
/// Operations of each client that show that it goes on.
const PROGRESS: u64 = 12;
/// From this on I/O must go on while the fault lasts.
const LONG: Duration = Duration::from_secs(6);
/// A client may be put out when it was silent for this long (8 s, but for messages on their way).
const SILENT: Duration = Duration::from_secs(5);
/// What a fault did to a client is over so long after it.
const AFTERMATH: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A group as it was carried out.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// What it was, for the table of stalls.
    pub label: String,
    pub from: Time,
    /// When all was well again, or the next group began.
    pub to: Time,
    /// Clients that were themselves killed, frozen or cut off.
    pub hit: Vec<usize>,
}

/// What the nemesis did in a round.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub groups: Vec<Done>,
    /// Each fault as text, with the host.
    pub faults: Vec<(Fault, String)>,
    pub excuses: Vec<Excuse>,
    /// Times in which clients stood still.
    pub still: Vec<Span>,
    /// Heals that were to be disturbed and were over before.
    pub heals_missed: u64,
    /// What was promised and did not come.
    pub broken: Vec<String>,
    /// What was done, line by line.
    pub log: Vec<String>,
}

pub(super) struct Nemesis<'a> {
    cluster: &'a Cluster,
    clients: &'a [Arc<Client>],
    history: &'a History,
    report: Report,
    copies: usize,
    lost: Lost,
    /// When that began.
    unwell_since: Option<Time>,
}

impl<'a> Nemesis<'a> {
    pub fn new(
        cluster: &'a Cluster,
        clients: &'a [Arc<Client>],
        history: &'a History,
        copies: usize,
    ) -> Self {
        Nemesis {
            cluster,
            clients,
            history,
            report: Report::default(),
            copies,
            lost: Lost::default(),
            unwell_since: None,
        }
    }

    /// Does all of it, or as much as comes before a promise is seen broken.
    pub fn carry_out(mut self, plan: &Plan) -> Report {
        self.go_on("at the begin", &[]);
        for group in &plan.groups {
            if !self.report.broken.is_empty() {
                break;
            }
            self.cluster.lives_on();
            self.group(group);
        }
        self.report
    }

    fn group(&mut self, group: &Group) {
        let from = self.history.now();
        self.unwell_since.get_or_insert(from);
        let mut label = String::new();
        let mut hit = Vec::new();
        for (number, phase) in group.phases.iter().enumerate() {
            if number > 0 {
                self.wait_for_a_heal();
            }
            let roles = Roles::find(self.cluster);
            if number == 0 {
                label = label_of(group, &roles);
            }
            hit.extend(phase.iter().filter_map(|one| one.fault.client()));
            // A copy that is not healed yet can take nobody's place.
            let single = group.single().filter(|_| self.is_whole());
            self.phase(phase, &roles, single);
        }
        self.go_on(&label, &[]);
        if group.then == Then::Calm {
            self.heal(&label);
        }
        let to = self.history.now();
        if self.lost.may_have_lost_sessions() {
            let since = self.unwell_since.unwrap_or(from);
            for client in self.clients {
                let span = Span {
                    client: client.id,
                    from: since,
                    to: to.after(AFTERMATH),
                };
                self.report.excuses.push(Excuse {
                    span,
                    why: Why::SessionLost,
                });
            }
        }
        if group.then == Then::Calm {
            self.lost = Lost::default();
            self.unwell_since = None;
        }
        self.report.groups.push(Done {
            label,
            from,
            to,
            hit,
        });
    }

    /// Makes the faults of a phase and lets them go, each at its time.
    fn phase(&mut self, phase: &[Timed], roles: &Roles, single: Option<Fault>) {
        let start = Instant::now();
        let mut holds: Vec<Option<Hold>> = phase.iter().map(|_| None).collect();
        let mut events: Vec<(u64, u8, usize)> = Vec::new();
        for (at, one) in phase.iter().enumerate() {
            events.push((one.after_ms, 0, at));
            events.push((one.after_ms + one.for_ms, 1, at));
        }
        events.sort_unstable();
        for (ms, kind, at) in events {
            let due = Duration::from_millis(ms);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            let one = &phase[at];
            if kind == 0 {
                holds[at] = self.make(one.fault, roles);
                continue;
            }
            let long = one.for_ms >= u64::try_from(LONG.as_millis()).unwrap_or(u64::MAX);
            if long && single.is_some_and(Fault::must_go_on) {
                self.go_on(&format!("while it lasts: {}", one.fault), &[]);
            }
            if let Some(hold) = holds[at].take() {
                self.let_go(hold);
            }
        }
    }

    fn make(&mut self, fault: Fault, roles: &Roles) -> Option<Hold> {
        let from = self.history.now();
        let hold = act::make(self.cluster, self.clients, fault, roles, from);
        match &hold {
            Some(hold) => {
                let bricks = hold.hosts.iter().filter(|host| self.has_brick(host));
                let bricks: Vec<String> = bricks.cloned().collect();
                self.lost.add(fault, bricks);
                self.report
                    .log
                    .push(format!("{from} {fault}: {}", hold.whom));
                self.report.faults.push((fault, hold.whom.clone()));
            }
            None => self
                .report
                .log
                .push(format!("{from} {fault}: was down already")),
        }
        hold
    }

    fn has_brick(&self, host: &str) -> bool {
        let with_bricks = &self.cluster.hosts()[..self.copies];
        with_bricks.iter().any(|one| one.name == host)
    }

    fn let_go(&mut self, hold: Hold) {
        let (from, fault) = (hold.from, hold.fault);
        if let Err(why) = act::let_go(self.cluster, self.clients, &hold) {
            self.report
                .broken
                .push(format!("after {fault} of {}: {why}", hold.whom));
        }
        let to = self.history.now();
        self.report.log.push(format!("{to} … is over"));
        let Some(client) = fault.client().map(|at| self.clients[at].id) else {
            return;
        };
        let span = Span {
            client,
            from,
            to: to.after(AFTERMATH),
        };
        match fault {
            Fault::KillClient(_) => {
                self.report.excuses.push(Excuse {
                    span: Span { to, ..span },
                    why: Why::ClientKilled,
                });
            }
            _ if to.since(from) > SILENT => {
                self.report.excuses.push(Excuse {
                    span,
                    why: Why::SessionLost,
                });
            }
            _ => {}
        }
        if matches!(fault, Fault::FreezeClient(_)) {
            self.report.still.push(Span { client, from, to });
        }
    }

    /// Waits until every client but these was answered some times.
    fn go_on(&mut self, when: &str, but: &[usize]) {
        let others = || {
            self.clients
                .iter()
                .enumerate()
                .filter(|(at, _)| !but.contains(at))
        };
        let before: Vec<u64> = others().map(|(_, client)| client.done()).collect();
        let goes_on = || {
            others()
                .zip(&before)
                .all(|((_, client), before)| client.done() >= before + PROGRESS)
        };
        if !self.wait(GOES_ON_WITHIN, goes_on) {
            self.report.broken.push(format!(
                "I/O has not gone on within {GOES_ON_WITHIN:?} ({when})"
            ));
        }
    }

    /// Whether every copy is in sync.
    fn is_whole(&self) -> bool {
        roles::peers(self.cluster)
            .next()
            .is_some_and(|host| host.in_sync(VOLUME).is_ok())
    }

    fn heal(&mut self, label: &str) {
        let start = Instant::now();
        loop {
            match roles::peers(self.cluster)
                .next()
                .map(|host| host.in_sync(VOLUME))
            {
                Some(Ok(())) => return,
                why if start.elapsed() > HEALS_WITHIN => {
                    let what = format!("not healed within {HEALS_WITHIN:?} after {label}: {why:?}");
                    self.report.broken.push(what);
                    return;
                }
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn wait_for_a_heal(&mut self) {
        let start = Instant::now();
        loop {
            if roles::a_heal_runs(self.cluster) {
                self.report
                    .log
                    .push(format!("{} a heal runs", self.history.now()));
                return;
            }
            if self.is_whole() || start.elapsed() > HEAL_SEEN_WITHIN {
                self.report.heals_missed += 1;
                return;
            }
        }
    }

    fn wait(&self, within: Duration, mut holds: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !holds() {
            if start.elapsed() > within {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

/// What went since all was well.
#[derive(Debug, Default)]
struct Lost {
    /// Hosts whose copy was restarted, or may have been put out.
    hosts: BTreeSet<String>,
    /// Pairs cut off from each other: one of the two may have been put out.
    pairs: usize,
}

impl Lost {
    fn add(&mut self, fault: Fault, bricks: Vec<String>) {
        match fault {
            Fault::CutPair(..) => self.pairs += usize::from(bricks.len() > 1),
            // Standing still all at once, nobody puts another out who forgets something by it.
            Fault::FreezeAll => self.pairs += 1,
            _ => self.hosts.extend(bricks),
        }
    }

    /// Sessions live on one copy at least, unless all that had them went before others did.
    fn may_have_lost_sessions(&self) -> bool {
        self.hosts.len() + self.pairs > 1
    }
}

fn label_of(group: &Group, roles: &Roles) -> String {
    match (group.single(), group.phases.len()) {
        (Some(fault), _) => {
            let leads = fault
                .peer()
                .is_some_and(|peer| roles.host(peer) == roles.leader);
            let leads = if leads { " (leads the registry)" } else { "" };
            format!("{fault}{leads}")
        }
        (None, 1) if group.is_isolation() => {
            let words: Vec<String> = group.faults().map(|one| one.fault.to_string()).collect();
            words.join(", then ")
        }
        (None, 1) => "two at once".to_owned(),
        (None, 2) => "during the heal".to_owned(),
        (None, _) => "during the heal of the heal".to_owned(),
    }
}
