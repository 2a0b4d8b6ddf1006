//! What must hold when all is calm, and the search for an order that explains what clients saw.

use std::collections::HashSet;

use brickd::replica::core::{Core, Role};
use mortar_proto::data::Recorded;

use super::faults::CLIENTS_GO_ON_MS;
use super::message::{Ask, Event, HostNo, Key, Outcome};
use super::world::{KEYS, LOCKS, World};

/// After the last fault is mended, all must be in sync and answered within this.
const CONVERGE_MS: u64 = 90_000;
/// A split set waits for its operator this long.
const OPERATOR_MS: u64 = 12_000;

/// What one client asked and was told, with the stamps of both.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub ask: Ask,
    pub start: u64,
    pub end: Option<(u64, Outcome)>,
}

/// Why a set is not in order yet; empty when it is.
type Complaint = String;

impl World {
    /// Looks whether all has become calm.
    pub fn watch(&mut self) {
        let complaint = self.complaint();
        if complaint.is_empty() {
            self.finished = true;
            return;
        }
        if self.now > self.calm_at + CONVERGE_MS {
            return self.fail(format!("the cluster does not come to rest: {complaint}"));
        }
        self.call_operator();
        self.start_again_what_gave_up();
        self.at(self.now + 250, Event::Watch);
    }

    fn role(&self, host: HostNo) -> Option<&Role> {
        self.copies[host].core.as_ref().map(Core::role)
    }

    fn complaint(&self) -> Complaint {
        if self.now < self.calm_at + CLIENTS_GO_ON_MS {
            return "clients go on".to_owned();
        }
        let primaries: Vec<HostNo> = (0..self.copies.len())
            .filter(|host| self.role(*host) == Some(&Role::Primary))
            .collect();
        let roles = || {
            let each = (0..self.copies.len()).map(|host| {
                let epoch = self.copies[host]
                    .core
                    .as_ref()
                    .map_or(0, |core| core.epoch().number);
                format!("host {host} {:?} in epoch {epoch}", self.role(host))
            });
            each.collect::<Vec<_>>().join("; ")
        };
        let &[primary] = &primaries[..] else {
            return roles();
        };
        let Some(core) = &self.copies[primary].core else {
            return roles();
        };
        let in_sync = core.in_sync();
        for (host, copy) in self.copies.iter().enumerate() {
            let Some(theirs) = &copy.core else {
                return roles();
            };
            let listed = in_sync
                .iter()
                .any(|(brick, life)| *brick == World::brick(host) && life.0 == copy.life);
            let follows = host == primary || *theirs.role() == Role::Backup;
            if !listed || !follows || theirs.epoch_ref() != core.epoch_ref() {
                return roles();
            }
            if !copy.memory.jobs.is_empty() {
                return format!("host {host} applies");
            }
        }
        if let Some(client) = self
            .clients
            .iter()
            .position(|client| client.waits.is_some())
        {
            return format!("client {client} waits; {}", roles());
        }
        if core.oldest_pending_ms().is_some() {
            "changes are pending".to_owned()
        } else {
            String::new()
        }
    }

    /// A brick whose disk hung for too long has given up: the operator starts it again.
    fn start_again_what_gave_up(&mut self) {
        for host in 0..self.copies.len() {
            if matches!(self.role(host), Some(Role::Stopped(_))) {
                self.end_host(host, true);
                self.start_host(host);
            }
        }
    }

    /// After both went alone somebody has to choose.
    fn call_operator(&mut self) {
        let closed = (0..self.copies.len()).any(|host| self.role(host) == Some(&Role::Split));
        if !closed || self.registry.voters != 2 {
            self.stuck_since = None;
            return;
        }
        let since = *self.stuck_since.get_or_insert(self.now);
        if self.now < since + OPERATOR_MS {
            return;
        }
        self.stuck_since = None;
        let chosen = self.random.below(self.copies.len());
        self.summary.operator = true;
        self.trace(|| format!("the operator trusts host {chosen}"));
        self.with_core(chosen, |core, now| core.operator_trusts_me(now));
    }

    /// A copy takes over that lost what it had not synced: nobody else lived through. What fsync
    /// covered must be there.
    pub fn roll_back(&mut self, host: HostNo) {
        self.copies[host].lost = false;
        if self.is_split() {
            return;
        }
        for (key, version) in self.fsynced.clone() {
            let held = self.copies[host].disk.cells[key as usize].version;
            if held < version {
                self.fail(format!(
                    "host {host} takes over with version {held} of register {key}; \
                     fsync had covered {version}"
                ));
            }
        }
        self.summary.rolled_back = true;
        self.stamp += 1;
        let held = self.copies[host]
            .disk
            .cells
            .iter()
            .map(|cell| cell.value)
            .collect();
        self.trace(|| format!("host {host} takes over with what a power cut or kill left"));
        self.rollbacks.push((self.stamp, held));
    }

    pub fn check_at_the_end(&mut self) {
        self.summary.split = self.is_split();
        for host in 1..self.copies.len() {
            if let Some(what) = self.sessions_differ(host) {
                return self.fail(what);
            }
            if self.copies[host].disk != self.copies[0].disk {
                let (a, b) = (&self.copies[0].disk, &self.copies[host].disk);
                return self.fail(format!("the copies differ:\n  0: {a:?}\n  {host}: {b:?}"));
            }
        }
        if self.is_split() || self.summary.operator {
            return;
        }
        for key in 0..KEYS + LOCKS {
            if let Some(segment) = self.unexplained(key) {
                return self.fail(format!("no order explains register {key}:\n{segment}"));
            }
        }
    }

