//! The heal engine's double: what partners may lack, and bringing it to them as changes.

use std::collections::BTreeMap;

use brickd::replica::core::{Core, Role, WaitFor};
use mortar_proto::data::EpochRef;

use super::Bug;
use super::message::{Change, Event, HostNo, Key, Message, Step};
use super::world::{KEYS, World};

/// A heal under way.
#[derive(Debug, Default)]
pub struct Heal {
    /// What is marked, with a counter that grows with each change while it is marked.
    marks: BTreeMap<Key, u64>,
    /// Read and sent: under which number, at which counter.
    sent: BTreeMap<Key, (u64, u64)>,
    /// Applied on the target, at which counter it was read.
    done: BTreeMap<Key, u64>,
    /// A sync was asked for.
    token: Option<u64>,
    quiet: bool,
}

impl World {
    /// Every copy notes for every partner what changed since the partner's last confirmed sync.
    pub fn remember_changed(&mut self, host: HostNo, change: &Change) {
        if matches!(change.step, Step::Fsync) {
            return;
        }
        for since in &mut self.copies[host].memory.since {
            since.insert(change.key, change.number);
        }
    }

    /// A copy went out. Whether it may have more than this copy knows of: only an orderer's
    /// backups can, and only of what they were sent.
    pub fn mark(&mut self, host: HostNo, lost: HostNo, epoch: EpochRef) {
        self.trace(|| {
            format!(
                "host {host} marks for host {lost}, out of epoch {}",
                epoch.number
            )
        });
        let by_me = self.copies[host]
            .core
            .as_ref()
            .is_some_and(|core| matches!(core.role(), Role::Primary));
        self.copies[host].memory.sure[lost] = by_me;
    }

    pub fn start_heal(&mut self, host: HostNo, target: HostNo) {
        let memory = &mut self.copies[host].memory;
        if let Some(heal) = memory.heals.get_mut(&target) {
            heal.quiet = false;
            return;
        }
        let mut heal = Heal::default();
        let tail = memory.tails[target].take();
        let fine = memory.known[target]
            && !memory.strays[target]
            && (memory.sure[target] || tail.is_some());
        let since = std::mem::take(&mut memory.since[target]);
        let keys: Vec<Key> = if fine {
            since.into_keys().chain(tail.unwrap_or_default()).collect()
        } else {
            (0..KEYS).collect()
        };
        for key in &keys {
            heal.marks.insert(*key, 1);
        }
        memory.heals.insert(target, heal);
        let life = self.copies[host].life;
        self.trace(|| format!("host {host} heals host {target}: {keys:?}"));
        if self.bug == Bug::JoinUnhealed {
            let brick = World::brick(target);
            self.with_core(host, |core, now| core.heal_quiet(brick, now));
        }
        self.at(self.now + 1, Event::Heal { host, life });
    }

    pub fn stop_heal(&mut self, host: HostNo, target: HostNo) {
        let last = self.copies[host].core.as_ref().map_or(0, Core::last_number);
        let memory = &mut self.copies[host].memory;
        let Some(heal) = memory.heals.remove(&target) else {
            return;
        };
        for key in heal.marks.into_keys() {
            memory.since[target].insert(key, last);
        }
        // What it holds now is what this copy sent it, and nothing is forgotten of that.
        let joined = self.copies[host].core.as_ref().is_some_and(|core| {
            core.in_sync()
                .iter()
                .any(|(brick, _)| *brick == World::brick(target))
        });
        let memory = &mut self.copies[host].memory;
        memory.known[target] |= joined;
        memory.sure[target] = true;
        if !joined && !memory.known[target] {
            memory.sure[target] = false;
        }
        if joined {
            self.summary.joins += 1;
        }
    }

    /// Whether a change is not for this syncing copy because what it touches is marked; then it
    /// is marked anew.
    pub fn skips(&mut self, host: HostNo, target: HostNo, change: &Change) -> bool {
        let Some(heal) = self.copies[host].memory.heals.get_mut(&target) else {
            return false;
        };
        let Some(counter) = heal.marks.get_mut(&change.key) else {
            return false;
        };
        if change.step == Step::Fsync {
            return true;
        }
        *counter += 1;
        heal.done.remove(&change.key);
        heal.sent.remove(&change.key);
        true
    }

    pub fn on_heal(&mut self, host: HostNo, life: u64) {
        let targets: Vec<HostNo> = self.copies[host].memory.heals.keys().copied().collect();
        for target in &targets {
            self.heal_step(host, *target);
        }
        if !targets.is_empty() {
            let at = self.now + self.random.between(5, 60);
            self.at(at, Event::Heal { host, life });
        }
    }

    fn heal_step(&mut self, host: HostNo, target: HostNo) {
        let memory = &self.copies[host].memory;
        let Some(heal) = memory.heals.get(&target) else {
            return;
        };
        // Read under the register's queue: nothing on it is ordered and unapplied.
        let busy = |key: &Key| {
            memory.ahead.contains_key(key)
                || memory
                    .queues
                    .get(key)
                    .is_some_and(|queue| !queue.is_empty())
        };
        let next = heal
            .marks
            .iter()
            .find(|(key, _)| {
                !heal.sent.contains_key(key) && !heal.done.contains_key(key) && !busy(key)
            })
            .map(|(key, counter)| (*key, *counter));
        if let Some((key, counter)) = next {
            return self.send_heal(host, target, key, counter);
        }
        let all_done = heal.marks.keys().all(|key| heal.done.contains_key(key));
        if all_done && heal.token.is_none() && !heal.quiet {
            let token = self.random.id();
            let conn = memory.streams.get(&target).copied();
            if let (Some(heal), Some(conn)) =
                (self.copies[host].memory.heals.get_mut(&target), conn)
            {
                heal.token = Some(token);
                self.send(conn, host, Message::SyncRequest(token));
            }
        }
    }

