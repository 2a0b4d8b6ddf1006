//! A brick's place is given to another one while a program writes: nothing acknowledged is lost, no
//! error is seen, the new copy is filled and the old one serves no more.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, Host, VOLUME, assert_bricks_equal, wait_until};
use tests::outage::files_below;
use tests::scale::pick;

/// Files that a new brick is filled with, and bytes of the one big file.
const FILES: usize = 800;
const BIG_BYTES: usize = 24 << 20;
const WITHIN: Duration = Duration::from_secs(90);
/// A new file is made with every so many records.
const RECORDS_A_FILE: u64 = 16;

/// A program that appends records, makes each durable, and counts what was acknowledged.
struct Writer {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    pause: Arc<Pause>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<()>>,
}

/// The writer rests while this is wanted, and says that it does.
#[derive(Default)]
struct Pause {
    wanted: AtomicBool,
    rests: AtomicBool,
}

fn record(number: u64) -> String {
    format!(
        "{number:08} {:016x}\n",
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    )
}

impl Writer {
    fn start(mount: &Path) -> Self {
        let folder = mount.join("writer");
        fs::create_dir(&folder).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let pause = Arc::new(Pause::default());
        let rest = Arc::clone(&pause);
        let (ended, count, place) = (Arc::clone(&stop), Arc::clone(&acknowledged), folder.clone());
        let thread = std::thread::spawn(move || {
            let mut log = File::options()
                .append(true)
                .create(true)
                .open(place.join("log"))?;
            for number in 0.. {
                while rest.wanted.load(Ordering::SeqCst) {
                    rest.rests.store(true, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                }
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                log.write_all(record(number).as_bytes())?;
                log.sync_data()?;
                if number % RECORDS_A_FILE == 0 {
                    fs::write(place.join(format!("file-{number}")), record(number))?;
                }
                count.store(number + 1, Ordering::Relaxed);
            }
            Ok(())
        });
        let writer = Writer {
            folder,
            stop,
            pause,
            acknowledged,
            thread,
        };
        writer.wait_for_progress();
        writer
    }

    fn wait_for_progress(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        wait_until(WITHIN, "the writer goes on", || {
            self.thread.is_finished()
                || self.acknowledged.load(Ordering::Relaxed) > before + RECORDS_A_FILE
        });
    }

    /// Does something while the program rests: bricks that are written to cannot be compared.
    fn while_it_rests(&self, work: impl FnOnce()) {
        self.pause.rests.store(false, Ordering::SeqCst);
        self.pause.wanted.store(true, Ordering::SeqCst);
        wait_until(WITHIN, "the writer rests", || {
            self.pause.rests.load(Ordering::SeqCst) || self.thread.is_finished()
        });
        work();
        self.pause.wanted.store(false, Ordering::SeqCst);
    }

    /// Ends it; everything acknowledged must be there, and it must have seen no error.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the writer");
        assert!(seen.is_ok(), "the program saw {seen:?}");
        let count = self.acknowledged.load(Ordering::Relaxed);
        let log = fs::read_to_string(self.folder.join("log")).unwrap();
        let expected: String = (0..count).map(record).collect();
        assert!(log.starts_with(&expected), "acknowledged records are lost");
        for number in (0..count).step_by(RECORDS_A_FILE as usize) {
            let file = self.folder.join(format!("file-{number}"));
            assert_eq!(fs::read_to_string(file).unwrap(), record(number));
        }
    }
}

/// What the volume holds before a brick is replaced.
fn fill(mount: &Path, files: usize) {
    for number in 0..files {
        let folder = mount.join(format!("data/{}", number % 20));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("f{number}")), record(number as u64)).unwrap();
    }
    let pattern: Vec<u8> = (0..BIG_BYTES).map(|at| (at / 4096) as u8).collect();
    fs::write(mount.join("big"), pattern).unwrap();
}

/// Whether the command also freed the old brick's folder; a slow disk may leave that undone, which it
/// says.
fn replace(cluster: &Cluster, volume: &str, asked: &str, old: &str, new: &str) -> bool {
    let said = cluster
        .mortar(
            asked,
            &format!("volume replace-brick {volume} {old} {new} commit force"),
        )
        .ok();
    assert!(
        said.starts_with(
            "volume replace-brick: success: replace-brick commit force operation successful"
        ),
        "{said}"
    );
    !said.contains("could not be removed")
}

