//! `volume check`: asks every brick that is in sync for its objects, page by page, lays them side
//! by side, and looks again at what seems wrong before it says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use mortar_common::Gfid;
use mortar_proto::control::{
    BrickState, CheckAsk, CheckCursor, CheckFinding, CheckPage, CheckRequest, CheckedBrick,
    CheckedObject, CopyRole, Done, VolumeCheckReply,
};
use mortar_proto::registry::{Peer, View, Volume, VolumeStatus};
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{AdminService, Refusal};
use crate::check::{Counted, LinkSums, Merge, Row};

/// What the administrator is told of a check that runs, and then of its end.
pub(super) type Told = ReceiverStream<Result<VolumeCheckReply, Status>>;

/// How often it is said how far a check is.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at what seems wrong; and what is under way is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What is as it was in so many looks, one after the other, is said.
const SAME_LOOKS: u32 = 3;
/// How long changes that are under way are waited for: a disk that stalls for longer puts its copy
/// out.
const UNDER_WAY_MAX: Duration = Duration::from_secs(60);
const UNDER_WAY_POLL: Duration = Duration::from_millis(50);
/// Looks after which what changes every time is let be.
const LOOKS_MAX: u32 = 10;
/// Objects that are looked at again, in one question and in all. What is above is counted.
const LOOK_OBJECTS: usize = 256;
const SUSPECTS_MAX: usize = 10_000;
/// Findings that are told.
const FINDINGS_MAX: usize = 1_000;
/// How often links are counted: once all in doubtful cells, then what was wrong there.
const COUNTS_MAX: usize = 4;

impl AdminService {
    /// Checks a volume on a task of its own, which ends when nobody listens any more.
    pub(super) fn check_volume(&self, name: String) -> Told {
        let (tell, told) = channel(1);
        let admin = self.clone();
        tokio::spawn(async move {
            let listens = tell.clone();
            let checked = async {
                let outcome = admin.check_or_refuse(&name, &tell).await;
                let reply = outcome.unwrap_or_else(|Refusal(message)| VolumeCheckReply {
                    done: Some(Done {
                        failed: true,
                        message,
                    }),
                    ..VolumeCheckReply::default()
                });
                let last = VolumeCheckReply { end: true, ..reply };
                // Who went away needs no answer.
                let _ = tell.send(Ok(last)).await;
            };
            tokio::select! {
                () = checked => {}
                () = listens.closed() => {}
            }
        });
        ReceiverStream::new(told)
    }

    async fn check_or_refuse(
        &self,
        name: &str,
        tell: &Sender<Result<VolumeCheckReply, Status>>,
    ) -> Result<VolumeCheckReply, Refusal> {
        let volume = self.volume(name)?;
        if volume.status() != VolumeStatus::VolumeStarted {
            return Err(Refusal(format!("Volume {name} is not started")));
        }
        let view = self.registry.view();
        let states = self.brick_states(&view, name).await;
        let mut report = VolumeCheckReply {
            done: Some(Done::default()),
            ..VolumeCheckReply::default()
        };
        for set in &volume.sets {
            let mut sides = Vec::new();
            for brick in &set.bricks {
                match side_of(&view, &volume, *brick, &states) {
                    Ok(side) => sides.push(side),
                    Err(finding) => report.add([finding]),
                }
            }
            let all_in_sync = sides.len() == set.bricks.len();
            let bricks = sides.iter().map(|side| side.name.clone()).collect();
            let mut check = Check {
                admin: self,
                volume: name,
                sides,
                bricks,
                report: &mut report,
                tell,
                told: Instant::now(),
            };
            check.run(all_in_sync).await?;
            let counted = check.sides.iter().map(|side| side.counted.clone());
            let counted: Vec<CheckedBrick> = counted.collect();
            report.bricks.extend(counted);
        }
        Ok(report)
    }
}

/// Adds findings to a report.
trait Findings {
    fn add(&mut self, findings: impl IntoIterator<Item = CheckFinding>);
}

impl Findings for VolumeCheckReply {
    fn add(&mut self, findings: impl IntoIterator<Item = CheckFinding>) {
        for finding in findings {
            self.total += 1;
            if self.findings.len() < FINDINGS_MAX {
                self.findings.push(finding);
            }
        }
    }
}