    fn send_heal(&mut self, host: HostNo, target: HostNo, key: Key, counter: u64) {
        let now = self.clock(host);
        let cell = self.copies[host].disk.cells[key as usize];
        let Some(core) = self.copies[host].core.as_mut() else {
            return;
        };
        let Ok(ordered) = core.order(WaitFor::Heal(World::brick(target)), now) else {
            return;
        };
        if let Some(heal) = self.copies[host].memory.heals.get_mut(&target) {
            heal.sent.insert(key, (ordered.number, counter));
        }
        let change = Change {
            number: ordered.number,
            epoch: ordered.epoch,
            key,
            step: Step::Heal(cell),
            client: 0,
            seq: 0,
        };
        self.send_change(host, target, change, ordered.complete);
        self.carry_out(host, ordered.commands);
    }

    pub fn on_heal_answer(&mut self, host: HostNo, target: HostNo, number: u64) {
        let Some(heal) = self.copies[host].memory.heals.get_mut(&target) else {
            return;
        };
        let found = heal.sent.iter().find(|(_, sent)| sent.0 == number);
        if let Some((key, (_, counter))) = found.map(|(key, sent)| (*key, *sent)) {
            heal.sent.remove(&key);
            heal.done.insert(key, counter);
        }
    }

    pub fn on_sync_done(&mut self, host: HostNo, target: HostNo, token: u64, synced: u64) {
        let memory = &mut self.copies[host].memory;
        let Some(heal) = memory.heals.get_mut(&target) else {
            return;
        };
        if heal.token != Some(token) {
            return;
        }
        heal.token = None;
        let unchanged: Vec<Key> = heal
            .done
            .iter()
            .filter(|(key, counter)| heal.marks.get(key) == Some(counter))
            .map(|(key, _)| *key)
            .collect();
        for key in unchanged {
            heal.marks.remove(&key);
            heal.done.remove(&key);
        }
        heal.quiet = heal.marks.is_empty();
        let quiet = heal.quiet;
        memory.since[target].retain(|_, number| *number > synced);
        if quiet {
            let brick = World::brick(target);
            self.with_core(host, |core, now| core.heal_quiet(brick, now));
        }
    }

    pub fn send_table(&mut self, host: HostNo, target: HostNo) {
        let number = self.copies[host].core.as_ref().map_or(0, Core::last_number);
        let table = self.copies[host].disk.table.clone();
        if let Some(conn) = self.copies[host].memory.streams.get(&target).copied() {
            self.send(conn, host, Message::Table { table, number });
        }
    }

    // ------------------------------------------------------------ syncs

    /// Makes all that is applied durable; the number up to which that is everything.
    pub fn sync(&mut self, host: HostNo) -> u64 {
        let copy = &mut self.copies[host];
        copy.durable = copy.disk.clone();
        let known = copy.core.as_ref().map_or(0, Core::last_number);
        let highest = if copy
            .core
            .as_ref()
            .is_some_and(|core| *core.role() == Role::Primary)
        {
            known
        } else {
            copy.memory.received_to
        };
        copy.memory
            .unapplied
            .first()
            .map_or(highest, |first| first - 1)
    }

    pub fn on_sync(&mut self, host: HostNo, life: u64) {
        let at = self.now + self.random.between(500, 2_500);
        self.at(at, Event::Sync { host, life });
        let number = self.sync(host);
        let memory = &self.copies[host].memory;
        let conns: Vec<usize> = memory
            .streams
            .values()
            .copied()
            .chain(memory.incoming)
            .collect();
        for conn in conns {
            self.send(conn, host, Message::Synced { host, number });
        }
    }

    /// A copy confirmed a sync: to the primary, which tells the others if it is in sync.
    pub fn on_synced(&mut self, host: HostNo, from: HostNo, whose: HostNo, number: u64) {
        let Some(core) = &self.copies[host].core else {
            return;
        };
        let in_sync = core
            .in_sync()
            .iter()
            .any(|(brick, _)| *brick == World::brick(whose));
        let is_primary = *core.role() == Role::Primary;
        let memory = &mut self.copies[host].memory;
        if !in_sync && !memory.heals.contains_key(&whose) {
            return;
        }
        memory.since[whose].retain(|_, changed| *changed > number);
        if in_sync && number >= memory.joined_at {
            memory.known[whose] = true;
        }
        if is_primary && in_sync && from == whose {
            let conns: Vec<(HostNo, usize)> = memory
                .streams
                .iter()
                .map(|(to, conn)| (*to, *conn))
                .collect();
            for (to, conn) in conns {
                if to != whose {
                    self.send(
                        conn,
                        host,
                        Message::Synced {
                            host: whose,
                            number,
                        },
                    );
                }
            }
        }
    }

    /// What follows from an epoch for what is known of partners.
    pub fn note_joined(&mut self, host: HostNo) {
        let Some(core) = &self.copies[host].core else {
            return;
        };
        let listed = core
            .in_sync()
            .iter()
            .any(|(brick, _)| *brick == World::brick(host));
        let (first, backup) = (core.epoch().number == 1, *core.role() == Role::Backup);
        let copy = &mut self.copies[host];
        if listed && first {
            // All began empty.
            copy.memory.known.iter_mut().for_each(|known| *known = true);
        }
        copy.lost &= !backup;
        copy.went_alone &= !backup;
    }
}
