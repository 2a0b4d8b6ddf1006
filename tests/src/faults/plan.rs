//! What the nemesis will do: a pure function of a seed. Whom a part such as "the primary" names is
//! found when the fault is made.

use std::fmt;

use crate::simulator::Random;

/// Which peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Peer {
    /// The host of the primary copy.
    Primary,
    /// The host of a copy that is in sync and not the primary.
    Backup,
    /// The host that leads the registry.
    Leader,
    /// The third peer: a witness, or the third copy.
    Third,
    /// The host of the copy that is being healed.
    Healed,
}

/// Which way a cut loses what is sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// Both.
    Both,
    /// What comes in.
    In,
    /// What goes out.
    Out,
}

/// One thing that happens to hosts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// SIGKILL of a brickd; started again at the end.
    Kill(Peer),
    /// SIGTERM of a brickd; started again at the end.
    Stop(Peer),
    /// SIGSTOP of a brickd, SIGCONT at the end.
    Freeze(Peer),
    /// A whole host is cut off.
    Cut(Peer, Way),
    /// A peer is cut off from all others; clients reach it.
    Isolate(Peer),
    /// Two peers are cut off from each other.
    CutPair(Peer, Peer, Way),
    /// SIGKILL of the brickds of all peers at once.
    KillAll,
    /// SIGSTOP of the brickds of all peers at once.
    FreezeAll,
    /// SIGKILL of a client; mounted again at the end.
    KillClient(usize),
    /// SIGSTOP of a client.
    FreezeClient(usize),
    /// A client's host is cut off.
    CutClient(usize, Way),
    /// A client and the primary's host are cut off from each other.
    CutClientFromPrimary(usize),
}

/// A fault with its times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timed {
    /// What.
    pub fault: Fault,
    /// From the begin of the phase, ms.
    pub after_ms: u64,
    /// How long it lasts at least, ms.
    pub for_ms: u64,
}

/// Faults that are made together, and those that are made during the heal after them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The first begins when all is well, each other as soon as a copy is being healed.
    pub phases: Vec<Vec<Timed>>,
    /// Whether all must be well before the next group.
    pub then: Then,
}

/// What comes after a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// The heal is waited for.
    Calm,
    /// The next group, at once.
    Hurry,
}

/// The plan of one round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// One after the other.
    pub groups: Vec<Group>,
}

/// Besides one isolation.
const GROUPS: (u64, u64) = (2, 3);
/// A silent host is given up after 5 s.
const SHORT_MS: (u64, u64) = (200, 4_000);
const LONG_MS: (u64, u64) = (6_000, 11_000);

impl Plan {
    /// The plan of round number `round` of a seed, for so many `clients`.
    pub fn new(seed: u64, round: u64, clients: usize) -> Self {
        let mut random = Random::new(seed.rotate_left(32) ^ round.wrapping_mul(0x9e37_79b9));
        let count = random.between(GROUPS.0, GROUPS.1);
        let mut groups: Vec<Group> = (0..count).map(|_| group(&mut random, clients)).collect();
        // What a primary acknowledged without its backups only this shows for sure.
        let at = random.below(groups.len() + 1);
        groups.insert(at, isolation(&mut random));
        if let Some(last) = groups.last_mut() {
            last.then = Then::Calm;
        }
        Plan { groups }
    }
}

fn group(random: &mut Random, clients: usize) -> Group {
    let then = if random.chance(75) {
        Then::Calm
    } else {
        Then::Hurry
    };
    let phases = match random.below(100) {
        0..50 => vec![vec![timed(random, clients, 0)]],
        50..72 => {
            let second_after = random.between(0, 3_000);
            vec![vec![
                timed(random, clients, 0),
                timed(random, clients, second_after),
            ]]
        }
        kind => {
            let lost = [Fault::Kill(Peer::Backup), Fault::Kill(Peer::Primary)][random.below(2)];
            let mut phases = vec![vec![Timed {
                fault: lost,
                after_ms: 0,
                for_ms: random.between(2_000, 6_000),
            }]];
            phases.push(vec![during_heal(random)]);
            if kind >= 86 {
                phases.push(vec![during_heal(random)]);
            }
            phases
        }
    };
    Group { phases, then }
}