/// The folder of a brick named HOST:/PATH.
fn folder(brick: &str) -> PathBuf {
    brick.split_once(':').expect("HOST:/PATH").1.into()
}

/// The bricks of the volume, as its registry has them, are healed, equal, and exactly these.
fn assert_bricks_are(cluster: &Cluster, writer: &Writer, bricks: [&str; 2]) {
    cluster.wait_healed(VOLUME);
    let info = cluster
        .any_peer()
        .mortar(&format!("volume info {VOLUME}"))
        .ok();
    for brick in bricks {
        assert!(info.contains(&format!(": {brick}\n")), "{brick}: {info}");
    }
    assert_eq!(cluster.volume(VOLUME).bricks.len(), 2, "{info}");
    writer.while_it_rests(|| assert_bricks_equal(&folder(bricks[0]), &folder(bricks[1])));
    cluster.assert_check_finds_nothing(VOLUME);
    writer.wait_for_progress();
}

/// Whether a brick was in sync in any epoch that the registry remembers.
fn ever_in_sync(cluster: &Cluster, volume: &str, brick: u64) -> bool {
    let volume = cluster.volume(volume);
    let set = &volume.sets[0];
    let mut epochs = set.history.iter().chain(&set.epoch);
    epochs.any(|epoch| epoch.in_sync.iter().any(|copy| copy.brick == brick))
}

fn id_of(cluster: &Cluster, volume: &str, brick: &str) -> u64 {
    let path = folder(brick);
    let volume = cluster.volume(volume);
    let found = volume
        .bricks
        .iter()
        .find(|one| Path::new(&one.path) == path);
    found.expect("a brick of the volume").id
}

fn is_brick(folder: &Path) -> bool {
    folder.join(".mortar/volume").exists()
}

fn old_spec(host: &Host, cluster: &Cluster) -> String {
    format!("{}:{}", host.name, cluster.brick(&host.name).display())
}

/// Replaces a brick whose brickd was killed by one on another host. When the dead host is back, its
/// old brick is served no more, and it can leave the pool.
fn replace_dead(
    cluster: &Cluster,
    writer: &Writer,
    (dead, old): (&Host, &str),
    stays: &str,
    other: &Host,
) {
    let new = other.brick_spec("third");
    let gone = id_of(cluster, VOLUME, old);
    dead.kill_brickd();
    replace(cluster, VOLUME, &other.name, old, &new);
    writer.wait_for_progress();
    assert_bricks_are(cluster, writer, [stays, &new]);
    dead.start_brickd();
    writer.wait_for_progress();
    assert!(is_brick(&folder(old)), "nobody could take that from it");
    wait_until(WITHIN, "the old brick is not served", || {
        let states = dead.brick_states(VOLUME).unwrap_or_default();
        !states.is_empty() && states.iter().all(|state| state.id != gone)
    });
    let again = format!("volume replace-brick {VOLUME} {new} {old} commit force");
    let again = other.mortar(&again).refused();
    assert!(again.contains("is already part of a volume"), "{again}");
    assert_bricks_are(cluster, writer, [stays, &new]);
    other.mortar(&format!("peer detach {}", dead.name)).ok();
    writer.wait_for_progress();
}

#[test]
fn a_backup_a_primary_and_a_dead_brick_are_replaced_under_load() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    fill(mount.path(), pick(FILES / 4, FILES * 4));
    let writer = Writer::start(mount.path());

    // A backup that runs.
    let (primary, backup) = (cluster.primary(VOLUME), cluster.backup(VOLUME));
    let (first, old) = (old_spec(primary, &cluster), old_spec(backup, &cluster));
    let spare = cluster.host("gfs03").brick_spec("spare");
    let freed = replace(&cluster, VOLUME, "gfs03", &old, &spare);
    writer.wait_for_progress();
    assert_bricks_are(&cluster, &writer, [&first, &spare]);
    assert_eq!(is_brick(&folder(&old)), !freed);
    assert!(folder(&old).join("big").exists(), "its files stay");

    // The primary, which runs.
    let primary = cluster.primary(VOLUME).name.clone();
    let (old, stays) = if primary == "gfs03" {
        (spare, first)
    } else {
        (first, spare)
    };
    let second = backup.brick_spec("second");
    let freed = replace(&cluster, VOLUME, &primary, &old, &second);
    writer.wait_for_progress();
    assert_bricks_are(&cluster, &writer, [&stays, &second]);
    assert_eq!(is_brick(&folder(&old)), !freed);

    // One whose host is dead, the primary of now.
    let dead = cluster.host(stays.split(':').next().unwrap());
    let names = ["gfs01", "gfs02", "gfs03"];
    let other = |name: &&str| **name != *dead.name && **name != *backup.name;
    let third = cluster.host(names.iter().find(|name| other(name)).unwrap());
    replace_dead(&cluster, &writer, (dead, &stays), &second, third);

    writer.finish();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Waits until a part of the files has come to a new brick.
