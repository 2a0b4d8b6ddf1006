//! Programs that people run on a file system, each once with all bricks there and once with a brick
//! killed in the middle and started again; what they made is judged by their own checkers.

mod archives;
mod databases;
mod layers;
mod load;
mod mail;

use std::path::Path;
use std::process::Command;

use tests::cluster::{Cluster, Mount, Ran, run};
use tests::outage::{through_an_outage, within};

/// What becomes of the bricks while a program works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bricks {
    Stay,
    /// brickd of this host is killed in the middle and comes back.
    Lose(&'static str),
}

/// A script in a folder, on the host that has the mount.
fn script(cluster: &Cluster, folder: &Path, text: &str) -> Command {
    let mut command = cluster.host("client").command("/bin/sh");
    command.args(["-ec", text]).current_dir(folder);
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// Runs a script in the mount to its end; a brick is lost, where one is to be, as soon as the
/// script has made the file `$MIDDLE`, which lies outside of the volume.
#[track_caller]
fn work(cluster: &Cluster, mount: &Mount, bricks: Bricks, text: &str) -> Ran {
    let middle = cluster.folder("signs").join("middle");
    let mut command = script(cluster, mount.path(), text);
    command.env("MIDDLE", &middle);
    match bricks {
        Bricks::Stay => {
            let ran = run(command, within());
            assert!(ran.status.success(), "{ran}");
            assert!(middle.exists(), "the script has no middle: {ran}");
            ran
        }
        Bricks::Lose(victim) => {
            through_an_outage(cluster, victim, command, within(), || middle.exists())
        }
    }
}
