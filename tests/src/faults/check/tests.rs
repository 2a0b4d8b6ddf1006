//! Histories that lie must be found out, and honest ones believed.

use std::time::Duration;

use super::*;
use crate::faults::history::{
    Answer, Cell, Held, Lock, Name, Op, Outcome, Space, Time, Token, sum_of,
};

/// A history told in seconds.
#[derive(Default)]
struct Told(Vec<Entry>);

impl Told {
    fn put(
        &mut self,
        client: u8,
        times: (u64, Option<u64>),
        op: Op,
        outcome: Outcome,
    ) -> &mut Self {
        self.0.push(Entry {
            client: ClientId(client),
            start: secs(times.0),
            end: times.1.map(secs),
            op,
            outcome,
        });
        self
    }

    fn was(&mut self, client: u8, (from, to): (u64, u64), op: Op, answer: Answer) -> &mut Self {
        self.put(client, (from, Some(to)), op, Outcome::Answered(answer))
    }

    fn failed(&mut self, client: u8, (from, to): (u64, u64), op: Op, error: &str) -> &mut Self {
        self.put(
            client,
            (from, Some(to)),
            op,
            Outcome::Failed(error.to_owned()),
        )
    }

    fn judged(&self, rules: &Rules) -> Vec<Violation> {
        let mut entries = self.0.clone();
        entries.sort_by_key(|entry| entry.start);
        let verdict = judge(&entries, rules);
        assert_eq!(verdict.undecided, 0);
        verdict.violations
    }

    #[track_caller]
    fn holds(&self, rules: &Rules) {
        assert_eq!(self.judged(rules), Vec::new());
    }

    #[track_caller]
    fn lies(&self, rules: &Rules, what: &str) {
        let found = self.judged(rules);
        let said: String = found.iter().map(Violation::to_string).collect();
        assert!(said.contains(what), "{what:?} is not in {said:?}");
    }
}

fn secs(seconds: u64) -> Time {
    Time(0).after(Duration::from_secs(seconds))
}

fn strict() -> Rules {
    Rules::default()
}

/// Client 0 believes names for 2 s; client 1 never.
fn believing() -> Rules {
    Rules {
        believes_names: vec![Duration::from_secs(2), Duration::ZERO],
        ..Rules::default()
    }
}

/// Whatever fails was killed.
fn killed(client: u8) -> Rules {
    let span = Span {
        client: ClientId(client),
        from: Time(0),
        to: Time::NEVER,
    };
    Rules {
        excuses: vec![Excuse {
            span,
            why: Why::ClientKilled,
        }],
        ..Rules::default()
    }
}

const A: Name = file(0);
const B: Name = file(1);
const CELL: Cell = Cell(3);
const NO_ORDER: &str = "no order of the changes explains";

const fn file(index: u8) -> Name {
    Name {
        space: Space::Files,
        index,
    }
}

fn tree(index: u8) -> Name {
    Name {
        space: Space::Trees,
        index,
    }
}

#[test]
fn an_ordinary_history_holds() {
    let mut told = Told::default();
    told.was(0, (1, 2), Op::Make(A, Token(1)), Answer::Done)
        .was(1, (1, 3), Op::Look(A), Answer::Empty)
        .was(0, (3, 4), Op::Fill(Token(1)), Answer::Done)
        .was(1, (5, 6), Op::Look(A), Answer::Token(Token(1)))
        .was(1, (6, 8), Op::Make(A, Token(2)), Answer::Taken)
        .was(0, (6, 9), Op::Move(A, B), Answer::Done)
        .was(1, (10, 11), Op::Put(B, Token(3)), Answer::Done)
        .was(0, (12, 13), Op::Look(A), Answer::Absent)
        .was(0, (13, 14), Op::Remove(B), Answer::Done)
        .was(0, (14, 15), Op::Remove(B), Answer::Absent)
        .was(0, (15, 16), Op::List(Space::Files), Answer::Names(vec![]));
    told.holds(&strict());
}