fn wait_filled(new: &str, files: usize) {
    let data = folder(new).join("data");
    let start = Instant::now();
    while files_below(&data) < files {
        assert!(start.elapsed() < WITHIN, "no {files} files came to {new}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn assert_still_filled(cluster: &Cluster, volume: &str, new: u64) {
    let ended = ever_in_sync(cluster, volume, new);
    assert!(!ended, "the fill had ended: nothing was interrupted");
}

#[test]
fn a_fill_goes_on_after_kills_of_the_new_brick_and_of_the_primary() {
    const THREE: &str = "v03";
    let cluster = Cluster::three_peers();
    let names = ["gfs01", "gfs02", "gfs03"];
    let specs = names.map(|name| cluster.host(name).brick_spec("copy"));
    let create = format!("volume create {THREE} replica 3 {} force", specs.join(" "));
    cluster.mortar("gfs01", &create).ok();
    cluster
        .mortar("gfs01", &format!("volume start {THREE}"))
        .ok();
    cluster.wait_in_sync(THREE);
    let mount = cluster.mount("client", &format!("gfs01,gfs02,gfs03:/{THREE}"), "");
    let files = pick(FILES, FILES * 8);
    fill(mount.path(), files);
    let writer = Writer::start(mount.path());
    let (primary, filling) = (cluster.primary(THREE), cluster.backup(THREE));
    let is_on = |spec: &&String, host: &Host| spec.starts_with(&format!("{}:", host.name));
    let old = specs.iter().find(|spec| is_on(spec, filling)).unwrap();
    let new = filling.brick_spec("new");
    replace(&cluster, THREE, &primary.name, old, &new);
    let id = id_of(&cluster, THREE, &new);

    wait_filled(&new, files / 20);
    filling.kill_brickd();
    assert_still_filled(&cluster, THREE, id);
    writer.wait_for_progress();
    filling.start_brickd();

    wait_filled(&new, files / 4);
    primary.kill_brickd();
    assert_still_filled(&cluster, THREE, id);
    writer.wait_for_progress();
    assert_ne!(
        cluster.primary(THREE).name,
        primary.name,
        "nobody took over"
    );
    primary.start_brickd();

    cluster.wait_healed(THREE);
    assert!(ever_in_sync(&cluster, THREE, id));
    writer.while_it_rests(|| {
        for spec in specs.iter().filter(|spec| *spec != old) {
            assert_bricks_equal(&folder(spec), &folder(&new));
        }
    });
    cluster.assert_check_finds_nothing(THREE);
    writer.finish();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn a_copy_that_is_not_filled_yet_serves_nobody_while_the_only_whole_one_is_dead() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    let files = pick(FILES * 3, FILES * 8);
    fill(mount.path(), files);
    let writer = Writer::start(mount.path());
    let primary = cluster.primary(VOLUME);
    let stays = old_spec(primary, &cluster);
    let old = old_spec(cluster.backup(VOLUME), &cluster);
    let spare = cluster.host("gfs03").brick_spec("spare");
    replace(&cluster, VOLUME, &primary.name, &old, &spare);
    let new = id_of(&cluster, VOLUME, &spare);
    wait_filled(&spare, files / 20);
    // It rests: a change that is under way when every copy that knows its session restarts gets EIO.
    writer.while_it_rests(|| {
        primary.kill_brickd();
        assert_still_filled(&cluster, VOLUME, new);
        let (epoch, start) = (cluster.volume(VOLUME).sets[0].epoch.clone(), Instant::now());
        // Longer than a copy in sync takes to take over.
        while start.elapsed() < Duration::from_secs(3) {
            assert_eq!(cluster.volume(VOLUME).sets[0].epoch, epoch);
            std::thread::sleep(Duration::from_millis(100));
        }
        primary.start_brickd();
        // The client finds out by a read, which may be repeated.
        let nothing = fs::metadata(mount.join("never-made")).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::NotFound);
    });
    writer.wait_for_progress();
    assert_bricks_are(&cluster, &writer, [&stays, &spare]);
    writer.finish();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// A command is refused in words that hold these, and the registry is as it was.
#[track_caller]
fn assert_refused(cluster: &Cluster, words: &str, because: &str) {
    let before = cluster.volume(VOLUME);
    let said = cluster
        .mortar("gfs03", &format!("volume {words}"))
        .refused();
    assert!(said.contains(because), "{words}: {said}");
    assert!(said.contains(": failed: "), "{words}: {said}");
    let now = cluster.volume(VOLUME);
    let (now, before) = ((now.bricks, now.sets), (before.bricks, before.sets));
    assert_eq!(now, before, "{words}");
}

/// A command succeeds in exactly these words.
#[track_caller]
fn assert_done(cluster: &Cluster, words: &str, said: &str) {
    let done = cluster.mortar("gfs03", &format!("volume {words}")).ok();
    let expected = format!("volume reset-brick: success: reset-brick {said} operation successful");
    assert_eq!(done.trim(), expected);
}

#[test]
fn an_emptied_folder_is_reset_and_what_would_lose_data_is_refused() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    fill(mount.path(), FILES / 4);
    let writer = Writer::start(mount.path());
    let kept = old_spec(cluster.primary(VOLUME), &cluster);
    let emptied = old_spec(cluster.backup(VOLUME), &cluster);
    let spare = cluster.host("gfs03").brick_spec("spare");
    let refused = |words: &str, because: &str| assert_refused(&cluster, words, because);
    let replace = format!("replace-brick {VOLUME}");
    refused(
        &format!("{replace} gfs01:/none {spare} commit force"),
        "does not exist in volume: v01",
    );
    refused(
        &format!("{replace} {emptied} {kept} commit force"),
        "is already part of a volume",
    );
    refused(
        &format!("{replace} {emptied} {spare} commit"),
        "commit force",
    );
    let reset = format!("reset-brick {VOLUME} {emptied}");
    refused(
        &format!("{reset} {emptied} commit force"),
        "Source brick must be stopped",
    );

    assert_done(&cluster, &format!("{reset} start"), "start");
    refused(
        &format!("{replace} {kept} {spare} commit force"),
        "it holds the only up-to-date copy",
    );
    assert!(!folder(&spare).exists(), "a refusal leaves no folder");
    refused(
        &format!("{reset} {spare} commit force"),
        "please use replace-brick command",
    );
    refused(
        &format!("{reset} {emptied} commit"),
        "is already part of a volume",
    );
    let old = id_of(&cluster, VOLUME, &emptied);
    fs::remove_dir_all(folder(&emptied)).unwrap();
    fs::create_dir(folder(&emptied)).unwrap();
    writer.wait_for_progress();
    let commit = format!("{reset} {emptied} commit force");
    assert_done(&cluster, &commit, "commit force");
    assert_ne!(
        id_of(&cluster, VOLUME, &emptied),
        old,
        "it is another brick"
    );
    assert_bricks_are(&cluster, &writer, [&kept, &emptied]);

    // And once more, over what the brick held: 'force' gives that up.
    assert_done(&cluster, &format!("{reset} start"), "start");
    writer.wait_for_progress();
    assert_done(&cluster, &commit, "commit force");
    assert_bricks_are(&cluster, &writer, [&kept, &emptied]);
    writer.finish();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn with_two_voters_both_bricks_are_replaced_under_load() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    fill(mount.path(), FILES / 8);
    let writer = Writer::start(mount.path());
    let (primary, backup) = (cluster.primary(VOLUME), cluster.backup(VOLUME));
    let new = [backup, primary].map(|host| {
        let old = old_spec(host, &cluster);
        let new = host.brick_spec("new");
        replace(&cluster, VOLUME, "gfs01", &old, &new);
        writer.wait_for_progress();
        cluster.wait_healed(VOLUME);
        new
    });
    assert_bricks_are(&cluster, &writer, [&new[0], &new[1]]);
    writer.finish();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}
