use super::*;

const NANOS: i64 = 999_999_999;

fn set(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
    let at = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: at(atime),
        last_modification: at(mtime),
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn times_of(path: &Path) -> [(i64, i64); 2] {
    let meta = fs::symlink_metadata(path).unwrap();
    [
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
    ]
}

/// From the beginning of what 64 bits hold to its end: a disk keeps those between 1901 and 2446 and
/// takes the nearest of these for all others.
#[test]
fn times_are_kept_as_on_the_disk_and_healed() {
    let seconds = [
        ("-2^63", i64::MIN),
        ("-2^63 + 1", i64::MIN + 1),
        ("before 1901", -(1 << 31) - 1),
        ("1901", -(1 << 31)),
        ("before 1970", -2),
        ("1969", -1),
        ("1970", 0),
        ("2038", i64::from(i32::MAX)),
        ("after 2038", 1 << 31),
        ("after 2106", 1 << 32),
        ("2446", 15_032_385_535),
        ("after 2446", 15_032_385_536),
        ("2^63 - 1", i64::MAX),
    ];
    let user = User::ordinary(1000, 1000);
    let mut both = Both::new();
    both.through_a_heal(|both| {
        for (what, seconds) in seconds {
            for nanos in [0, 1, NANOS] {
                for who in [User::ROOT, user] {
                    both.kept(
                        &format!("{what} and {nanos} ns, by {}", who.uid),
                        |folder| {
                            for kind in KINDS {
                                let at = folder.join(kind);
                                make(kind, &at);
                                let time = (seconds, nanos);
                                assert_eq!(who.does(|| set(&at, time, time)), Ok(()));
                            }
                        },
                        |folder| KINDS.map(|kind| times_of(&folder.join(kind))),
                    );
                }
            }
        }
        both.kept(
            "one of the two",
            |folder| {
                let at = folder.join("file");
                make("file", &at);
                set(&at, (1, 1), (2, 2)).unwrap();
                set(&at, (0, UTIME_OMIT), (-3, 3)).unwrap();
                set(&at, (i64::MAX, 4), (0, UTIME_OMIT)).unwrap();
            },
            |folder| times_of(&folder.join("file")),
        );
    });
    for nanos in [-1, NANOS + 1, i64::MAX, i64::MIN] {
        both.case(&format!("{nanos} ns are none"), |folder| {
            let at = folder.join("file");
            make("file", &at);
            set(&at, (5, 5), (5, 5)).unwrap();
            let refused = user.does(|| set(&at, (1, nanos), (1, 1)));
            (refused, times_of(&at))
        });
    }
    both.case("by a stranger", |folder| {
        let at = folder.join("file");
        make("file", &at);
        User::ordinary(2000, 2000).does(|| set(&at, (i64::MIN, 1), (i64::MAX, 1)))
    });
    both.end();
}

const KINDS: [&str; 3] = ["file", "folder", "symlink"];

fn make(kind: &str, at: &Path) {
    match kind {
        "file" => fs::write(at, "x").unwrap(),
        "folder" => fs::create_dir(at).unwrap(),
        _ => symlink("to", at).unwrap(),
    }
    std::os::unix::fs::lchown(at, Some(1000), Some(1000)).unwrap();
}
