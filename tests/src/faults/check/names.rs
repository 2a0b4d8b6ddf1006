//! Names: the operations on a space of names are put into one order that explains all answers.
//!
//! Just-in-time linearization (Lowe): going through calls and returns in time, all states that the
//! names may be in are kept, each with the operations under way that it already contains. At a
//! return, those stay in which the operation has had its effect. An operation that only observes is
//! taken as soon as a state fits it: that forbids nothing later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::{Rules, Verdict, Violation};
use crate::faults::history::{Answer, Entry, Name, Op, Space, Time, Token};

const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_millis(500);
/// States kept or looked at for one return; more are not judged.
const STATES_MAX: usize = 50_000;

pub(super) fn judge(entries: &[Entry], rules: &Rules) -> Verdict {
    let mut verdict = Verdict::default();
    for space in [Space::Files, Space::Trees] {
        match Search::new(entries, rules, space).run() {
            Ok(()) => {}
            Err(Failed::TooMany) => verdict.undecided += 1,
            Err(Failed::At(index)) => {
                let entry = &entries[index];
                let end = entry.end.unwrap_or(entry.start);
                let near = (entry.start.before(BEFORE), end.after(AFTER));
                let names = names_of(&entry.op);
                let related =
                    |other: &Entry| names_of(&other.op).iter().any(|name| names.contains(name));
                let what = format!("no order of the changes explains\n    {entry}");
                verdict
                    .violations
                    .push(Violation::new(what, entries, near, related));
            }
        }
        verdict.violations.extend(listings(entries, rules, space));
        verdict.violations.extend(torn(entries, space));
    }
    verdict
}

fn names_of(op: &Op) -> Vec<Name> {
    match op {
        Op::Make(name, _) | Op::Put(name, _) | Op::Remove(name) | Op::Look(name) => vec![*name],
        Op::Move(from, to) => vec![*from, *to],
        _ => Vec::new(),
    }
}

/// What each name holds.
type State = BTreeMap<u8, Token>;

/// A state, and which operations under way are in it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Possible {
    state: State,
    /// Positions in the list of steps, sorted.
    contains: Vec<usize>,
}

/// An operation as the search sees it.
struct Step<'a> {
    index: usize,
    entry: &'a Entry,
    names: Vec<Name>,
    call: Time,
    /// None if it is not known whether it was done.
    ret: Option<Time>,
    changes: Changes,
    /// How long its client believes names.
    believes: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    Yes,
    No,
}

enum Failed {
    At(usize),
    TooMany,
}

struct Search<'a> {
    steps: Vec<Step<'a>>,
    /// When the content of a file was there.
    filled: HashMap<Token, Time>,
    space: Space,
}

