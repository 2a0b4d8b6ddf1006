use super::*;

const CAPABILITY: &str = "security.capability";
/// cap_net_raw+ep, as the kernel stores it (version 2).
const CAPABILITY_VALUE: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

type Act = fn(&Path) -> Result<()>;

fn writable(path: &Path) -> Result<File> {
    errno(OpenOptions::new().read(true).write(true).open(path))
}

/// What changes a file without a write(2) to a path: what like_the_disk does not do.
const ACTS: [(&str, Act); 8] = [
    ("a store to a mapping", |file| {
        let mapping = Mapping::new(&writable(file)?, 10, Access::Write)?;
        mapping.store(0, b"new");
        mapping.sync()
    }),
    ("sendfile", |file| {
        let from = errno(File::open(file.with_file_name("source")))?;
        rustix::fs::sendfile(writable(file)?, from, None, 4).map(drop)
    }),
    ("splice", |file| {
        let (read, write) = rustix::pipe::pipe()?;
        rustix::io::write(&write, b"new")?;
        let flags = rustix::pipe::SpliceFlags::empty();
        rustix::pipe::splice(read, None, writable(file)?, None, 3, flags).map(drop)
    }),
    ("a descriptor of before the bits", |file| {
        let open = writable(file)?;
        errno(fs::set_permissions(file, Permissions::from_mode(0o6777)))?;
        errno(open.write_all_at(b"new", 0))
    }),
    ("a second name", |file| {
        let name = file.with_file_name("name");
        errno(fs::hard_link(file, &name))?;
        errno(writable(&name)?.write_all_at(b"new", 0))
    }),
    ("O_DIRECT", |file| {
        let flags = OFlags::WRONLY | OFlags::DIRECT;
        let open = File::from(rustix::fs::open(file, flags, Mode::empty())?);
        // Alignment is not asked of an empty write; nothing is cleared by it.
        rustix::io::pwrite(open, b"", 0).map(drop)
    }),
    ("times", |file| {
        errno(writable(file)?.set_modified(std::time::SystemTime::UNIX_EPOCH))
    }),
    ("a rename", |file| {
        errno(fs::rename(file, file.with_file_name("renamed")))?;
        errno(fs::rename(file.with_file_name("renamed"), file))
    }),
];

#[test]
fn what_clears_setuid_setgid_and_capabilities_is_cleared_on_every_copy() {
    let users = [
        ("root", User::ROOT),
        ("its owner", User::ordinary(1000, 1000)),
        ("a stranger", User::ordinary(65534, 65534)),
    ];
    let mut both = Both::new();
    both.through_a_heal(|both| {
        for (who, user) in users {
            for (what, act) in ACTS {
                let is_mapped = what == "a store to a mapping";
                both.kept(
                    &format!("{what} by {who}"),
                    |folder| {
                        fs::write(folder.join("source"), "source").unwrap();
                        let file = folder.join("file");
                        fs::write(&file, "0123456789").unwrap();
                        chown(&file, Some(1000), Some(1000)).unwrap();
                        chmod(&file, 0o6777);
                        let flags = XattrFlags::CREATE;
                        setxattr(&file, CAPABILITY, &CAPABILITY_VALUE, flags).unwrap();
                        let outcome = user.does(|| act(&file));
                        fs::write(folder.join("outcome"), format!("{outcome:?}")).unwrap();
                    },
                    move |folder| {
                        let file = folder.join("file");
                        let outcome = fs::read_to_string(folder.join("outcome")).unwrap();
                        // What is stored to a mapping a brick has to write, and a write takes
                        // capabilities away.
                        let capable = !is_mapped && xattr(&file, CAPABILITY).is_ok();
                        (outcome, mode_of(&file), capable)
                    },
                );
            }
        }
    });
    both.case("directories keep them", |folder| {
        let at = folder.join("at");
        fs::create_dir(&at).unwrap();
        chmod(&at, 0o6777);
        let owner = User {
            groups: &[2000],
            ..User::ordinary(1000, 1000)
        };
        chown(&at, Some(1000), Some(1000)).unwrap();
        let after_chown = mode_of(&at);
        chmod(&at, 0o6777);
        let done = owner.does(|| errno(chown(&at, None, Some(2000))));
        let inner = owner.does(|| errno(fs::create_dir(at.join("inner"))));
        (
            after_chown,
            done,
            mode_of(&at),
            inner,
            mode_of(&at.join("inner")),
        )
    });
    both.end();
}
