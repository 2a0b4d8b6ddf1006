//! Two hosts without a witness that both went on alone: what becomes of what each changed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tests::cluster::{Allowed, Cluster, Mount, VOLUME, wait_until};

/// Both sides are alone well before this.
const ALONE_WITHIN: Duration = Duration::from_secs(60);
const MERGED_WITHIN: Duration = Duration::from_secs(90);
/// What a test expects to be logged at a split.
const SPLIT_IS_LOGGED: Allowed<'static> = Allowed {
    text: "this copy is closed",
    why: "both sides went on alone: one of them closes until it is merged",
};

/// What the kill of a base may bring: the other side's changes come through a client's session.
const MERGER_IS_PUT_OUT: Allowed<'static> = Allowed {
    text: "a change was under way when this client was put out",
    why: "the merge is a client of the base, which was killed: it begins anew",
};

/// The operator goes on with the side that served others.
const UNSYNCED_MAY_BE_LOST: Allowed<'static> = Allowed {
    text: "every copy was started anew and the one that serves has another page cache",
    why: "what the other side's clients wrote is given up",
};

/// Two hosts, each with a client of its own.
struct Split {
    cluster: Cluster,
    mounts: [Mount; 2],
}

const SIDES: [&str; 2] = ["gfs01", "gfs02"];

impl Split {
    /// With what `before` makes while both hosts are one.
    fn new(before: impl FnOnce(&Path)) -> Self {
        let cluster = Cluster::two_hosts();
        let mounts = SIDES.map(|host| cluster.mount(host, "gfs01,gfs02:/v01", ""));
        before(mounts[0].path());
        Split { cluster, mounts }
    }

    /// Cuts the hosts off from each other, lets each side work alone, and joins them again.
    fn apart(&self, one: impl FnOnce(&Path) + Send, two: impl FnOnce(&Path) + Send) {
        let cluster = &self.cluster;
        cluster.host("gfs01").cut_link();
        std::thread::scope(|scope| {
            for mount in &self.mounts {
                // Only a side that has clients goes on alone.
                scope.spawn(move || fs::write(mount.join("alone"), "").unwrap());
            }
        });
        // That both could do this is the split.
        for host in SIDES {
            let what = format!("{host} went on alone");
            wait_until(ALONE_WITHIN, &what, || {
                cluster.brick(host).join("alone").exists()
            });
        }
        one(self.mounts[0].path());
        two(self.mounts[1].path());
        cluster.host("gfs01").restore_link();
    }

    fn both(&self, what: &str, holds: impl Fn(&Path) -> bool) {
        for mount in &self.mounts {
            wait_until(MERGED_WITHIN, what, || holds(mount.path()));
        }
    }

    fn merged(&self) {
        self.cluster.wait_in_sync(VOLUME);
    }

    fn heal(&self, words: &str) -> String {
        self.cluster
            .mortar("gfs02", &format!("volume heal {VOLUME} {words}"))
            .ok()
    }

    /// The places in the volume of the other side's versions, as the CLI lists them.
    fn versions(&self) -> Vec<(String, PathBuf)> {
        let info = self.heal("info split-brain");
        let listed = info
            .lines()
            .filter_map(|line| line.split_once(" - version of "));
        let mut versions: Vec<(String, PathBuf)> = listed
            .map(|(path, rest)| {
                let place = rest.split_once(": /").expect("where it is").1;
                (path.to_owned(), self.mounts[0].join(place))
            })
            .collect();
        versions.sort();
        versions.dedup();
        versions
    }

    fn end(self) {
        self.end_with(&[SPLIT_IS_LOGGED]);
    }