impl<'a> Search<'a> {
    fn new(entries: &'a [Entry], rules: &Rules, space: Space) -> Self {
        let mut filled = HashMap::new();
        let mut steps: Vec<Step> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            if let Op::Fill(token) = entry.op {
                filled.insert(token, entry.effect_until());
            }
            let names = names_of(&entry.op);
            if names.iter().all(|name| name.space != space) {
                continue;
            }
            if let Op::Make(_, token) = entry.op {
                filled.entry(token).or_insert(Time::NEVER);
            }
            let changes = changes(entry);
            let ret = entry.answer().and(entry.end);
            // Of what was torn only the tearing is judged; an observation that failed says nothing.
            let says_nothing = ret.is_none() && changes == Changes::No;
            if says_nothing || matches!(entry.answer(), Some(Answer::Torn(_))) {
                continue;
            }
            let call = called(entry, &names, rules, &steps);
            steps.push(Step {
                index,
                entry,
                names,
                call,
                ret,
                changes,
                believes: rules.believes(entry.client),
            });
        }
        Search {
            steps,
            filled,
            space,
        }
    }

    fn run(&self) -> Result<(), Failed> {
        let mut events: Vec<(Time, u8, usize)> = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            events.push((step.call, 0, at));
            events.extend(step.ret.map(|ret| (ret, 1, at)));
        }
        events.sort_unstable();
        let nothing = Possible {
            state: State::new(),
            contains: Vec::new(),
        };
        let mut possible = HashSet::from([nothing]);
        let mut under_way: Vec<usize> = Vec::new();
        for (_, kind, at) in events {
            if kind == 0 {
                under_way.push(at);
                continue;
            }
            possible = self.after_return(possible, &under_way, at)?;
            under_way.retain(|other| *other != at);
            if possible.is_empty() {
                return Err(Failed::At(self.steps[at].index));
            }
        }
        Ok(())
    }

    /// All that is possible once the step `at` has returned.
    fn after_return(
        &self,
        possible: HashSet<Possible>,
        under_way: &[usize],
        at: usize,
    ) -> Result<HashSet<Possible>, Failed> {
        let mut next = HashSet::new();
        let mut seen: HashSet<Possible> = HashSet::new();
        let mut open: Vec<Possible> = possible.into_iter().collect();
        while let Some(mut one) = open.pop() {
            self.observe(&mut one, under_way);
            if let Ok(place) = one.contains.binary_search(&at) {
                one.contains.remove(place);
                next.insert(one);
            } else if seen.insert(one.clone()) {
                for other in under_way {
                    if self.steps[*other].changes == Changes::Yes {
                        open.extend(self.with(&one, *other, under_way));
                        open.extend(self.with_nothing_done(&one, *other, under_way));
                    }
                }
            }
            if seen.len() + next.len() > STATES_MAX {
                return Err(Failed::TooMany);
            }
        }
        Ok(next)
    }

    /// Takes every observation that fits.
    fn observe(&self, one: &mut Possible, under_way: &[usize]) {
        let mut goes_on = true;
        // What one client sees of a name it sees in order, so one may have to wait for another.
        while goes_on {
            goes_on = false;
            for at in under_way {
                if self.steps[*at].changes == Changes::No
                    && let Some(with) = self.with(one, *at, under_way)
                {
                    *one = with;
                    goes_on = true;
                }
            }
        }
    }

    fn with(&self, one: &Possible, at: usize, under_way: &[usize]) -> Option<Possible> {
        let contains = self.containing(one, at, under_way)?;
        let state = self.apply(&one.state, &self.steps[at])?;
        Some(Possible { state, contains })
    }

    /// A rename does nothing if both names are of the same file. The kernel itself finds that, with
    /// an old name that it believes in though the file was moved to the new one by somebody else.
    fn with_nothing_done(
        &self,
        one: &Possible,
        at: usize,
        under_way: &[usize],
    ) -> Option<Possible> {
        let step = &self.steps[at];
        let Op::Move(_, to) = step.entry.op else {
            return None;
        };
        let may_be = !step.believes.is_zero() && one.state.contains_key(&to.index);
        let contains = self.containing(one, at, under_way).filter(|_| may_be)?;
        let state = one.state.clone();
        Some(Possible { state, contains })
    }

    /// What is contained with the step `at` besides, unless that is so or it has to wait.
    fn containing(&self, one: &Possible, at: usize, under_way: &[usize]) -> Option<Vec<usize>> {
        let place = one.contains.binary_search(&at).err()?;
        let step = &self.steps[at];
        let waits = under_way.iter().any(|other| {
            let earlier = &self.steps[*other];
            precedes(earlier, step.entry, &step.names) && one.contains.binary_search(other).is_err()
        });
        if waits {
            return None;
        }
        let mut contains = one.contains.clone();
        contains.insert(place, at);
        Some(contains)
    }

    /// The state after the step, if its answer fits.
    fn apply(&self, state: &State, step: &Step<'_>) -> Option<State> {
        let done = Answer::Done;
        let answer = step.entry.answer().unwrap_or(&done);
        let mut after = state.clone();
        match (&step.entry.op, answer) {
            (Op::Make(name, token), Answer::Done) => {
                (after.insert(name.index, *token).is_none()).then_some(after)
            }
            (Op::Make(name, _), Answer::Taken) => state.contains_key(&name.index).then_some(after),
            (Op::Put(name, token), Answer::Done) => {
                after.insert(name.index, *token);
                Some(after)
            }
            (Op::Remove(name), Answer::Done) => after.remove(&name.index).map(|_| after),
            (Op::Remove(name), Answer::Token(token)) => {
                (after.remove(&name.index) == Some(*token)).then_some(after)
            }
            (Op::Move(from, to), Answer::Done) => {
                let moved = after.remove(&from.index)?;
                let replaced = after.insert(to.index, moved);
                (replaced.is_none() || self.space == Space::Files).then_some(after)
            }
            (Op::Move(from, to), Answer::Taken) => {
                let both = state.contains_key(&from.index) && state.contains_key(&to.index);
                (both && self.space == Space::Trees).then_some(after)
            }
            (Op::Remove(name) | Op::Move(name, _) | Op::Look(name), Answer::Absent) => {
                (!state.contains_key(&name.index)).then_some(after)
            }
            (Op::Look(name), Answer::Token(token)) => {
                (state.get(&name.index) == Some(token)).then_some(after)
            }
            (Op::Look(name), Answer::Empty) => {
                let token = state.get(&name.index)?;
                let filled = self.filled.get(token).copied().unwrap_or(Time(0));
                (filled >= step.entry.start).then_some(after)
            }
            _ => None,
        }
    }
}

