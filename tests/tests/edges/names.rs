use super::*;

/// The names of a directory, sorted.
fn names_in(folder: impl std::os::fd::AsFd) -> Vec<Vec<u8>> {
    let entries = Dir::read_from(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_bytes().to_vec());
    let mut names: Vec<_> = names.filter(|name| name != b"." && name != b"..").collect();
    names.sort();
    names
}

/// How many entries a directory that is gone has, or why nobody can tell.
fn names_in_removed(folder: &OwnedFd) -> Result<usize> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut listing = RawDir::new(folder, &mut buffer);
    let first = listing.next();
    first.map_or(Ok(0), |entry| entry.map(|_| 1))
}

fn dir(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// The directory below, opened.
fn below(folder: &OwnedFd, name: &OsStr) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    openat(folder, name, flags, Mode::empty()).unwrap()
}

/// Makes directories of this name, each in the one before, and returns the last.
fn make_deep(folder: &Path, name: &OsStr, depth: usize) -> OwnedFd {
    let first = dir(folder);
    (0..depth).fold(first, |folder, _| {
        mkdirat(&folder, name, 0o755.into()).unwrap();
        below(&folder, name)
    })
}

fn go_deep(folder: &Path, name: &OsStr, depth: usize) -> OwnedFd {
    (0..depth).fold(dir(folder), |folder, _| below(&folder, name))
}

#[test]
fn names_of_all_bytes_and_lengths() {
    let mut both = Both::new();
    both.through_a_heal(|both| {
        both.kept(
            "a name of each byte, alone and in the middle",
            |folder| {
                let folder = dir(folder);
                for byte in (1..=255u8).filter(|byte| !b"/".contains(byte)) {
                    for name in [vec![byte], vec![b'x', byte, b'x']] {
                        if name != b"." {
                            mkdirat(&folder, name, 0o755.into()).unwrap();
                        }
                    }
                }
            },
            |folder| names_in(dir(folder)),
        );
        for len in [254, 255, 256] {
            for letter in ["n".as_bytes(), "ß".as_bytes(), b"\xff"] {
                let name = letter.repeat(len)[..len].to_vec();
                both.kept(
                    &format!("a name of {len} bytes of {letter:?}"),
                    |folder| {
                        let at = folder.join(OsStr::from_bytes(&name));
                        // Whatever becomes of these is looked at.
                        let _ = errno(fs::write(&at, "x"));
                        let _ = errno(symlink(&at, folder.join("to")));
                    },
                    |folder| {
                        let through = errno(fs::read(folder.join("to")));
                        (names_in(dir(folder)), through)
                    },
                );
            }
        }
    });
    both.case("a directory that is removed while it is open", |folder| {
        let at = folder.join("at");
        fs::create_dir(&at).unwrap();
        let open = dir(&at);
        let before = fstat(&open).unwrap().st_nlink;
        fs::remove_dir(&at).unwrap();
        let listed = names_in_removed(&open);
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let made = openat(&open, "file", flags, 0o644.into()).map(drop);
        let inner = mkdirat(&open, "inner", 0o755.into());
        let found = statat(&open, "file", AtFlags::empty()).map(|stat| stat.st_size);
        // Longer than the kernel believes what it knows.
        std::thread::sleep(Duration::from_millis(1_200));
        let again = openat(
            &open,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        );
        let entries = again.map(|again| names_in_removed(&again));
        let links = fstat(&open).map(|stat| stat.st_nlink);
        (before, listed, made, inner, found, links, entries)
    });
    both.case("names that are taken elsewhere", |folder| {
        let made = [".mortar", ".split-brain", "lost+found", "...", "~", "a\nb"]
            .map(|name| errno(fs::create_dir(folder.join(name))));
        (made, names_in(dir(folder)))
    });
    both.end();
}

/// A path that is too long for one call is walked step by step, as `rm -r` does.
#[test]
fn deep_trees_and_long_paths() {
    const DEPTH: usize = 1000;
    /// So deep with names of 255 bytes: no single path reaches it.
    const LONG_DEPTH: usize = 40;
    let long: &'static OsStr = OsStr::new(Box::leak("n".repeat(255).into_boxed_str()));
    let short = OsStr::new("d");
    let mut both = Both::new();
    both.through_a_heal(|both| {
        for (name, depth) in [(short, DEPTH), (long, LONG_DEPTH)] {
            both.kept(
                &format!("{depth} directories of {} bytes", name.len()),
                |folder| {
                    let last = make_deep(folder, name, depth);
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                    let file = openat(&last, "file", flags, 0o644.into()).unwrap();
                    File::from(file).write_all(b"at the ground").unwrap();
                },
                move |folder| {
                    let last = go_deep(folder, name, depth);
                    let mut text = String::new();
                    let file = openat(&last, "file", OFlags::RDONLY, Mode::empty()).unwrap();
                    File::from(file).read_to_string(&mut text).unwrap();
                    text
                },
            );
        }
        for len in [4095usize, 4096] {
            both.kept(
                &format!("a path of {len} bytes"),
                |folder| drop(make_deep(folder, long, 15)),
                move |folder| {
                    let mut path = [long.as_bytes(), b"/"].concat().repeat(15);
                    path.resize(len, b'f');
                    let folder = dir(folder);
                    let flags = OFlags::CREATE | OFlags::WRONLY;
                    let made = openat(&folder, path.as_slice(), flags, 0o644.into()).map(drop);
                    (
                        made,
                        statat(&folder, path, AtFlags::empty()).map(|stat| stat.st_size),
                    )
                },
            );
        }
    });
    both.case(
        "a deep tree moves into a deeper one and is removed",
        |folder| {
            make_deep(folder, short, DEPTH);
            let inner = go_deep(folder, short, DEPTH / 2);
            mkdirat(dir(folder), "other", 0o755.into()).unwrap();
            let other = make_deep(&folder.join("other"), long, LONG_DEPTH);
            renameat(&inner, short, &other, "moved").unwrap();
            // A directory into what lies below it.
            let moved = (0..100).fold(below(&other, OsStr::new("moved")), |at, _| {
                below(&at, short)
            });
            let refused = renameat(dir(folder), "other", &moved, "loop");
            drop((inner, other, moved));
            let removed = errno(fs::remove_dir_all(folder.join("other")));
            let left = fs::remove_dir_all(folder.join("d"));
            (refused, removed, errno(left), names_in(dir(folder)))
        },
    );
    both.end();
}