#[test]
fn a_file_that_was_acknowledged_and_is_lost() {
    let mut told = Told::default();
    told.was(0, (1, 2), Op::Put(A, Token(1)), Answer::Done).was(
        1,
        (3, 4),
        Op::Look(A),
        Answer::Absent,
    );
    told.lies(&strict(), NO_ORDER);
    told.lies(&believing(), NO_ORDER);
}

#[test]
fn an_unlinked_name_that_comes_back() {
    let mut told = Told::default();
    told.was(0, (1, 2), Op::Put(A, Token(1)), Answer::Done)
        .was(0, (3, 4), Op::Remove(A), Answer::Done)
        .was(1, (5, 6), Op::Look(A), Answer::Absent)
        .was(1, (7, 8), Op::Look(A), Answer::Token(Token(1)));
    told.lies(&strict(), NO_ORDER);
    // Also where the client believes names: absence it has seen itself.
    let mut own = Told::default();
    own.was(0, (1, 2), Op::Put(A, Token(1)), Answer::Done)
        .was(0, (3, 4), Op::Remove(A), Answer::Done)
        .was(0, (5, 6), Op::Look(A), Answer::Token(Token(1)));
    own.lies(&believing(), NO_ORDER);
}

#[test]
fn a_name_is_believed_for_its_time_and_no_longer() {
    let mut told = Told::default();
    told.was(1, (1, 2), Op::Put(A, Token(1)), Answer::Done)
        .was(1, (10, 11), Op::Put(A, Token(2)), Answer::Done)
        .was(0, (12, 13), Op::Look(A), Answer::Token(Token(1)));
    told.holds(&believing());
    told.lies(&strict(), NO_ORDER);
    told.was(0, (16, 17), Op::Look(A), Answer::Token(Token(1)));
    told.lies(&believing(), NO_ORDER);
    // A client that stood still meanwhile knows no better.
    let mut rules = believing();
    rules.still.push(Span {
        client: ClientId(0),
        from: secs(9),
        to: secs(15),
    });
    told.holds(&rules);
    rules.still[0].client = ClientId(1);
    told.lies(&rules, NO_ORDER);
}

#[test]
fn a_believed_name_that_was_moved_already_is_moved_to_where_it_is() {
    let mut told = Told::default();
    told.was(0, (1, 2), Op::Put(A, Token(1)), Answer::Done)
        .was(1, (3, 4), Op::Move(A, B), Answer::Done)
        .was(0, (4, 5), Op::Move(A, B), Answer::Done)
        .was(0, (5, 6), Op::Look(A), Answer::Token(Token(1)))
        .was(0, (7, 8), Op::Look(B), Answer::Token(Token(1)));
    told.holds(&believing());
    told.lies(&strict(), NO_ORDER);
}

#[test]
fn two_that_made_the_same_name_and_one_that_overtook_itself() {
    let mut twice = Told::default();
    twice
        .was(0, (1, 4), Op::Make(A, Token(1)), Answer::Done)
        .was(1, (2, 3), Op::Make(A, Token(2)), Answer::Done);
    twice.lies(&strict(), NO_ORDER);
    let mut moved = Told::default();
    moved
        .was(0, (1, 2), Op::Make(tree(0), Token(1)), Answer::Done)
        .was(0, (3, 4), Op::Make(tree(1), Token(2)), Answer::Done)
        .was(1, (5, 6), Op::Move(tree(0), tree(1)), Answer::Done);
    moved.lies(&strict(), NO_ORDER);
    let mut wrong = Told::default();
    wrong
        .was(0, (1, 2), Op::Make(tree(0), Token(1)), Answer::Done)
        .was(1, (5, 6), Op::Remove(tree(0)), Answer::Token(Token(9)));
    wrong.lies(&strict(), NO_ORDER);
}

