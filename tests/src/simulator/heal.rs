//! Healing: the product's index of what other copies lack, driven as the product drives it, and a
//! small healer that carries what is marked.

use std::ops::Range;

use brickd::heal::links::Held;
use brickd::heal::marks::MarkState;
use brickd::heal::record::MarkRecord;
use brickd::heal::touch::{Lacks, Touch};
use brickd::heal::{Marks, PartnerMarks, Scope};
use brickd::replica::core::{Answer, Core, Role, WaitFor};
use mortar_common::{BrickId, Gfid, Incarnation};
use mortar_proto::data::EpochRef;

use super::Bug;
use super::index::{bytes_of, key_of_name, keys_of, marked, name_of, object_of, product_change};
use super::message::{Cell, Change, Event, HostNo, Key, Message, Step};
use super::world::{KEYS, World};

/// Heal changes sent at one go.
const AT_ONCE: usize = 3;
/// Objects looked at for something to carry.
const LOOKED_AT: usize = 16;

/// A heal under way.
#[derive(Debug, Default)]
pub struct Heal {
    /// A confirmed sync was asked for under this number.
    sync: Option<u64>,
}

/// Something that is marked and can be carried now.
#[derive(Debug)]
enum Carry {
    Everything(u64),
    Listing(Gfid),
    Object(Gfid),
    Name(Vec<u8>),
    Block(Key),
}

impl World {
    /// What a copy does before it applies a change.
    pub fn note_for_absent(&mut self, host: HostNo, change: &Change) {
        let core = self.copies[host].core.as_ref();
        if self.bug == Bug::MarkOnOne && core.is_some_and(|core| *core.role() != Role::Primary) {
            return;
        }
        let noted = self.copies[host]
            .memory
            .absent
            .note(&product_change(change));
        self.must_write(host, noted.is_ok());
    }

    pub fn must_write(&mut self, host: HostNo, written: bool) {
        if !written {
            self.fail(format!("host {host} could not write down what others lack"));
        }
    }

    /// A copy went out.
    pub fn mark(&mut self, host: HostNo, brick: BrickId, epoch: EpochRef) {
        self.trace(|| {
            format!(
                "host {host} marks for {brick}, out of epoch {}",
                epoch.number
            )
        });
        let memory = &self.copies[host].memory;
        let kept = memory.kept.values();
        let sent = memory.unanswered.get(&World::host_of(brick));
        let sent = sent.into_iter().flat_map(|sent| sent.values());
        let changes: Vec<_> = kept.chain(sent).map(product_change).collect();
        let written = memory.absent.went_out(brick, epoch, changes.iter());
        self.must_write(host, written.is_ok());
    }

    /// Marks exist for every copy that the epoch does not list, before this one serves.
    pub fn ensure_marks(&mut self, host: HostNo) {
        let core = self.copies[host].core.as_ref();
        let listed = core.map_or(Vec::new(), Core::in_sync);
        for brick in (0..self.copies.len()).map(World::brick) {
            if listed.iter().all(|copy| copy.0 != brick) {
                let last = self.last_in_sync(host, brick);
                let written = self.copies[host].memory.absent.ensure(brick, last).is_ok();
                self.must_write(host, written);
            }
        }
    }

    /// A copy that is to be healed says what it has recorded as durable.
    pub fn returned(&mut self, host: HostNo, from: HostNo, synced: u64) {
        let absent = &self.copies[host].memory.absent;
        let written = absent.returned(World::brick(from), synced);
        self.must_write(host, written.is_ok());
    }

    /// The stream to a syncing copy broke: what it did not answer, it may lack.
    pub fn mark_unanswered_of_syncing(&mut self, host: HostNo, to: HostNo) {
        let brick = World::brick(to);
        let core = self.copies[host].core.as_ref();
        if core.is_some_and(|core| core.in_sync().iter().any(|copy| copy.0 == brick)) {
            return;
        }
        let memory = &mut self.copies[host].memory;
        for change in memory.unanswered.remove(&to).unwrap_or_default().values() {
            memory.absent.mark_again(brick, &product_change(change));
        }
    }