/// A brick that is checked.
struct Side {
    brick: u64,
    peer: Peer,
    /// HOST:/PATH.
    name: String,
    counted: CheckedBrick,
    links: LinkSums,
}

/// The brick as a side of the check; a finding when it is not in sync.
fn side_of(
    view: &View,
    volume: &Volume,
    id: u64,
    states: &HashMap<u64, BrickState>,
) -> Result<Side, CheckFinding> {
    let brick = volume.bricks.iter().find(|brick| brick.id == id);
    let peer = brick.and_then(|brick| view.peers.get(&brick.peer));
    let (Some(brick), Some(peer)) = (brick, peer) else {
        return Err(CheckFinding {
            what: format!("the registry does not know where brick {id:016x} is"),
            ..CheckFinding::default()
        });
    };
    let name = format!("{}:{}", peer.host, brick.path);
    let state = states.get(&id);
    let role = state.filter(|state| state.online).map(BrickState::role);
    if matches!(role, Some(CopyRole::CopyPrimary | CopyRole::CopyBackup)) {
        return Ok(Side {
            brick: id,
            peer: peer.clone(),
            name,
            counted: CheckedBrick {
                host: peer.host.clone(),
                path: brick.path.clone(),
                ..CheckedBrick::default()
            },
            links: LinkSums::default(),
        });
    }
    let why = state.map_or("it does not answer", |state| state.detail.as_str());
    let why = if why.is_empty() { "it is down" } else { why };
    Err(CheckFinding {
        what: format!("the brick is not in sync, so it was not checked: {why}"),
        brick: name,
        ..CheckFinding::default()
    })
}

/// The check of one replica set.
struct Check<'a> {
    admin: &'a AdminService,
    volume: &'a str,
    sides: Vec<Side>,
    bricks: Vec<String>,
    report: &'a mut VolumeCheckReply,
    tell: &'a Sender<Result<VolumeCheckReply, Status>>,
    told: Instant,
}