    /// How the memory of a copy differs from the first one's.
    fn sessions_differ(&self, host: HostNo) -> Option<String> {
        let replicated = |host: HostNo| {
            let (table, mut states) = self.copies[host].memory.sessions.export();
            // How far a slot is, when nothing was changed since, the primary alone knows.
            states.iter_mut().for_each(|state| state.slots.clear());
            // Two sessions may end in either order.
            states.sort_by_key(|state| (state.ended, state.session));
            (table, states)
        };
        let (a, b) = (replicated(0), replicated(host));
        let primary = if self.role(0) == Some(&Role::Primary) {
            &a.0
        } else {
            &b.0
        };
        let both = |result: &&Recorded| a.0.contains(result) && b.0.contains(result);
        let concerned = [0, host].map(|host| self.role(host) == Some(&Role::Primary));
        let lacks = concerned.contains(&true) && !primary.iter().all(|result| both(&result));
        (lacks || a.1 != b.1)
            .then(|| format!("what copies remember differs:\n  0: {a:?}\n  {host}: {b:?}"))
    }

    /// The operations on a register that no order explains.
    fn unexplained(&self, key: Key) -> Option<String> {
        let mut initial = None;
        let mut from = 0;
        let cuts = self
            .rollbacks
            .iter()
            .map(|(stamp, held)| (*stamp, held.get(key as usize).copied().flatten()));
        let last = (u64::MAX, None);
        for (until, held) in cuts.chain([last]) {
            let mut operations: Vec<Operation> = self
                .operations
                .iter()
                .filter(|operation| operation.ask.key() == key && operation.start < until)
                .filter(|operation| operation.end.is_none_or(|end| end.0 > from))
                .map(|operation| {
                    // What spans a rollback may have been done, undone, and done again.
                    let spans =
                        operation.start < from || operation.end.is_some_and(|end| end.0 > until);
                    let end = operation.end.filter(|_| !spans);
                    Operation { end, ..*operation }
                })
                .collect();
            if until == u64::MAX && key < KEYS {
                let value = self.copies[0].disk.cells[key as usize].value;
                let (start, end) = (self.stamp + 1, self.stamp + 2);
                let ask = Ask::Read(key);
                let end = Some((end, Outcome::Value(value)));
                operations.push(Operation { ask, start, end });
            }
            if !is_explained(&operations, initial) {
                let lines = operations
                    .iter()
                    .map(|operation| format!("  {operation:?}"));
                let lines: Vec<String> = lines.collect();
                return Some(format!("  initially {initial:?}\n{}", lines.join("\n")));
            }
            initial = held;
            from = until;
        }
        None
    }
}

/// Whether the operations can be put in one order that respects who ended before whom began, and
/// in which each comes to what its client was told. What was never answered may have been done.
pub fn is_explained(operations: &[Operation], initial: Option<u64>) -> bool {
    let words = operations.len().div_ceil(64);
    let required: Vec<usize> = (0..operations.len())
        .filter(|at| operations[*at].end.is_some())
        .collect();
    let mut stack = vec![(vec![0_u64; words], initial)];
    let mut visited = HashSet::new();
    while let Some((done, held)) = stack.pop() {
        let is_done = |at: usize| done[at / 64] >> (at % 64) & 1 == 1;
        let open = required.iter().filter(|at| !is_done(**at));
        let Some(first_end) = open
            .filter_map(|at| operations[*at].end)
            .map(|end| end.0)
            .min()
        else {
            return true;
        };
        for (at, operation) in operations.iter().enumerate() {
            if is_done(at) || operation.start > first_end {
                continue;
            }
            let (mut outcome, mut after) = Outcome::of(operation.ask, held);
            if operation.end.is_some_and(|end| end.1 == Outcome::NoSpace) {
                (outcome, after) = (Outcome::NoSpace, held);
            }
            let fits = operation.end.is_none_or(|(_, told)| told == outcome);
            let idle = operation.end.is_none() && after == held;
            if !fits || idle {
                continue;
            }
            let mut next = done.clone();
            next[at / 64] |= 1 << (at % 64);
            if visited.insert((next.clone(), after)) {
                stack.push((next, after));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(ask: Ask, start: u64, end: u64, outcome: Outcome) -> Operation {
        Operation {
            ask,
            start,
            end: Some((end, outcome)),
        }
    }

    #[test]
    fn a_stale_read_is_not_explained() {
        let write = operation(Ask::Write(0, 7), 1, 2, Outcome::Done);
        let fresh = operation(Ask::Read(0), 3, 4, Outcome::Value(Some(7)));
        let stale = operation(Ask::Read(0), 3, 4, Outcome::Value(None));
        assert!(is_explained(&[write, fresh], None));
        assert!(!is_explained(&[write, stale], None));
        let beside = Operation { start: 1, ..stale };
        assert!(is_explained(&[write, beside], None));
    }

    #[test]
    fn an_unanswered_write_may_have_been_done_or_not() {
        let write = Operation {
            end: None,
            ..operation(Ask::Write(0, 7), 1, 2, Outcome::Done)
        };
        for value in [None, Some(7)] {
            let read = operation(Ask::Read(0), 3, 4, Outcome::Value(value));
            assert!(is_explained(&[write, read], None));
        }
    }

    #[test]
    fn a_create_that_was_done_twice_is_not_explained() {
        let create = operation(Ask::Create(0, 7), 1, 2, Outcome::Exists);
        assert!(!is_explained(&[create], None));
    }
}