/// The primary is cut off from its peers while clients reach it, and as a rule it dies or stands
/// still then, until another has taken over and was read from.
fn isolation(random: &mut Random) -> Group {
    let timed = |fault, after_ms, for_ms| Timed {
        fault,
        after_ms,
        for_ms,
    };
    let lasts = random.between(LONG_MS.0, LONG_MS.1);
    let mut faults = vec![timed(Fault::Isolate(Peer::Primary), 0, lasts)];
    // It serves for as long as it believes that its backups do not go on without it: 3 s at most.
    let later = random.between(200, 2_800);
    faults.extend(match random.below(5) {
        0 => None,
        1 | 2 => Some(timed(Fault::Kill(Peer::Primary), later, lasts)),
        3 => Some(timed(Fault::Freeze(Peer::Primary), later, lasts)),
        _ => Some(timed(Fault::Kill(Peer::Primary), later, 0)),
    });
    Group {
        phases: vec![faults],
        then: Then::Calm,
    }
}

fn during_heal(random: &mut Random) -> Timed {
    let whom = [Peer::Healed, Peer::Healed, Peer::Primary, Peer::Leader][random.below(4)];
    let way = [Way::Both, Way::In, Way::Out][random.below(3)];
    let fault = match random.below(6) {
        0..3 => Fault::Kill(whom),
        3 => Fault::Freeze(whom),
        4 => Fault::Cut(whom, way),
        _ => Fault::CutPair(Peer::Primary, Peer::Healed, way),
    };
    Timed {
        fault,
        after_ms: random.between(0, 150),
        for_ms: random.between(0, 3_000),
    }
}

fn timed(random: &mut Random, clients: usize, after_ms: u64) -> Timed {
    const PEERS: [Peer; 4] = [Peer::Primary, Peer::Backup, Peer::Leader, Peer::Third];
    const PAIRS: [(Peer, Peer); 4] = [
        (Peer::Primary, Peer::Backup),
        (Peer::Primary, Peer::Third),
        (Peer::Backup, Peer::Third),
        (Peer::Primary, Peer::Leader),
    ];
    const WAYS: [Way; 3] = [Way::Both, Way::In, Way::Out];
    let peer = PEERS[random.below(PEERS.len())];
    let (a, b) = PAIRS[random.below(PAIRS.len())];
    let way = WAYS[random.below(WAYS.len())];
    let client = random.below(clients);
    let fault = match random.below(100) {
        0..25 => Fault::Kill(peer),
        25..29 => Fault::Stop(peer),
        29..42 => Fault::Freeze(peer),
        42..58 => Fault::Cut(peer, way),
        58..62 => Fault::Isolate(peer),
        62..70 => Fault::CutPair(a, b, way),
        70..75 => Fault::KillAll,
        75..78 => Fault::FreezeAll,
        78..85 => Fault::KillClient(client),
        85..90 => Fault::FreezeClient(client),
        90..95 => Fault::CutClient(client, way),
        _ => Fault::CutClientFromPrimary(client),
    };
    let (low, high) = if random.chance(50) { SHORT_MS } else { LONG_MS };
    // Restarts within 200 ms are a case of their own.
    let at_once = matches!(fault, Fault::Kill(_) | Fault::KillAll) && random.chance(30);
    Timed {
        fault,
        after_ms,
        for_ms: if at_once {
            0
        } else {
            random.between(low, high)
        },
    }
}

impl Group {
    /// All faults of it.
    pub fn faults(&self) -> impl Iterator<Item = &Timed> {
        self.phases.iter().flatten()
    }

    /// Whether it cuts the primary off from its peers first of all.
    pub fn is_isolation(&self) -> bool {
        let first = self.faults().next();
        first.is_some_and(|one| one.fault == Fault::Isolate(Peer::Primary))
    }

