use rustix::process::Signal;
use tests::cluster::{Process, signal_process};
use tests::stall::StallMeter;

use super::*;

const ROUNDS: usize = 3;
/// How long somebody stands still each time.
const FROZEN: Duration = Duration::from_secs(3);
/// Others notice less than this of it.
const STALL_MAX: Duration = Duration::from_millis(2_500);

/// A program that does all that readers do.
const READER: &str = "\
import fcntl, mmap, os, sys
big, many = os.path.join(sys.argv[1], 'big'), os.path.join(sys.argv[1], 'many')
log = os.open(os.path.join(sys.argv[1], 'log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
rounds = 0
while True:
    with open(big, 'rb') as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        while f.read(1 << 16): pass
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        sum(m[::4096])
    for e in os.scandir(many): e.stat()
    with open(os.path.join(many, 'mine'), 'w') as f: f.write('x')
    os.rename(os.path.join(many, 'mine'), os.path.join(many, 'done'))
    rounds += 1
    os.write(log, b'%d\\n' % rounds)
";

fn state_of(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')')
        .next()
        .unwrap()
        .trim()
        .chars()
        .next()
        .unwrap()
}

/// Freezes and thaws a process some times; the meters' longest pauses stay short.
fn freeze_and_thaw(pid: u32, meters: Vec<(&str, StallMeter)>) {
    for round in 0..ROUNDS {
        signal_process(pid, Signal::STOP);
        wait_until(WITHIN, "it stands still", || state_of(pid) == 'T');
        std::thread::sleep(FROZEN);
        meters
            .iter()
            .for_each(|(_, meter)| meter.wait_for_progress());
        signal_process(pid, Signal::CONT);
        // Another place of its work each time.
        std::thread::sleep(Duration::from_millis(137 * round as u64));
    }
    for (where_, meter) in meters {
        let stalls = meter.stop();
        report::say(&format!("{where_}: {stalls:?}"));
        assert!(stalls.errors.is_empty(), "{where_}: {:?}", stalls.errors);
        assert!(stalls.longest < STALL_MAX, "{where_}: {stalls:?}");
    }
}

#[test]
fn a_reader_or_a_client_that_stands_still_holds_up_nobody_else() {
    let cluster = Cluster::two_hosts();
    let mounts =
        ["gfs01,gfs02:/v01", "gfs02,gfs01:/v01"].map(|source| cluster.mount("client", source, ""));
    let [here, there] = mounts.each_ref().map(Mount::path);
    fs::write(here.join("big"), vec![7; 8 << 20]).unwrap();
    fs::create_dir(here.join("many")).unwrap();
    for number in 0..200 {
        fs::write(here.join(format!("many/{number}")), "x").unwrap();
    }
    for folder in ["meter-1", "meter-2", "meter-3"] {
        fs::create_dir(here.join(folder)).unwrap();
    }
    let mut command = cluster.host("client").command("python3");
    command.args(["-c", READER]).arg(here);
    let mut reader = Process::start(command, &cluster.folder("reader").join("log"));
    let rounds = || {
        fs::read_to_string(there.join("log"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_until(WITHIN, "the reader works", || rounds() > 1);
    let meters = vec![
        ("the same mount", StallMeter::start(&here.join("meter-1"))),
        ("another mount", StallMeter::start(&there.join("meter-2"))),
    ];
    freeze_and_thaw(reader.pid(), meters);
    let before = rounds();
    wait_until(WITHIN, "the reader goes on", || rounds() > before + 1);
    // The client of its mount itself.
    let meters = vec![("another mount", StallMeter::start(&there.join("meter-3")))];
    freeze_and_thaw(mounts[0].pid(), meters);
    let before = rounds();
    wait_until(WITHIN, "the reader goes on", || rounds() > before + 1);
    assert!(reader.is_running(), "{}", reader.log_tail());
    reader.kill();
    for mount in mounts {
        mount.unmount();
    }
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
