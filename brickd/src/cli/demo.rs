//! `mortar demo`: a pool of three peers on loopback, one of them killed while work goes on.
//!
//! Everything it starts is this same executable, in processes of its own, under one folder; all of
//! it is gone afterwards, also after Ctrl-C or a failure, unless `--keep` is given.

mod compare;
mod interruption;
mod pool;
mod work;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use compare::Comparison;
use pool::Pool;
use work::{Meter, copy_tree, read_tree, source_tree};

/// Options of `mortar demo`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DemoArgs {
    /// Leave it running, and say where and how to play with it
    #[arg(long)]
    pub keep: bool,
    /// Folder to work in; made, and removed afterwards [default: a new one in the temporary folder]
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
}

/// How long the returned brick may take to be healed.
const HEAL_DEADLINE: Duration = Duration::from_secs(60);
/// How long the killed brick stays away.
const AWAY: Duration = Duration::from_secs(3);

/// How long after the last change both bricks are equal at the latest.
const REST: Duration = Duration::from_secs(5);

/// Runs the demo; prints each step with its time.
///
/// # Errors
/// One sentence: what did not work. Everything is cleaned up then, too.
pub fn run(args: &DemoArgs) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err(
            "the demo mounts a file system and stores trusted attributes: run it as root"
                .to_owned(),
        );
    }
    let args = args.clone();
    // A thread that waits for a mount takes no signals: this one must never do so.
    let story = std::thread::Builder::new().spawn(move || run_through(&args));
    let story = story.map_err(|error| format!("no thread for the demo: {error}"))?;
    story
        .join()
        .unwrap_or_else(|_| Err("the demo failed".to_owned()))
}

fn run_through(args: &DemoArgs) -> Result<(), String> {
    let mut steps = Steps::begin();
    let mut pool = Pool::new(args.dir.as_deref())?;
    println!("A pool of three peers on loopback: two bricks and a witness.\n");
    let told = tell(&mut pool, &mut steps);
    if let Err(reason) = told {
        pool.show_logs();
        return Err(reason);
    }
    if args.keep {
        pool.keep()?;
    } else {
        drop(pool);
        steps.say("everything is stopped and removed");
    }
    Ok(())
}

fn tell(pool: &mut Pool, steps: &mut Steps) -> Result<(), String> {
    found(pool, steps)?;
    let source = source_tree();
    let copied = copy_tree(
        &source,
        &pool.mount_point().join("tree"),
        pool.interruption(),
    )?;
    steps.say(&format!(
        "copied {} in: {} files, {:.1} MiB",
        source.display(),
        copied.files,
        copied.bytes as f64 / 1_048_576.0
    ));

    let victim = lose_the_primary(pool, &source, steps)?;
    heal(pool, victim, steps)?;
    compare_bricks(pool, steps)
}

/// Three peers, one volume, one mount.
fn found(pool: &mut Pool, steps: &mut Steps) -> Result<(), String> {
    for peer in 0..3 {
        pool.start_peer(peer)?;
    }
    steps.say(&format!(
        "three brickd started: {}",
        pool.hosts().join(", ")
    ));
    let hosts = pool.hosts();
    pool.mortar(&["peer", "probe", &hosts[1]])?;
    pool.mortar(&["peer", "probe", &hosts[2]])?;
    steps.say("they are one pool");
    let (one, two) = (pool.brick_spec(0), pool.brick_spec(1));
    pool.mortar(&[
        "volume", "create", "v01", "replica", "2", &one, &two, "force",
    ])?;
    pool.mortar(&["volume", "start", "v01"])?;
    steps.say("volume v01, every file on two bricks, is started");
    pool.mount()?;
    steps.say(&format!("mounted on {}", pool.mount_point().display()));
    Ok(())
}

/// Returns the peer that was killed, and stays away.
fn lose_the_primary(pool: &mut Pool, source: &Path, steps: &mut Steps) -> Result<usize, String> {
    let hosts = pool.hosts();
    let meter = Meter::start(&pool.mount_point().join("log"))?;
    let victim = pool.primary()?;
    pool.interruption().wait(Duration::from_millis(500))?;
    pool.kill_peer(victim)?;
    steps.say(&format!(
        "killed brickd on {} (it was the primary; no warning)",
        hosts[victim]
    ));
    let read = read_tree(&pool.mount_point().join("tree"), pool.interruption())?;
    steps.say(&format!("read all {} files again", read.files));
    let again = copy_tree(
        source,
        &pool.mount_point().join("while-away"),
        pool.interruption(),
    )?;
    steps.say(&format!(
        "wrote {} more files with one brick away",
        again.files
    ));
    pool.interruption().wait(AWAY)?;
    let stall = meter.stop()?;
    steps.say(&format!(
        "a writer that syncs every record noticed a pause of {} ms and {} errors in {} records",
        stall.longest.as_millis(),
        stall.errors,
        stall.records
    ));
    if stall.errors > 0 {
        return Err("an application saw an error".to_owned());
    }
    Ok(victim)
}

fn heal(pool: &mut Pool, victim: usize, steps: &mut Steps) -> Result<(), String> {
    pool.start_peer(victim)?;
    steps.say(&format!("brickd on {} is back", pool.hosts()[victim]));
    let began = Instant::now();
    while pool.pending_heals()? > 0 {
        if began.elapsed() > HEAL_DEADLINE {
            return Err(format!("not healed after {} s", HEAL_DEADLINE.as_secs()));
        }
        pool.interruption().wait(Duration::from_millis(200))?;
    }
    steps.say("healed: nothing is pending");
    Ok(())
}

fn compare_bricks(pool: &Pool, steps: &mut Steps) -> Result<(), String> {
    // A brick writes the newest times back after a moment of rest.
    let began = Instant::now();
    let mut compared = compare::folders(&pool.brick_path(0), &pool.brick_path(1))?;
    while matches!(compared, Comparison::Different(_)) && began.elapsed() < REST {
        pool.interruption().wait(Duration::from_millis(200))?;
        compared = compare::folders(&pool.brick_path(0), &pool.brick_path(1))?;
    }
    match compared {
        Comparison::Equal { files, bytes } => {
            steps.say(&format!(
                "both bricks are equal, byte for byte: {files} files, {:.1} MiB",
                bytes as f64 / 1_048_576.0
            ));
            Ok(())
        }
        Comparison::Different(what) => Err(format!("the bricks differ: {what}")),
    }
}

/// Prints steps with the time each took.
struct Steps {
    last: Instant,
}

impl Steps {
    fn begin() -> Self {
        Steps {
            last: Instant::now(),
        }
    }

    fn say(&mut self, what: &str) {
        println!("{:>8.2} s  {what}", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}