    /// Its only fault, if it has one.
    pub fn single(&self) -> Option<Fault> {
        match self.phases.as_slice() {
            [phase] => match phase.as_slice() {
                [one] => Some(one.fault),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Fault {
    /// Whether I/O of every client must go on while this lasts, if nothing else happens.
    pub fn must_go_on(self) -> bool {
        !matches!(self, Fault::KillAll | Fault::FreezeAll) && self.client().is_none()
    }

    /// The one peer it happens to.
    pub fn peer(self) -> Option<Peer> {
        match self {
            Fault::Kill(peer)
            | Fault::Stop(peer)
            | Fault::Freeze(peer)
            | Fault::Cut(peer, _)
            | Fault::Isolate(peer) => Some(peer),
            _ => None,
        }
    }

    /// The client it happens to.
    pub fn client(self) -> Option<usize> {
        match self {
            Fault::KillClient(client)
            | Fault::FreezeClient(client)
            | Fault::CutClient(client, _) => Some(client),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(peer) => write!(f, "kill {peer}"),
            Fault::Stop(peer) => write!(f, "stop {peer}"),
            Fault::Freeze(peer) => write!(f, "freeze {peer}"),
            Fault::Cut(peer, way) => write!(f, "cut {peer}, {way}"),
            Fault::Isolate(peer) => write!(f, "cut {peer} from all peers"),
            Fault::CutPair(one, other, way) => write!(f, "cut {one} from {other}, {way}"),
            Fault::KillAll => f.write_str("kill all brickds"),
            Fault::FreezeAll => f.write_str("freeze all brickds"),
            Fault::KillClient(_) => f.write_str("kill a client"),
            Fault::FreezeClient(_) => f.write_str("freeze a client"),
            Fault::CutClient(_, way) => write!(f, "cut a client, {way}"),
            Fault::CutClientFromPrimary(_) => f.write_str("cut a client from the primary"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peer::Primary => "primary",
            Peer::Backup => "backup",
            Peer::Leader => "leader",
            Peer::Third => "third peer",
            Peer::Healed => "healed copy",
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Both => "both ways",
            Way::In => "incoming",
            Way::Out => "outgoing",
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, group) in self.groups.iter().enumerate() {
            write!(f, "  {number}:")?;
            for (phase, faults) in group.phases.iter().enumerate() {
                if phase > 0 {
                    f.write_str(" | during the heal:")?;
                }
                for one in faults {
                    write!(
                        f,
                        " [{} +{} ms for {} ms]",
                        one.fault, one.after_ms, one.for_ms
                    )?;
                }
            }
            writeln!(f, " then {:?}", group.then)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_seeds_bring_everything() {
        assert_eq!(Plan::new(7, 3, 2), Plan::new(7, 3, 2));
        assert_ne!(Plan::new(7, 3, 2), Plan::new(7, 4, 2));
        assert_ne!(Plan::new(7, 3, 2), Plan::new(8, 3, 2));
        let mut kinds = HashSet::new();
        let (mut together, mut heals_of_heals, mut isolations) = (0, 0, 0);
        for round in 0..500 {
            for group in Plan::new(1, round, 2).groups {
                kinds.extend(group.faults().map(|one| one.fault.to_string()));
                together += usize::from(group.phases[0].len() > 1);
                isolations += usize::from(group.is_isolation());
                heals_of_heals += usize::from(group.phases.len() > 2);
            }
        }
        let wanted = [
            "kill primary",
            "kill leader",
            "kill healed copy",
            "kill all brickds",
            "freeze backup",
            "stop third peer",
            "cut primary, incoming",
            "cut leader, both ways",
            "cut primary from backup, outgoing",
            "kill a client",
            "freeze a client",
            "cut a client, outgoing",
            "cut a client from the primary",
            "cut backup from all peers",
        ];
        for kind in wanted {
            assert!(kinds.contains(kind), "{kind} is never planned");
        }
        assert!(isolations >= 500, "{isolations}: one in each round");
        assert!(
            together > 100 && heals_of_heals > 50,
            "{together}, {heals_of_heals}"
        );
    }
}