fn changes(entry: &Entry) -> Changes {
    match (&entry.op, entry.answer()) {
        (Op::Look(_), _) | (_, Some(Answer::Taken | Answer::Absent)) => Changes::No,
        _ => Changes::Yes,
    }
}

/// From when on the step may have had its effect: from its call, but what a mount saw may be as old
/// as it believes names, though not older than what it did itself to these names.
fn called(entry: &Entry, names: &[Name], rules: &Rules, earlier: &[Step<'_>]) -> Time {
    if changes(entry) == Changes::Yes {
        return entry.start;
    }
    let staleness = rules.staleness(entry.client, entry.start);
    if staleness.is_zero() {
        return entry.start;
    }
    let oldest = entry.start.before(staleness);
    let own = earlier.iter().filter(|step| precedes(step, entry, names));
    own.map(|step| step.call)
        .max()
        .map_or(oldest, |own| own.max(oldest))
}

/// Whether one client did this before to a name in common, and knows of it. A rename that the kernel
/// found to do nothing has taught it nothing.
fn precedes(earlier: &Step<'_>, entry: &Entry, names: &[Name]) -> bool {
    let may_be_nothing = matches!(earlier.entry.op, Op::Move(..)) && !earlier.believes.is_zero();
    earlier.entry.client == entry.client
        && !may_be_nothing
        && earlier.ret.is_some_and(|ret| ret < entry.start)
        && earlier.names.iter().any(|name| names.contains(name))
}

/// A file is read whole, unless it is being written.
fn torn(entries: &[Entry], space: Space) -> Vec<Violation> {
    let torn = entries
        .iter()
        .filter_map(|entry| match (&entry.op, entry.answer()) {
            (Op::Look(name), Some(Answer::Torn(what))) if name.space == space => {
                Some((entry, what))
            }
            _ => None,
        });
    let torn = torn.filter(|(look, _)| {
        let filling = |fill: &Entry| {
            matches!(fill.op, Op::Fill(_))
                && Some(fill.start) <= look.end
                && fill.effect_until() >= look.start
        };
        space == Space::Trees || !entries.iter().any(filling)
    });
    torn.map(|(entry, what)| {
        let near = (entry.start.before(AFTER), entry.start.after(AFTER));
        let what = format!("a torn file was read ({what})\n    {entry}");
        Violation::new(what, entries, near, |other| !names_of(&other.op).is_empty())
    })
    .collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Presence {
    There,
    Absent,
}

fn agrees(listed: &BTreeSet<Name>, (name, presence): &(Name, Presence)) -> bool {
    listed.contains(name) == (*presence == Presence::There)
}

/// A listing shows no name twice, and when all changes had ended, it shows what is there.
fn listings(entries: &[Entry], rules: &Rules, space: Space) -> Vec<Violation> {
    let of_space = |entry: &&Entry| names_of(&entry.op).iter().any(|name| name.space == space);
    let changed = entries
        .iter()
        .filter(of_space)
        .filter(|entry| changes(entry) == Changes::Yes);
    let last_change = changed.map(|entry| entry.end.unwrap_or(entry.start)).max();
    let after = |entry: &Entry| last_change.is_none_or(|last| last < entry.start);
    // A look may show what was there before the last change, for as long as names are believed.
    let is_fresh = |entry: &&Entry| {
        let oldest = entry
            .start
            .before(rules.staleness(entry.client, entry.start));
        last_change.is_none_or(|last| last < oldest)
    };
    let seen: Vec<(Name, Presence)> = entries
        .iter()
        .filter(of_space)
        .filter(is_fresh)
        .filter_map(|entry| match (&entry.op, entry.answer()) {
            (Op::Look(name), Some(Answer::Token(_) | Answer::Empty)) => {
                Some((*name, Presence::There))
            }
            (Op::Look(name), Some(Answer::Absent)) => Some((*name, Presence::Absent)),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| entry.op == Op::List(space)) {
        let Some(Answer::Names(names)) = entry.answer() else {
            continue;
        };
        let listed: BTreeSet<Name> = names.iter().copied().collect();
        let what = if listed.len() < names.len() {
            "a listing shows a name twice".to_owned()
        } else if after(entry) && seen.iter().any(|it| !agrees(&listed, it)) {
            format!("the last listing is not what is there: {seen:?}")
        } else {
            continue;
        };
        let near = (entry.start.before(AFTER), entry.start.after(AFTER));
        let related = |other: &Entry| names_of(&other.op).iter().any(|name| name.space == space);
        found.push(Violation::new(
            format!("{what}\n    {entry}"),
            entries,
            near,
            related,
        ));
    }
    found
}