    pub fn start_heal(&mut self, host: HostNo, target: HostNo) {
        if self.copies[host].memory.heals.contains_key(&target) {
            return;
        }
        let brick = World::brick(target);
        let last_in_sync = self.last_in_sync(host, brick);
        let number = self.copies[host].core.as_ref().map_or(0, Core::last_number);
        let memory = &mut self.copies[host].memory;
        let Ok(marks) = memory.absent.ensure(brick, last_in_sync) else {
            return self.must_write(host, false);
        };
        // It tells what it did alone; here that is found by comparing all.
        if memory.strays[target] && marks.mark_everything(Scope::All).is_err() {
            return self.must_write(host, false);
        }
        let in_flight: Vec<_> = memory.kept.values().map(product_change).collect();
        let begun = memory.absent.heal_begins(brick, number, in_flight.iter());
        if begun.is_err() {
            return self.must_write(host, false);
        }
        memory.synced.remove(&target);
        memory.heals.insert(target, Heal::default());
        let whole = marks.look(|marks| marks.everything().is_some());
        self.summary.heals += 1;
        self.summary.whole += usize::from(whole);
        self.trace(|| {
            let what = marks.look(marked);
            format!("host {host} heals host {target} of {what:?}, everything: {whole}")
        });
        if self.bug == Bug::JoinUnhealed {
            self.with_core(host, |core, now| core.heal_quiet(brick, now));
        }
        let life = self.copies[host].life;
        self.at(self.now + 1, Event::Heal { host, life });
    }

    pub fn stop_heal(&mut self, host: HostNo, target: HostNo) {
        let brick = World::brick(target);
        let core = self.copies[host].core.as_ref();
        let joined = core.is_some_and(|core| core.in_sync().iter().any(|copy| copy.0 == brick));
        let memory = &mut self.copies[host].memory;
        memory.heals.remove(&target);
        if joined {
            memory.absent.is_back(brick);
            self.sync_and_confirm(host);
            self.summary.joins += 1;
        } else {
            memory.absent.heal_ends(brick);
        }
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
        let brick = World::brick(target);
        let Some(marks) = self.copies[host].memory.absent.marks(brick) else {
            return;
        };
        for _ in 0..AT_ONCE {
            match self.next_to_carry(host, &marks) {
                Some(carry) => self.carry(host, target, &marks, carry),
                None => return self.confirm_heal(host, target, &marks),
            }
        }
    }

    /// Something is pending, and nothing that is ordered and not applied touches it.
    fn next_to_carry(&self, host: HostNo, marks: &PartnerMarks) -> Option<Carry> {
        let memory = &self.copies[host].memory;
        let busy = |key: Key| {
            let queued = || memory.jobs.values().any(|job| job.change.key == key);
            memory.ahead.contains_key(&key) || queued()
        };
        marks.look(|marks| {
            if let Some(generation) = marks.everything() {
                return Some(Carry::Everything(generation));
            }
            marks.oldest(LOOKED_AT).into_iter().find_map(|gfid| {
                let wanted = marks.wanted(gfid);
                if wanted.attributes {
                    return (!keys_of(gfid).any(busy)).then_some(Carry::Object(gfid));
                }
                if wanted.listing {
                    return Some(Carry::Listing(gfid));
                }
                let names = marks.pending_names(gfid, KEYS as usize);
                let free = |name: &Vec<u8>| key_of_name(name).is_none_or(|key| !busy(key));
                let name = names.into_iter().map(|(name, _)| name).find(free);
                let blocks = || {
                    let pending = |key: &Key| {
                        let bytes = bytes_of(*key);
                        let first = marks.pending_range(gfid, bytes.start);
                        first.is_some_and(|range| range.start < bytes.end) && !busy(*key)
                    };
                    keys_of(gfid).filter(|_| wanted.bytes).find(pending)
                };
                name.map(Carry::Name).or_else(|| blocks().map(Carry::Block))
            })
        })
    }

    fn carry(&mut self, host: HostNo, target: HostNo, marks: &PartnerMarks, carry: Carry) {
        match carry {
            Carry::Everything(generation) => {
                let marked = marks.edit(mark_all);
                let written = marked.and_then(|()| marks.compared_everything(generation));
                self.must_write(host, written.is_ok());
            }
            Carry::Listing(gfid) => {
                marks.carried(|marks| marks.listing_begun(gfid));
                let written = marks.edit(mark_names);
                self.must_write(host, written.is_ok());
                marks.carried(|marks| marks.listing_done(gfid));
            }
            Carry::Object(gfid) => {
                if let Some(number) = self.send_heal(host, target, keys_of(gfid).start, None) {
                    let state = MarkState::Carried(number);
                    marks.carried(|marks| marks.carried_object(gfid, state));
                    self.believe_too_early(marks, number);
                }
            }
            Carry::Name(name) => {
                let key = key_of_name(&name);
                let cell = key.map(|key| self.copies[host].disk.cells[key as usize]);
                let number = self.send_heal(host, target, key.unwrap_or(KEYS - 1), cell);
                if let Some(number) = number {
                    marks.carried(|marks| marks.carried_name(Gfid::ROOT, &name, number));
                    self.believe_too_early(marks, number);
                }
            }
            Carry::Block(key) => {
                let cell = self.copies[host].disk.cells[key as usize];
                if let Some(number) = self.send_heal(host, target, key, Some(cell)) {
                    let (gfid, bytes): (Gfid, Range<u64>) = (object_of(key), bytes_of(key));
                    marks.carried(|marks| marks.carried_bytes(gfid, bytes, number));
                    self.believe_too_early(marks, number);
                }
            }
        }
    }

