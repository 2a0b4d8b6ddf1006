//! One copy on a bench: tests play the driver, the registry and the other copies.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{CopyState, EpochRef};
use mortar_proto::registry::{Copy, Epoch};

use super::{Command, Core, Proposed, RegistryView, Role, Timing, Votes};
use crate::brick::store::StoredState;

/// The incarnation a brick has unless a test says otherwise.
pub fn life(brick: u64) -> Incarnation {
    Incarnation(brick * 11)
}

pub fn epoch(number: u64, id: u64, bricks: &[u64], primary: u64) -> Epoch {
    let in_sync = bricks
        .iter()
        .map(|brick| Copy {
            brick: *brick,
            incarnation: life(*brick).0,
        })
        .collect();
    Epoch {
        number,
        id,
        in_sync,
        primary,
    }
}

pub fn named(epoch: &Epoch) -> EpochRef {
    EpochRef {
        number: epoch.number,
        id: epoch.id,
    }
}

/// A copy under test, brick 1 unless said otherwise, and its clock.
pub struct Bench {
    pub core: Core,
    pub now: u64,
    pub votes: Votes,
    pub bricks: u64,
}

impl Bench {
    /// A copy that starts with what it has stored.
    pub fn start(me: u64, bricks: u64, votes: Votes, stored: StoredState) -> Bench {
        let now = 1_000_000;
        let timing = Timing::default();
        let (core, commands) = Core::start(BrickId(me), life(me), &stored, timing, me, now);
        assert_eq!(commands, [Command::ReadRegistry]);
        Bench {
            core,
            now,
            votes,
            bricks,
        }
    }

    /// A copy that restarted in a new incarnation, with this epoch stored.
    pub fn restarted(me: u64, bricks: u64, votes: Votes, newest: &Epoch, alone: bool) -> Bench {
        let stored = StoredState {
            epoch: Some(newest.clone()),
            alone: alone.then(|| named(newest)),
            ..StoredState::default()
        };
        let now = 1_000_000;
        let timing = Timing::default();
        let (core, _) = Core::start(BrickId(me), Incarnation(me + 900), &stored, timing, me, now);
        Bench {
            core,
            now,
            votes,
            bricks,
        }
    }

    /// Brick 1, primary of an epoch with all bricks, all streams up, under a fresh lease.
    pub fn primary(bricks: u64, votes: Votes) -> Bench {
        let all: Vec<u64> = (1..=bricks).collect();
        let mut bench = Bench::start(1, bricks, votes, StoredState::default());
        bench.learn(&epoch(1, 1, &all, 1), &[]);
        assert_eq!(bench.core.role(), &Role::Recovering);
        let now = bench.now;
        bench.core.recovered(0, now);
        for brick in 2..=bricks {
            bench.core.stream_up(BrickId(brick), life(brick), 0, now);
        }
        bench.answer_beacons();
        bench
    }

    /// Brick 2, backup of brick 1.
    pub fn backup(bricks: u64, votes: Votes) -> Bench {
        let all: Vec<u64> = (1..=bricks).collect();
        let mut bench = Bench::start(2, bricks, votes, StoredState::default());
        let first = epoch(1, 1, &all, 1);
        bench.learn(&first, &[]);
        let now = bench.now;
        bench
            .core
            .accepts_stream(BrickId(1), life(1), named(&first), true, now)
            .expect("stream");
        assert_eq!(bench.core.role(), &Role::Backup);
        bench
    }

    pub fn view(
        &mut self,
        epoch: &Epoch,
        history: &[EpochRef],
        linearizable: bool,
    ) -> Vec<Command> {
        let view = RegistryView {
            epoch: epoch.clone(),
            history: history.to_vec(),
            bricks: (1..=self.bricks).map(BrickId).collect(),
            votes: self.votes,
            linearizable,
        };
        self.core.view(view, self.now)
    }

    /// The registry shows an epoch, the disk stores it; what is commanded then.
    pub fn learn(&mut self, epoch: &Epoch, history: &[EpochRef]) -> Vec<Command> {
        let commands = self.view(epoch, history, true);
        assert!(stored(&commands).is_some(), "nothing stored: {commands:?}");
        self.core.stored(named(epoch), self.now)
    }

    /// Time passes, in ticks; what is commanded meanwhile.
    pub fn pass(&mut self, ms: u64) -> Vec<Command> {
        let mut all = Vec::new();
        let until = self.now + ms;
        while self.now < until {
            self.now = (self.now + 50).min(until);
            all.extend(self.core.tick(self.now));
        }
        all
    }

    /// Every copy whose answers are required answers a beacon sent now.
    pub fn answer_beacons(&mut self) {
        for brick in self.core.required() {
            let epoch = self.core.epoch_ref();
            self.core.beacon_answer(brick, epoch, self.now, self.now);
        }
    }

    /// The registry commits what is proposed in these commands, the disk stores it.
    pub fn commit(&mut self, commands: &[Command]) -> (Epoch, Vec<Command>) {
        let (expect, next, _) = proposal(commands).expect("a proposal");
        let answer = self.core.proposed(expect, Proposed::Committed, self.now);
        assert_eq!(stored(&answer).map(named), Some(named(&next)), "{answer:?}");
        let commands = self.core.stored(named(&next), self.now);
        (next, commands)
    }

    /// What another copy says of itself.
    pub fn state(
        &mut self,
        brick: u64,
        life: Incarnation,
        epoch: EpochRef,
        history: &[EpochRef],
    ) -> Vec<Command> {
        let state = CopyState {
            brick,
            incarnation: life.0,
            epoch: Some(epoch),
            history: history.to_vec(),
            ..CopyState::default()
        };
        self.core.copy_state(state, self.now)
    }
}

/// The last proposal among commands.
pub fn proposal(commands: &[Command]) -> Option<(EpochRef, Epoch, Vec<Epoch>)> {
    commands.iter().rev().find_map(|command| match command {
        Command::Propose { expect, next, lone } => Some((*expect, next.clone(), lone.clone())),
        _ => None,
    })
}

/// What is stored by these commands.
pub fn stored(commands: &[Command]) -> Option<&Epoch> {
    commands.iter().rev().find_map(|command| match command {
        Command::Store { epoch, .. } => Some(epoch),
        _ => None,
    })
}

/// Who is in sync in an epoch.
pub fn members(epoch: &Epoch) -> Vec<u64> {
    epoch.in_sync.iter().map(|copy| copy.brick).collect()
}