    fn end_with(self, allowed: &[Allowed<'_>]) {
        self.cluster.assert_healed_and_equal();
        self.mounts.into_iter().for_each(Mount::unmount);
        self.cluster.assert_logs_clean(allowed);
    }
}

/// Sets a flag when it goes, also with a test that fails.
struct Sets<'a>(&'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn read(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[test]
fn what_one_side_changed_heals_without_asking() {
    let split = Split::new(|root| {
        for name in [
            "of-one",
            "of-two",
            "removed-by-one",
            "removed-by-two",
            "moved-by-two",
        ] {
            fs::write(root.join(name), "before").unwrap();
        }
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/kept"), "before").unwrap();
    });
    split.apart(
        |root| {
            fs::write(root.join("of-one"), "after one").unwrap();
            fs::remove_file(root.join("removed-by-one")).unwrap();
            fs::write(root.join("dir/new-of-one"), "one").unwrap();
            fs::create_dir_all(root.join("both/deep")).unwrap();
            fs::write(root.join("both/deep/one"), "one").unwrap();
        },
        |root| {
            let mut file = File::options()
                .append(true)
                .open(root.join("of-two"))
                .unwrap();
            file.write_all(b" after two").unwrap();
            drop(file);
            fs::remove_file(root.join("removed-by-two")).unwrap();
            fs::rename(root.join("moved-by-two"), root.join("dir/moved")).unwrap();
            fs::write(root.join("dir/new-of-two"), "two").unwrap();
            fs::hard_link(root.join("dir/kept"), root.join("dir/linked")).unwrap();
            fs::create_dir_all(root.join("both/deep")).unwrap();
            fs::write(root.join("both/deep/two"), "two").unwrap();
        },
    );
    split.merged();
    let after = |name: &str, text: &str| {
        split.both(&format!("{name} is '{text}'"), |root| {
            read(root.join(name)).as_deref() == Some(text)
        });
    };
    after("of-one", "after one");
    after("of-two", "before after two");
    after("dir/new-of-one", "one");
    after("dir/new-of-two", "two");
    after("dir/moved", "before");
    after("dir/linked", "before");
    after("both/deep/one", "one");
    after("both/deep/two", "two");
    split.both("what was removed is", |root| {
        ["removed-by-one", "removed-by-two", "moved-by-two"]
            .iter()
            .all(|name| !root.join(name).exists())
    });
    assert_eq!(split.versions(), Vec::new());
    split.end();
}

/// Work goes on at the base while the other side's changes are brought, and both processes are
/// killed in the middle of it: first the one that brings, then the base.
#[test]
fn a_merge_goes_on_after_kills_while_others_write() {
    const FILES: usize = 300;
    const FEW: usize = 10;
    let split = Split::new(|root| fs::create_dir(root.join("of-two")).unwrap());
    let cluster = &split.cluster;
    assert_eq!(cluster.primary(VOLUME).name, "gfs01");
    let text = |number: usize| format!("file {number} of two");
    split.apart(
        |root| fs::write(root.join("of-one"), "one").unwrap(),
        |root| {
            for number in 0..FILES {
                fs::write(root.join(format!("of-two/{number}")), text(number)).unwrap();
            }
        },
    );
    let brought = || {
        fs::read_dir(cluster.brick("gfs01").join("of-two"))
            .unwrap()
            .count()
    };
    let done = AtomicBool::new(false);
    let live = |number: usize| format!("live-{number}");
    let written = std::thread::scope(|scope| {
        let root = split.mounts[0].path();
        let end = Sets(&done);
        let writer = scope.spawn(|| {
            let mut written = Vec::new();
            for number in 0.. {
                match fs::write(root.join(live(number)), text(number)) {
                    Ok(()) => written.push(number),
                    // The base is the only copy: what was under way when it was killed may be done
                    // or not, and says so.
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}"),
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            written
        });
        for host in ["gfs02", "gfs01"] {
            let before = brought();
            let what = format!("the merge is under way before {host} is killed");
            wait_until(MERGED_WITHIN, &what, || brought() >= before + FEW);
            cluster.host(host).kill_brickd();
            assert!(brought() < FILES, "{host} was killed too late to matter");
            cluster.host(host).start_brickd();
        }
        split.merged();
        drop(end);
        writer.join().expect("the writer")
    });
    assert!(written.len() > FEW);
    split.both("everything is there", |root| {
        let of_two = (0..FILES).all(|number| {
            read(root.join(format!("of-two/{number}"))).is_some_and(|it| it == text(number))
        });
        let of_writer = written
            .iter()
            .all(|number| read(root.join(live(*number))) == Some(text(*number)));
        of_two && of_writer && read(root.join("of-one")).as_deref() == Some("one")
    });
    assert_eq!(split.versions(), Vec::new());
    split.end_with(&[SPLIT_IS_LOGGED, MERGER_IS_PUT_OUT]);
}

/// A volume with files that both sides then change; gfs01 is the old primary, so it goes on.
/// Also returned: the file `a`, open at gfs01 all the while.
fn conflict(option: &str) -> (Split, File) {
    let split = Split::new(|root| {
        for name in ["a", "b", "c", "quiet"] {
            fs::write(root.join(name), "before").unwrap();
        }
    });
    assert_eq!(split.cluster.primary(VOLUME).name, "gfs01");
    if !option.is_empty() {
        let set = format!("volume set {VOLUME} {option}");
        split.cluster.mortar("gfs01", &set).ok();
    }
    let (opened, open_file) = mpsc::channel();
    split.apart(
        |root| {
            fs::write(root.join("a"), "a of one").unwrap();
            opened.send(File::open(root.join("a")).unwrap()).unwrap();
            fs::write(root.join("b"), "b of one").unwrap();
            fs::write(root.join("c"), "c of one, the longer").unwrap();
            fs::write(root.join("new"), "new of one").unwrap();
        },
        |root| {
            // Written later than those of the other side.
            fs::write(root.join("a"), "a of two").unwrap();
            fs::write(root.join("b"), "b of two").unwrap();
            fs::write(root.join("c"), "c of two").unwrap();
            fs::write(root.join("new"), "new of two").unwrap();
            fs::write(root.join("of-two"), "two").unwrap();
        },
    );
    (split, open_file.recv().unwrap())
}

#[test]
fn what_both_changed_gives_eio_until_it_is_decided() {
    let (split, still_open) = conflict("");
    split.merged();
    split.both("the files in conflict give EIO", |root| {
        ["a", "b", "c", "new"].iter().all(|name| {
            let read = fs::read(root.join(name));
            read.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
        })
    });
    drop(still_open);
    let written = fs::write(split.mounts[1].join("a"), "a third").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EIO));
    // The rest works.
    assert_eq!(read(split.mounts[0].join("quiet")).unwrap(), "before");
    split.both("what one side made is there", |root| {
        read(root.join("of-two")).as_deref() == Some("two")
    });
    fs::write(split.mounts[1].join("quiet"), "after").unwrap();

    // Both versions can be read: the one in the mount, the other in the file's place on a brick.
    let versions = split.versions();
    let names: Vec<&str> = versions.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(names, ["/a", "/b", "/c", "/new"]);
    let texts: Vec<String> = versions
        .iter()
        .map(|(_, at)| read(at.clone()).unwrap())
        .collect();
    assert_eq!(texts, ["a of two", "b of two", "c of two", "new of two"]);
    // The conflict is known at the base before the other brick is healed.
    for host in SIDES {
        let what = format!("{host} has the base's version");
        let file = split.cluster.brick(host).join("a");
        wait_until(MERGED_WITHIN, &what, || {
            read(file.clone()).as_deref() == Some("a of one")
        });
    }
    split.merged();

    // Each is decided by itself, in another way.
    let spec = |host: &str| split.cluster.host(host).brick_spec("glusterfs/distributed");
    let decide = |how: &str| split.heal(&format!("split-brain {how}"));
    assert_eq!(decide("latest-mtime /a").trim(), "Healed /a.");
    assert_eq!(
        decide(&format!("source-brick {} /b", spec("gfs01"))).trim(),
        "Healed /b."
    );
    assert_eq!(decide("bigger-file /c").trim(), "Healed /c.");
    let rest = decide(&format!("source-brick {}", spec("gfs02")));
    assert_eq!(rest.trim(), "Number of healed entries: 1");
    let again = split.cluster.mortar(
        "gfs01",
        &format!("volume heal {VOLUME} split-brain bigger-file /a"),
    );
    assert!(again.refused().contains("File not in split-brain"));
    for (name, text) in [
        ("a", "a of two"),
        ("b", "b of one"),
        ("c", "c of one, the longer"),
        ("new", "new of two"),
    ] {
        split.both(&format!("{name} is decided"), |root| {
            read(root.join(name)).as_deref() == Some(text)
        });
    }
    assert_eq!(split.versions(), Vec::new());
    split.end();
}

#[test]
fn a_policy_decides_without_asking() {
    let (split, _) = conflict("cluster.favorite-child-policy mtime");
    split.merged();
    for (name, text) in [("a", "a of two"), ("c", "c of two"), ("new", "new of two")] {
        split.both(&format!("{name} is the later one"), |root| {
            read(root.join(name)).as_deref() == Some(text)
        });
    }
    assert_eq!(split.versions(), Vec::new());
    split.end();
}

#[test]
fn a_volume_that_is_one_unit_waits_for_the_operator() {
    let (split, _) = conflict("cluster.split-unit volume");
    let listed = "what the closed side changed is listed";
    wait_until(MERGED_WITHIN, listed, || {
        split.heal("info split-brain").contains("/of-two")
    });
    assert!(!split.cluster.brick("gfs01").join("of-two").exists());
    assert_eq!(
        read(split.cluster.brick("gfs02").join("a")).unwrap(),
        "a of two"
    );
    // It may lose its process meanwhile.
    split.cluster.host("gfs02").kill_brickd();
    split.cluster.host("gfs02").start_brickd();
    wait_until(MERGED_WITHIN, listed, || {
        split.heal("info split-brain").contains("/of-two")
    });

    let spec = split
        .cluster
        .host("gfs02")
        .brick_spec("glusterfs/distributed");
    let said = split.heal(&format!("split-brain source-brick {spec}"));
    assert!(said.contains("goes on with this brick"), "{said}");
    split.merged();
    for (name, text) in [("a", "a of two"), ("of-two", "two"), ("quiet", "before")] {
        split.both(&format!("{name} is that of the brick named"), |root| {
            read(root.join(name)).as_deref() == Some(text)
        });
    }
    split.end_with(&[SPLIT_IS_LOGGED, UNSYNCED_MAY_BE_LOST]);
}