#[test]
fn what_failed_was_done_once_or_never() {
    let mut told = Told::default();
    told.was(1, (1, 2), Op::Put(A, Token(1)), Answer::Done)
        .failed(0, (3, 4), Op::Remove(A), "killed")
        .was(1, (5, 6), Op::Look(A), Answer::Token(Token(1)))
        .was(1, (7, 8), Op::Look(A), Answer::Absent)
        .was(1, (9, 10), Op::Put(A, Token(2)), Answer::Done);
    told.holds(&killed(0));
    told.was(1, (11, 12), Op::Look(A), Answer::Absent);
    told.lies(&killed(0), NO_ORDER);
}

#[test]
fn a_listing_that_is_not_what_is_there() {
    let mut told = Told::default();
    told.was(0, (1, 2), Op::Put(A, Token(1)), Answer::Done).was(
        0,
        (3, 4),
        Op::Look(A),
        Answer::Token(Token(1)),
    );
    let listed = |names| {
        let mut told = Told(told.0.clone());
        told.was(0, (5, 6), Op::List(Space::Files), Answer::Names(names));
        told
    };
    listed(vec![A]).holds(&strict());
    listed(vec![]).lies(&strict(), "the last listing");
    listed(vec![A, A]).lies(&strict(), "shows a name twice");
}

#[test]
fn a_listing_is_compared_with_what_can_not_be_believed_any_more() {
    let mut told = Told::default();
    told.was(1, (1, 2), Op::Put(A, Token(1)), Answer::Done)
        .was(1, (3, 4), Op::Remove(A), Answer::Token(Token(1)))
        .was(0, (5, 6), Op::Look(A), Answer::Token(Token(1)))
        .was(0, (7, 8), Op::List(Space::Files), Answer::Names(vec![]));
    told.holds(&believing());
    told.was(1, (9, 10), Op::Look(A), Answer::Absent);
    told.holds(&believing());
    told.was(0, (11, 12), Op::List(Space::Files), Answer::Names(vec![A]));
    told.lies(&believing(), "the last listing");
}

#[test]
fn torn_files_and_records() {
    let torn = || Answer::Torn("half".to_owned());
    let mut told = Told::default();
    told.was(0, (1, 9), Op::Fill(Token(1)), Answer::Done)
        .was(0, (1, 9), Op::Write(CELL, Token(2)), Answer::Done)
        .was(1, (2, 3), Op::Read(CELL), torn())
        .was(1, (2, 3), Op::Look(A), torn());
    told.holds(&strict());
    let mut after = Told(told.0.clone());
    after.was(1, (10, 11), Op::Read(CELL), torn());
    after.lies(&strict(), "a torn record was read");
    told.was(1, (10, 11), Op::Look(A), torn());
    told.lies(&strict(), "a torn file was read");
}

#[test]
fn an_overwrite_that_is_lost_or_read_too_late() {
    let mut told = Told::default();
    told.was(0, (0, 1), Op::Write(CELL, Token(1)), Answer::Done)
        .was(0, (2, 5), Op::Write(CELL, Token(2)), Answer::Done)
        .was(1, (3, 4), Op::Read(CELL), Answer::Token(Token(1)))
        .was(1, (4, 5), Op::Read(CELL), Answer::Token(Token(2)));
    told.holds(&strict());
    let then = |at: (u64, u64), value: u64| {
        let mut told = Told(told.0.clone());
        told.was(0, at, Op::Read(CELL), Answer::Token(Token(value)));
        told
    };
    then((6, 7), 2).holds(&strict());
    then((6, 7), 1).lies(&strict(), "lost, or a read was stale");
    then((6, 7), 9).lies(&strict(), "never written");
    // Nobody has read the new one yet, and it is acknowledged all the same.
    let mut unread = Told::default();
    unread
        .was(0, (0, 1), Op::Write(CELL, Token(1)), Answer::Done)
        .was(0, (2, 3), Op::Write(CELL, Token(2)), Answer::Done)
        .was(1, (4, 5), Op::Read(CELL), Answer::Token(Token(1)));
    unread.lies(&strict(), "lost, or a read was stale");
}