impl Check<'_> {
    async fn run(&mut self, all_in_sync: bool) -> Result<(), Refusal> {
        let suspects = self.walk().await?;
        self.look_again(suspects).await?;
        for side in 0..self.sides.len() {
            self.count_links(side).await?;
        }
        self.leftovers(all_in_sync).await
    }

    /// Lays all objects of all bricks side by side. Returns those that seem wrong.
    async fn walk(&mut self) -> Result<BTreeSet<Gfid>, Refusal> {
        let mut merge = Merge::of(self.sides.len());
        let mut cursors: Vec<Option<CheckCursor>> = vec![None; self.sides.len()];
        let mut suspects = BTreeSet::new();
        loop {
            let hungry = merge.hungry();
            if hungry.is_empty() {
                return Ok(suspects);
            }
            let asks = hungry
                .iter()
                .map(|side| self.ask(*side, CheckAsk::CheckWalk, cursors[*side].clone(), &[]));
            for (side, page) in hungry.iter().zip(try_join_all(asks).await?) {
                self.sides[*side].links.add(&page);
                let counted = &mut self.sides[*side].counted;
                counted.objects += page.objects.len() as u64;
                counted.bytes += page.bytes;
                let was_last = page.next.is_none();
                cursors[*side] = page.next;
                merge.feed(*side, page.objects, was_last);
            }
            while let Some(row) = merge.next_row() {
                if row.problems(&self.bricks).is_empty() {
                    continue;
                }
                if suspects.len() < SUSPECTS_MAX {
                    suspects.insert(row.gfid);
                } else {
                    self.report
                        .add([finding(&row, "it seems to differ", String::new())]);
                }
            }
            self.tell().await;
        }
    }

    /// Looks at what seems wrong until it is right, or stays as it is, or has changed every time.
    async fn look_again(&mut self, mut suspects: BTreeSet<Gfid>) -> Result<(), Refusal> {
        let mut before: BTreeMap<Gfid, (Row, u32)> = BTreeMap::new();
        let mut wrong = BTreeSet::new();
        for _ in 0..LOOKS_MAX {
            if suspects.is_empty() {
                break;
            }
            self.pause().await?;
            let mut left = BTreeSet::new();
            let asked: Vec<Gfid> = suspects.into_iter().collect();
            for gfids in asked.chunks(LOOK_OBJECTS) {
                for row in self.rows(CheckAsk::CheckSome, gfids).await? {
                    if row.problems(&self.bricks).is_empty() {
                        continue;
                    }
                    let same = match before.get(&row.gfid) {
                        Some((old, looks)) if *old == row => looks + 1,
                        _ => 1,
                    };
                    if same >= SAME_LOOKS {
                        wrong.insert(row.gfid);
                    } else {
                        left.insert(row.gfid);
                        before.insert(row.gfid, (row, same));
                    }
                }
                self.tell().await;
            }
            suspects = left;
        }
        self.report.restless += suspects.len() as u64;
        let wrong: Vec<Gfid> = wrong.into_iter().collect();
        for gfids in wrong.chunks(LOOK_OBJECTS) {
            let rows = self.rows(CheckAsk::CheckExplain, gfids).await?;
            let whole = self.rows(CheckAsk::CheckSome, gfids).await?;
            for (row, mut whole) in rows.into_iter().zip(whole) {
                let path = path_of(&row);
                explain(&mut whole, row);
                let problems = whole.problems(&self.bricks);
                let findings = problems
                    .iter()
                    .map(|what| finding(&whole, what, path.clone()));
                self.report.add(findings.collect::<Vec<_>>());
            }
        }
        Ok(())
    }

    /// Finds what has more or fewer names on a brick than links.
    async fn count_links(&mut self, side: usize) -> Result<(), Refusal> {
        let Some(mut counted) = self.sides[side].links.suspects() else {
            return Ok(());
        };
        let mut before: Option<Counted> = None;
        for _ in 0..COUNTS_MAX {
            let mut cursor = None;
            loop {
                let page = self.ask(side, CheckAsk::CheckNames, cursor, &[]).await?;
                counted.add(&page);
                cursor = page.next;
                self.tell().await;
                if cursor.is_none() {
                    break;
                }
            }
            let confirmed = before.map_or_else(Vec::new, |before| counted.confirmed(&before));
            if !confirmed.is_empty() {
                let gfids: Vec<Gfid> = confirmed.iter().map(|(gfid, _)| *gfid).collect();
                let known = self.rows(
                    CheckAsk::CheckExplain,
                    &gfids[..gfids.len().min(FINDINGS_MAX)],
                );
                let known: BTreeMap<Gfid, Row> = known
                    .await?
                    .into_iter()
                    .map(|row| (row.gfid, row))
                    .collect();
                for (gfid, what) in confirmed {
                    let path = known.get(&gfid).map(path_of).unwrap_or_default();
                    self.report.add([CheckFinding {
                        path,
                        gfid: gfid.to_string(),
                        brick: self.bricks[side].clone(),
                        what,
                    }]);
                }
                return Ok(());
            }
            let Some(again) = counted.again() else {
                return Ok(());
            };
            before = Some(std::mem::replace(&mut counted, again));
            self.pause().await?;
        }
        Ok(())
    }

    /// Finds steps that are never ended, and marks while all copies are in sync.
    async fn leftovers(&mut self, all_in_sync: bool) -> Result<(), Refusal> {
        for side in 0..self.sides.len() {
            let mut left: Option<BTreeSet<String>> = None;
            for _ in 0..SAME_LOOKS {
                let page = self.ask(side, CheckAsk::CheckLeftovers, None, &[]).await?;
                let is_wrong = |what: &String| all_in_sync || !what.contains(".mortar/heal/");
                let now: BTreeSet<String> = page.leftovers.into_iter().filter(is_wrong).collect();
                let still = match left {
                    Some(before) => now.intersection(&before).cloned().collect(),
                    None => now,
                };
                let none = still.is_empty();
                left = Some(still);
                if none {
                    break;
                }
                self.pause().await?;
            }
            let brick = &self.bricks[side];
            let findings = left
                .unwrap_or_default()
                .into_iter()
                .map(|what| CheckFinding {
                    brick: brick.clone(),
                    what: format!("stale mark: {what}"),
                    ..CheckFinding::default()
                });
            self.report.add(findings.collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Waits a while, and until all copies have applied every change that had a number when this
    /// began: what differs before and after just the same is not under way.
    async fn pause(&mut self) -> Result<(), Refusal> {
        let (ordered, _) = self.progress().await?;
        tokio::time::sleep(LOOK_EVERY).await;
        let started = Instant::now();
        while self.progress().await?.1 < ordered {
            if started.elapsed() >= UNDER_WAY_MAX {
                return Err(Refusal::new(
                    "changes are not applied on all bricks: look at 'volume status'",
                ));
            }
            tokio::time::sleep(UNDER_WAY_POLL).await;
            self.tell().await;
        }
        Ok(())
    }

    /// The highest change number ordered, and up to which all copies have applied them.
    async fn progress(&self) -> Result<(u64, u64), Refusal> {
        let sides = 0..self.sides.len();
        let asks = sides.map(|side| self.ask(side, CheckAsk::CheckProgress, None, &[]));
        let pages = try_join_all(asks).await?;
        let ordered = pages.iter().map(|page| page.ordered).max();
        let complete = pages.iter().map(|page| page.complete).max();
        Ok((ordered.unwrap_or(0), complete.unwrap_or(0)))
    }

    /// Some objects as all bricks have them, in the order asked for.
    async fn rows(&self, ask: CheckAsk, gfids: &[Gfid]) -> Result<Vec<Row>, Refusal> {
        let sides = (0..self.sides.len()).map(|side| self.objects(side, ask, gfids));
        let sides = try_join_all(sides).await?;
        let row = |gfid: &Gfid| Row {
            gfid: *gfid,
            sides: sides
                .iter()
                .map(|objects| objects.get(gfid).cloned())
                .collect(),
        };
        Ok(gfids.iter().map(row).collect())
    }

    async fn objects(
        &self,
        side: usize,
        ask: CheckAsk,
        gfids: &[Gfid],
    ) -> Result<HashMap<Gfid, CheckedObject>, Refusal> {
        let mut objects = HashMap::new();
        let mut cursor = None;
        loop {
            let page = self.ask(side, ask, cursor, gfids).await?;
            let told = page.objects.into_iter();
            objects.extend(told.map(|object| (object.gfid.unwrap_or_default(), object)));
            cursor = page.next;
            if cursor.is_none() {
                return Ok(objects);
            }
        }
    }

    async fn ask(
        &self,
        side: usize,
        ask: CheckAsk,
        after: Option<CheckCursor>,
        gfids: &[Gfid],
    ) -> Result<CheckPage, Refusal> {
        let side = &self.sides[side];
        let request = CheckRequest {
            volume: self.volume.to_owned(),
            brick: side.brick,
            ask: ask.into(),
            after,
            gfids: gfids.to_vec(),
        };
        self.admin.check_at(&side.peer, request).await
    }

    /// Says how far the check is, now and then.
    async fn tell(&mut self) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let bricks = self.sides.iter().map(|side| side.counted.clone());
        let so_far = VolumeCheckReply {
            bricks: bricks.collect(),
            ..VolumeCheckReply::default()
        };
        // Who went away is noticed elsewhere.
        let _ = self.tell.send(Ok(so_far)).await;
    }
}

fn finding(row: &Row, what: &str, path: String) -> CheckFinding {
    CheckFinding {
        path,
        gfid: row.gfid.to_string(),
        what: what.to_owned(),
        brick: String::new(),
    }
}

/// The path that some brick has for the object.
fn path_of(row: &Row) -> String {
    let mut paths = row.sides.iter().flatten().map(|side| &side.path);
    paths
        .find(|path| !path.is_empty())
        .cloned()
        .unwrap_or_default()
}

/// Gives a row the names of directories, which only an explanation has.
fn explain(row: &mut Row, explained: Row) {
    for (side, explained) in row.sides.iter_mut().zip(explained.sides) {
        if let (Some(side), Some(explained)) = (side, explained) {
            side.names = explained.names;
        }
    }
}