    fn believe_too_early(&mut self, marks: &PartnerMarks, number: u64) {
        if self.bug == Bug::ClearEarly && marks.synced(number).is_err() {
            self.fail("a mark could not be dropped".to_owned());
        }
    }

    fn send_heal(
        &mut self,
        host: HostNo,
        target: HostNo,
        key: Key,
        cell: Option<Cell>,
    ) -> Option<u64> {
        self.send_step(host, target, key, Step::Heal(cell))
    }

    fn send_step(&mut self, host: HostNo, target: HostNo, key: Key, step: Step) -> Option<u64> {
        let now = self.clock(host);
        let core = self.copies[host].core.as_mut()?;
        let ordered = core.order(WaitFor::Heal(World::brick(target)), now).ok()?;
        let change = Change {
            number: ordered.number,
            epoch: ordered.epoch,
            time: self.next_time(host),
            key,
            step,
            session: 0,
            seq: 0,
        };
        self.trace(|| {
            format!(
                "host {host} sends {} to host {target}: {step:?} of {key}",
                ordered.number
            )
        });
        self.send_change(host, target, change, ordered.complete);
        self.carry_out(host, ordered.commands);
        Some(ordered.number)
    }

    /// Nothing is pending: what was carried is confirmed, and dropped.
    fn confirm_heal(&mut self, host: HostNo, target: HostNo, marks: &PartnerMarks) {
        let brick = World::brick(target);
        let memory = &mut self.copies[host].memory;
        let confirmed = memory.synced.get(&target).copied().unwrap_or(0);
        let Some(heal) = memory.heals.get_mut(&target) else {
            return;
        };
        match heal.sync {
            _ if marks.is_empty() => {
                heal.sync = None;
                self.with_core(host, |core, now| core.heal_quiet(brick, now));
            }
            Some(number) if confirmed >= number => {
                heal.sync = None;
                let written = marks.synced(number).is_ok();
                self.trace(|| format!("host {host} knows {number} to be durable on host {target}"));
                self.must_write(host, written);
                self.check_index(host);
            }
            Some(_) => {}
            None => {
                let number = self.send_step(host, target, 0, Step::Sync);
                if let Some(heal) = self.copies[host].memory.heals.get_mut(&target) {
                    heal.sync = number;
                }
            }
        }
    }

    pub fn send_table(&mut self, host: HostNo, target: HostNo) {
        let brick = World::brick(target);
        let lacks_nothing = self.copies[host].memory.absent.lacks_nothing(brick);
        if !lacks_nothing && self.bug != Bug::JoinUnhealed {
            return self.with_core(host, |core, now| core.heal_failed(brick, now));
        }
        let (table, mut states) = self.copies[host].memory.sessions.export();
        if matches!(self.bug, Bug::ForgetSlots | Bug::ForgetTable) {
            states.iter_mut().for_each(|state| state.slots.clear());
        }
        if let Some(conn) = self.copies[host].memory.streams.get(&target).copied() {
            self.send(conn, host, Message::Table(table, states));
        }
    }

    // ------------------------------------------------------------ syncs

    /// Makes all that is applied durable.
    fn sync(&mut self, host: HostNo) {
        let copy = &mut self.copies[host];
        copy.durable = copy.disk.clone();
        copy.records.sync();
    }

    /// Syncs that were asked for, and before which everything is applied.
    pub fn sync_as_asked(&mut self, host: HostNo) {
        while let Some((number, conn)) = self.copies[host].memory.syncs.first().copied() {
            let memory = &mut self.copies[host].memory;
            if memory
                .unapplied
                .first()
                .is_some_and(|first| *first < number)
            {
                return;
            }
            memory.syncs.remove(0);
            memory.unapplied.remove(&number);
            self.sync(host);
            let ack = Message::Ack {
                number,
                answer: Answer::Applied,
                synced: number,
            };
            self.send(conn, host, ack);
        }
    }