#[test]
fn an_overwrite_that_is_made_twice() {
    let mut told = Told::default();
    told.was(1, (0, 1), Op::Write(CELL, Token(1)), Answer::Done)
        .was(0, (2, 20), Op::Write(CELL, Token(2)), Answer::Done)
        .was(1, (3, 4), Op::Read(CELL), Answer::Token(Token(2)))
        .was(1, (5, 6), Op::Write(CELL, Token(3)), Answer::Done)
        .was(1, (7, 8), Op::Read(CELL), Answer::Token(Token(3)));
    told.holds(&strict());
    told.was(1, (21, 22), Op::Read(CELL), Answer::Token(Token(2)));
    told.lies(&strict(), "lost, or a read was stale");
}

#[test]
fn a_journal_with_a_record_lost_doubled_strange_or_misplaced() {
    let (one, two, three) = (Token(1), Token(2), Token(3));
    let mut told = Told::default();
    told.was(0, (1, 2), Op::Append(one), Answer::Done)
        .failed(0, (3, 4), Op::Append(two), "killed")
        .was(1, (5, 6), Op::Append(three), Answer::Done);
    let ends = |records: Vec<Token>| {
        let mut told = Told(told.0.clone());
        told.was(1, (20, 21), Op::ReadJournal, Answer::Records(records));
        told
    };
    ends(vec![one, two, three]).holds(&killed(0));
    ends(vec![one, three]).holds(&killed(0));
    ends(vec![one, three, two]).holds(&killed(0));
    ends(vec![one]).lies(&killed(0), "acknowledged and is lost");
    ends(vec![one, two, two, three]).lies(&killed(0), "twice");
    ends(vec![one, Token(9), three]).lies(&killed(0), "never appended");
    ends(vec![three, one]).lies(&killed(0), "lies behind");
    let mut differ = ends(vec![one, three]);
    differ.was(
        0,
        (22, 23),
        Op::ReadJournal,
        Answer::Records(vec![one, two, three]),
    );
    differ.lies(&killed(0), "two readers");
}

#[test]
fn a_journal_that_was_read_too_short_or_wrong() {
    let (one, two) = (Token(1), Token(2));
    let prefix = |records: &[Token]| Answer::Prefix {
        records: records.len(),
        sum: sum_of(records),
    };
    let reads = |answer: Answer| {
        let mut told = Told::default();
        told.was(0, (1, 2), Op::Append(one), Answer::Done)
            .was(0, (3, 8), Op::Append(two), Answer::Done)
            .was(1, (5, 6), Op::ReadJournal, answer)
            .was(
                1,
                (20, 21),
                Op::ReadJournal,
                Answer::Records(vec![one, two]),
            );
        told
    };
    reads(prefix(&[one])).holds(&strict());
    reads(prefix(&[one, two])).holds(&strict());
    reads(prefix(&[])).lies(&strict(), "0 records were read when 1 were acknowledged");
    reads(prefix(&[two])).lies(&strict(), "not its beginning");
    reads(Answer::Torn("zeros".to_owned())).lies(&strict(), "a torn record in the journal");
}

