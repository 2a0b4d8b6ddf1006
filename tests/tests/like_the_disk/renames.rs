use super::*;

const KINDS: [&str; 9] = [
    "nothing",
    "file",
    "hard link",
    "folder",
    "full folder",
    "symlink",
    "fifo",
    "socket",
    "device",
];

fn make(kind: &str, at: &Path) {
    let mode = Mode::from_raw_mode(0o644);
    match kind {
        "nothing" => {}
        "file" => fs::write(at, at.file_name().unwrap().as_bytes()).unwrap(),
        "hard link" => {
            let other = at.with_file_name("linked");
            fs::write(&other, "linked").unwrap();
            fs::hard_link(other, at).unwrap();
        }
        "folder" => fs::create_dir(at).unwrap(),
        "full folder" => {
            fs::create_dir(at).unwrap();
            fs::write(at.join("inside"), "x").unwrap();
        }
        "symlink" => symlink(at.file_name().unwrap(), at).unwrap(),
        "fifo" => mknodat(CWD, at, FileType::Fifo, mode, 0).unwrap(),
        "socket" => mknodat(CWD, at, FileType::Socket, mode, 0).unwrap(),
        "device" => mknodat(CWD, at, FileType::CharacterDevice, mode, makedev(1, 3)).unwrap(),
        kind => panic!("{kind}"),
    }
}

/// Every name below a folder with what it is, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let (path, name) = {
            let entry = entry.unwrap();
            (entry.path(), entry.file_name().into_string().unwrap())
        };
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = match () {
            () if kind.is_dir() => {
                let below = listing(&path);
                lines.extend(below.iter().map(|line| format!("{name}/{line}")));
                format!("folder of {} links", meta.nlink())
            }
            () if kind.is_file() => {
                format!("'{}' {}", fs::read_to_string(&path).unwrap(), meta.nlink())
            }
            () if kind.is_symlink() => format!("-> {:?}", fs::read_link(&path).unwrap()),
            () if kind.is_fifo() => "fifo".to_owned(),
            () if kind.is_socket() => "socket".to_owned(),
            () => format!("device {:x} {:o}", meta.rdev(), meta.mode()),
        };
        lines.push(format!("{name} {what}"));
    }
    lines.sort();
    lines
}

fn hows() -> [(&'static str, RenameFlags); 5] {
    [
        ("rename", RenameFlags::empty()),
        ("NOREPLACE", RenameFlags::NOREPLACE),
        ("EXCHANGE", RenameFlags::EXCHANGE),
        ("WHITEOUT", RenameFlags::WHITEOUT),
        (
            "WHITEOUT with NOREPLACE",
            RenameFlags::WHITEOUT.union(RenameFlags::NOREPLACE),
        ),
    ]
}

#[test]
fn every_kind_is_renamed_onto_every_kind_as_on_the_disk() {
    let mut both = Both::new();
    for (how, flags) in hows() {
        for from in KINDS {
            for to in KINDS {
                both.case(&format!("{how} of {from} to {to}"), |folder| {
                    make(from, &folder.join("from"));
                    fs::create_dir(folder.join("d")).unwrap();
                    make(to, &folder.join("d/to"));
                    let (from, to) = (folder.join("from"), folder.join("d/to"));
                    let outcome = renameat_with(CWD, &from, CWD, &to, flags);
                    (outcome, listing(folder))
                });
            }
        }
    }
    for (how, flags) in hows() {
        both.case(&format!("{how} of a folder below itself"), |folder| {
            fs::create_dir_all(folder.join("a/b")).unwrap();
            let (above, below) = (folder.join("a"), folder.join("a/b/c"));
            let into = renameat_with(CWD, &above, CWD, &below, flags);
            let over = renameat_with(CWD, folder.join("a/b"), CWD, &above, flags);
            (into, over, listing(folder))
        });
        both.case(&format!("{how} of two names of one file"), |folder| {
            fs::write(folder.join("a"), "x").unwrap();
            fs::hard_link(folder.join("a"), folder.join("b")).unwrap();
            let outcome = renameat_with(CWD, folder.join("a"), CWD, folder.join("b"), flags);
            (outcome, listing(folder))
        });
        both.case(&format!("{how} onto itself"), |folder| {
            fs::write(folder.join("a"), "x").unwrap();
            let outcome = renameat_with(CWD, folder.join("a"), CWD, folder.join("a"), flags);
            (outcome, listing(folder))
        });
    }
    both.end();
}