    pub fn on_sync(&mut self, host: HostNo, life: u64) {
        let at = self.now + self.random.between(500, 2_500);
        self.at(at, Event::Sync { host, life });
        self.sync_and_confirm(host);
    }

    /// Makes everything applied so far durable, records it and says so.
    fn sync_and_confirm(&mut self, host: HostNo) {
        let copy = &mut self.copies[host];
        let Some(core) = &copy.core else { return };
        if copy.memory.disk_failed {
            return;
        }
        let is_primary = *core.role() == Role::Primary;
        let up_to = if is_primary {
            core.complete()
        } else {
            let first = copy.memory.unapplied.first();
            first.map_or(copy.memory.received_to, |first| first - 1)
        };
        copy.stored.synced = copy.stored.synced.max(up_to);
        copy.stored.last_number = copy.stored.last_number.max(core.last_number());
        copy.memory.absent.confirmed(World::brick(host), up_to);
        let incoming = copy.memory.incoming;
        self.sync(host);
        if let Some(conn) = incoming.filter(|_| !is_primary) {
            self.send(conn, host, Message::Confirm(up_to));
        }
    }

    /// A copy confirmed a sync to this primary.
    pub fn on_confirm(&mut self, host: HostNo, from: HostNo, number: u64) {
        let brick = World::brick(from);
        let memory = &mut self.copies[host].memory;
        if number > 0 {
            memory.absent.confirmed(brick, number);
            let newest = memory.synced.entry(from).or_default();
            *newest = number.max(*newest);
        }
        memory.absent.recorded(brick, number);
    }

    /// A copy that is in sync again has lost nothing any more.
    pub fn note_in_sync(&mut self, host: HostNo) {
        let Some(core) = &self.copies[host].core else {
            return;
        };
        let backup = *core.role() == Role::Backup;
        self.copies[host].lost &= !backup;
        self.copies[host].went_alone &= !backup;
    }

    // ------------------------------------------------------------ checks

    /// What this in-sync copy would heal each other one of, were it to come back now, is all that
    /// differs even if that one lost power.
    pub fn check_index(&mut self, host: HostNo) {
        if self.is_split() || self.summary.operator {
            return;
        }
        let copy = &self.copies[host];
        let Some(core) = &copy.core else { return };
        let me = (World::brick(host), Incarnation(copy.life));
        let newest = &self.registry.epoch;
        let listed = newest
            .in_sync
            .iter()
            .any(|copy| (copy.brick, copy.incarnation) == (me.0.0, me.1.0));
        let acts = matches!(core.role(), Role::Primary | Role::Backup);
        if !listed || !acts {
            return;
        }
        // Two voters: the registry does not know yet that the other side went on alone.
        if self.lone.iter().all(|lone| lone.1.number <= newest.number) {
            self.check_results(host);
        }
        let copy = &self.copies[host];
        let Some(core) = &copy.core else { return };
        for other in (0..self.copies.len()).filter(|other| *other != host) {
            let Some(marks) = copy.memory.absent.may_lack(World::brick(other)) else {
                continue;
            };
            let marked = marked(&marks);
            for key in 0..KEYS {
                let (here, there) = (
                    copy.disk.cells[key as usize],
                    self.copies[other].durable.cells[key as usize],
                );
                if here.version > there.version && !marked[key as usize] {
                    let epoch = core.epoch().number;
                    return self.fail(format!(
                        "in epoch {epoch} host {host} does not know that host {other} may lack \
                         register {key}: {here:?} here, {there:?} durable there"
                    ));
                }
            }
        }
    }
}

fn mark_all(marks: &mut Marks, record: &mut MarkRecord) {
    for key in (0..KEYS).filter(|key| object_of(*key) != Gfid::ROOT) {
        marks.mark(Touch::Object(object_of(key), Lacks::Attributes), record);
        marks.mark(Touch::Bytes(object_of(key), bytes_of(key)), record);
    }
    mark_names(marks, record);
}

fn mark_names(marks: &mut Marks, record: &mut MarkRecord) {
    for key in (0..KEYS).filter(|key| object_of(*key) == Gfid::ROOT) {
        let name = name_of(key);
        marks.mark(Touch::Name(Gfid::ROOT, &name, Held::Unknown), record);
    }
}