#[test]
fn two_holders_of_one_lock_and_a_write_under_it_that_is_lost() {
    let held = |since, until, read| {
        Answer::Section(Held {
            since: secs(since),
            until: secs(until),
            read: Token(read),
        })
    };
    let section = |wrote| Op::Section(Lock::Flock, Token(wrote));
    let two = |since, until, read| {
        let mut told = Told::default();
        told.was(0, (1, 5), section(1), held(2, 4, 0)).was(
            1,
            (1, 20),
            section(2),
            held(since, until, read),
        );
        told
    };
    two(5, 6, 1).holds(&strict());
    two(3, 6, 1).lies(&strict(), "held the lock from");
    two(5, 6, 0).lies(&strict(), "the next holder read");
    // One that stood still was told late of a write that it had made in time; it had the lock then.
    let mut still = strict();
    still.still.push(Span {
        client: ClientId(0),
        from: secs(3),
        to: secs(5),
    });
    two(3, 6, 1).holds(&still);
    two(3, 6, 0).lies(&still, "the next holder read");
    still.still[0].from = secs(4);
    two(3, 6, 1).lies(&still, "held the lock from");
    let mut torn = two(5, 6, 1);
    torn.was(0, (21, 22), section(3), Answer::Torn("zeros".to_owned()));
    torn.lies(&strict(), "a torn number");
    // Who was killed may have written before the next one had the lock.
    let mut killed_between = two(8, 9, 7);
    killed_between.failed(0, (6, 7), section(7), "killed");
    killed_between.holds(&killed(0));
}

#[test]
fn a_transaction_that_is_lost_counted_twice_or_out_of_order() {
    let row = |id| Op::Insert(Token(id));
    let with = |numbers: [u64; 2], rows: Vec<Token>, counted| {
        let mut told = Told::default();
        told.was(0, (1, 2), row(1), Answer::Number(numbers[0]))
            .was(1, (3, 4), row(2), Answer::Number(numbers[1]))
            .was(1, (8, 9), Op::ReadRows, Answer::Rows(rows, counted));
        told
    };
    let both = || vec![Token(1), Token(2)];
    with([1, 2], both(), 2).holds(&strict());
    with([1, 2], vec![Token(1)], 1).lies(&strict(), "committed and is lost");
    with([1, 1], both(), 2).lies(&strict(), "were number 1");
    with([2, 1], both(), 2).lies(&strict(), "of a lower number");
    with([1, 2], both(), 3).lies(&strict(), "3 were counted");
    with([1, 2], vec![Token(1), Token(2), Token(3)], 3).lies(&strict(), "never inserted");
    let mut torn = with([1, 2], both(), 2);
    torn.was(
        1,
        (10, 11),
        Op::ReadRows,
        Answer::Torn("row 3 missing".to_owned()),
    );
    torn.lies(&strict(), "the database is damaged");
}

#[test]
fn an_error_without_reason_and_no_answer() {
    let mut told = Told::default();
    told.failed(
        0,
        (5, 6),
        Op::Append(Token(1)),
        "Input/output error (os error 5)",
    );
    told.lies(&strict(), "saw an error without reason");
    told.holds(&killed(0));
    told.lies(&killed(1), "saw an error without reason");
    let lost = |from, to| Rules {
        excuses: vec![Excuse {
            span: Span {
                client: ClientId(0),
                from: secs(from),
                to: secs(to),
            },
            why: Why::SessionLost,
        }],
        ..Rules::default()
    };
    told.holds(&lost(1, 5));
    told.lies(&lost(7, 9), "saw an error without reason");
    let mut other = Told::default();
    other.failed(
        0,
        (5, 6),
        Op::Append(Token(1)),
        "No space left on device (os error 28)",
    );
    other.lies(&lost(1, 5), "saw an error without reason");
    const MALFORMED: &str = "sqlite3: database disk image is malformed (11)";
    let mut damaged = Told::default();
    damaged.failed(0, (5, 6), Op::Insert(Token(1)), MALFORMED);
    damaged.lies(&lost(1, 5), "saw an error without reason");
    let mut refused = Told::default();
    let refusal = format!("{MALFORMED}; its descriptor answers Input/output error (os error 5)");
    refused.failed(0, (5, 6), Op::Insert(Token(1)), &refusal);
    refused.holds(&lost(1, 5));
    let mut never = Told::default();
    never.put(0, (5, None), Op::Look(A), Outcome::Pending);
    never.lies(&killed(0), "never answered");
}
