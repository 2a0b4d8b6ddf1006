//! Creates, links, removals, renames.

use mortar_proto::data::{Link, Lookup, Open, Release, Rename, RenameMode, RmDir, SetXattr};

use super::super::acl::tests::with_a_named_user;
use super::*;
use crate::replica::memory::Seen;

fn rename_op(
    (from_parent, from_name): (Gfid, &'static str),
    (to_parent, to_name): (Gfid, &'static str),
    how: RenameMode,
) -> Rename {
    Rename {
        from_parent: Some(from_parent),
        from_name: from_name.into(),
        to_parent: Some(to_parent),
        to_name: to_name.into(),
        how: how as i32,
        ..Default::default()
    }
}

fn mv(from: (Gfid, &'static str), to: (Gfid, &'static str)) -> OpKind {
    OpKind::Rename(rename_op(from, to, RenameMode::RenameReplace))
}

fn rmdir(parent: Gfid, name: &'static str) -> OpKind {
    OpKind::Rmdir(RmDir {
        parent: Some(parent),
        name: name.into(),
        gfid: None,
    })
}

fn link(gfid: Gfid, name: &'static str) -> OpKind {
    OpKind::Link(Link {
        gfid: Some(gfid),
        parent: Some(Gfid::ROOT),
        name: name.into(),
        unnamed: false,
    })
}

#[test]
fn a_create_answers_with_object_and_parent() {
    let mut set = Set::new();
    let op = create_op(Gfid::ROOT, "f", FILE | 0o666);
    let answered = set.done(OpKind::Create(op.clone()));
    assert!(answered.created);
    assert_eq!(returned(&answered), op.gfid);
    assert_eq!(answered.objects[1].gfid, Some(Gfid::ROOT));
    let object = answered.objects[0];
    assert_eq!(
        (object.mode, object.uid, object.gid),
        (FILE | 0o644, 1000, 100)
    );
    let (found, _) = set
        .read(OpKind::Lookup(Lookup {
            parent: Some(Gfid::ROOT),
            name: "f".into(),
        }))
        .unwrap();
    assert_eq!(found.objects, [object]);
    // The very same create once more, its record lost: recognised.
    assert!(set.done(OpKind::Create(op)).created && set.last.is_none());
}

#[test]
fn a_file_is_made_without_a_name_and_named_later() {
    let mut set = Set::new();
    let op = Create {
        open: true,
        ..create_op(Gfid::ROOT, "", FILE | 0o666)
    };
    let answered = set.done(OpKind::Create(op.clone()));
    let gfid = returned(&answered).unwrap();
    assert!(answered.created && answered.objects.len() == 1);
    assert_eq!(answered.objects[0].nlink, 0);
    assert!(set.memory.has_open(set.session, gfid) && set.memory.is_orphan(gfid));
    // The very same create once more, its record lost: recognised.
    assert!(set.done(OpKind::Create(op.clone())).created && set.last.is_none());
    // Who does not know that it has no name means another file.
    set.refused(link(gfid, "n"), FsError::NotFound);
    let OpKind::Link(known) = link(gfid, "n") else {
        unreachable!()
    };
    let known = Link {
        unnamed: true,
        ..known
    };
    let answered = set.done(OpKind::Link(known));
    assert_eq!(answered.objects[0].nlink, 1);
    assert!(!set.memory.is_orphan(gfid));
    set.refused(OpKind::Create(op.clone()), FsError::Invalid);
    let unlike = |mode, open| {
        OpKind::Create(Create {
            mode,
            open,
            gfid: Some(pick(Gfid::ROOT, b"")),
            ..op.clone()
        })
    };
    set.refused(unlike(FILE, false), FsError::Invalid);
    set.refused(unlike(DIR, true), FsError::Invalid);
    set.refused(unlike(LINK, true), FsError::Invalid);
}

#[test]
fn a_create_on_a_taken_name() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    set.make(Gfid::ROOT, "d", DIR | 0o755);
    set.make(Gfid::ROOT, "s", LINK);
    let plain = |name| Create {
        exclusive: false,
        open: true,
        ..create_op(Gfid::ROOT, name, FILE)
    };
    let answered = set.done(OpKind::Create(plain("f")));
    assert!(!answered.created && returned(&answered) == Some(file));
    assert!(set.memory.has_open(set.session, file));
    set.refused(
        OpKind::Create(create_op(Gfid::ROOT, "f", FILE)),
        FsError::Exists,
    );
    set.refused(OpKind::Create(plain("d")), FsError::IsDirectory);
    set.refused(OpKind::Create(plain("s")), FsError::Stale);
    let fifo = Create {
        mode: libc::S_IFIFO,
        ..plain("f")
    };
    set.refused(OpKind::Create(fifo), FsError::Exists);
}

#[test]
fn creates_that_are_refused() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    let gone = pick(Gfid::ROOT, b"gone");
    let root = Gfid::ROOT;
    set.refused(
        OpKind::Create(create_op(file, "x", FILE)),
        FsError::NotDirectory,
    );
    set.refused(OpKind::Create(create_op(gone, "x", FILE)), FsError::Stale);
    set.refused(
        OpKind::Create(create_op(root, ".mortar", DIR)),
        FsError::NotPermitted,
    );
    set.refused(
        OpKind::Create(create_op(root, "a/b", FILE)),
        FsError::Invalid,
    );
    set.refused(
        OpKind::Create(create_op(root, "x", 0o150000)),
        FsError::Invalid,
    );
    let reused = Create {
        gfid: Some(file),
        ..create_op(root, "x", FILE)
    };
    set.refused(OpKind::Create(reused), FsError::Invalid);
    let empty = Create {
        target: "".into(),
        ..create_op(root, "x", LINK)
    };
    set.refused(OpKind::Create(empty), FsError::NotFound);
    let long = Create {
        target: vec![b'x'; 4096].into(),
        ..create_op(root, "x", LINK)
    };
    set.refused(OpKind::Create(long), FsError::NameTooLong);
    set.space.objects_left = 0;
    set.refused(OpKind::Create(create_op(root, "x", FILE)), FsError::NoSpace);
}

#[test]
fn what_a_new_object_gets_from_its_parent() {
    let mut set = Set::new();
    let setgid = set.make(Gfid::ROOT, "g", DIR | 0o755);
    set.store.edit(setgid, |object| {
        (object.mode, object.gid) = (DIR | 0o2775, 50)
    });
    let below = set.make(setgid, "d", DIR | 0o777);
    assert_eq!(
        (set.object(below).mode, set.object(below).gid),
        (DIR | 0o2755, 50)
    );
    let file = set.make(setgid, "f", FILE | 0o666);
    assert_eq!(
        (set.object(file).mode, set.object(file).gid),
        (FILE | 0o644, 50)
    );

    let with_acl = set.make(Gfid::ROOT, "a", DIR | 0o755);
    set.done(OpKind::Setxattr(SetXattr {
        gfid: Some(with_acl),
        name: "system.posix_acl_default".into(),
        value: with_a_named_user().into(),
        ..Default::default()
    }));
    // The umask does not count under a default ACL.
    let file = set.make(with_acl, "f", FILE | 0o666);
    assert_eq!(set.object(file).mode, FILE | 0o660);
    assert!(
        set.store
            .get_xattr(file, b"system.posix_acl_access")
            .is_ok()
    );
    let below = set.make(with_acl, "d", DIR | 0o777);
    assert_eq!(
        &set.store
            .get_xattr(below, b"system.posix_acl_default")
            .unwrap()[..],
        { with_a_named_user() }
    );
    let symlink = set.make(with_acl, "s", LINK);
    assert_eq!(
        (set.object(symlink).mode, set.object(symlink).presence),
        (LINK | 0o777, 0)
    );
    set.limits.xattr_bytes = 50;
    set.refused(
        OpKind::Create(create_op(with_acl, "e", DIR | 0o777)),
        FsError::NoSpace,
    );
}

#[test]
fn links() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    let directory = set.make(Gfid::ROOT, "d", DIR);
    let answered = set.done(link(file, "g"));
    assert_eq!(answered.objects[0].nlink, 2);
    set.refused(link(file, "g"), FsError::Exists);
    set.refused(link(directory, "f"), FsError::Exists);
    set.refused(link(directory, "h"), FsError::NotPermitted);
    set.store.edit(file, |object| object.nlink = 5);
    set.refused(link(file, "h"), FsError::TooManyLinks);
    set.store.edit(file, |object| object.nlink = 0);
    set.refused(link(file, "h"), FsError::NotFound);
}

#[test]
fn a_directory_takes_no_more_subdirectories_than_the_limit() {
    let mut set = Set::new();
    for name in ["a", "b", "c"] {
        set.make(Gfid::ROOT, name, DIR);
    }
    set.refused(
        OpKind::Create(create_op(Gfid::ROOT, "d", DIR)),
        FsError::TooManyLinks,
    );
    set.make(Gfid::ROOT, "f", FILE);
}

#[test]
fn an_unlinked_file_is_freed_or_kept_for_who_has_it_open() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    set.refused(unlink_op("f", Some(pick(Gfid::ROOT, b"f"))), FsError::Stale);
    set.refused(unlink_op("nothing", None), FsError::NotFound);
    set.open(file);
    set.done(link(file, "g"));
    set.done(unlink_op("g", Some(file)));
    assert!(set.memory.freeable().is_empty() && !set.memory.is_orphan(file));
    let answered = set.done(unlink_op("f", None));
    assert_eq!(
        (answered.objects[0].nlink, answered.objects[0].size),
        (0, 3)
    );
    assert!(set.memory.is_orphan(file) && set.memory.freeable().is_empty());
    set.done(OpKind::Release(Release { gfid: Some(file) }));
    assert_eq!(set.memory.freeable(), [file]);

    let other = set.file("h", b"abc");
    let answered = set.done(unlink_op("h", Some(other)));
    assert_eq!(
        (answered.objects[0].nlink, answered.objects[0].size),
        (0, 3)
    );
    assert!(set.store.object(other).is_err());
}

#[test]
fn directories_are_removed_when_they_are_empty() {
    let mut set = Set::new();
    let directory = set.make(Gfid::ROOT, "d", DIR);
    set.file("f", b"");
    set.make(directory, "x", FILE);
    set.refused(rmdir(Gfid::ROOT, "d"), FsError::NotEmpty);
    set.refused(rmdir(Gfid::ROOT, "f"), FsError::NotDirectory);
    set.refused(unlink_op("d", None), FsError::IsDirectory);
    let x = Unlink {
        parent: Some(directory),
        name: "x".into(),
        gfid: None,
    };
    set.done(OpKind::Unlink(x));
    let answered = set.done(rmdir(Gfid::ROOT, "d"));
    assert_eq!(
        (answered.objects[0].nlink, answered.objects[1].nlink),
        (0, 2)
    );
    set.refused(
        OpKind::Create(create_op(directory, "y", FILE)),
        FsError::Stale,
    );
}

#[test]
fn renames_over_what_is_there() {
    let mut set = Set::new();
    let root = Gfid::ROOT;
    let (f, g) = (set.file("f", b""), set.file("g", b""));
    let full = set.make(root, "full", DIR);
    set.make(full, "x", FILE);
    set.make(root, "empty", DIR);
    set.refused(mv((root, "f"), (root, "full")), FsError::IsDirectory);
    set.refused(mv((root, "full"), (root, "f")), FsError::NotDirectory);
    set.refused(mv((root, "empty"), (root, "full")), FsError::NotEmpty);
    set.refused(mv((root, "nothing"), (root, "f")), FsError::NotFound);
    let wrong = Rename {
        gfid: Some(g),
        ..rename_op((root, "f"), (root, "h"), RenameMode::RenameReplace)
    };
    set.refused(OpKind::Rename(wrong), FsError::Stale);
    set.done(mv((root, "full"), (root, "empty")));
    set.open(g);
    let answered = set.done(mv((root, "f"), (root, "g")));
    let gfids: Vec<_> = answered
        .objects
        .iter()
        .map(|object| object.gfid.unwrap())
        .collect();
    assert_eq!(gfids, [f, root, root, g]);
    assert!(set.memory.is_orphan(g));
    // Two names of one object: nothing happens.
    set.done(link(f, "again"));
    set.done(mv((root, "again"), (root, "g")));
    assert!(set.last.is_none() && set.object(f).nlink == 2);
}

#[test]
fn a_directory_cannot_go_below_itself() {
    let mut set = Set::new();
    let root = Gfid::ROOT;
    let a = set.make(root, "a", DIR);
    let b = set.make(a, "b", DIR);
    let c = set.make(b, "c", DIR);
    set.make(c, "f", FILE);
    set.refused(mv((root, "a"), (a, "x")), FsError::Invalid);
    set.refused(mv((root, "a"), (c, "x")), FsError::Invalid);
    set.refused(mv((c, "f"), (root, "a")), FsError::NotEmpty);
    set.refused(mv((b, "c"), (root, "a")), FsError::NotEmpty);
    let exchange = rename_op((b, "c"), (root, "a"), RenameMode::RenameExchange);
    set.refused(OpKind::Rename(exchange), FsError::Invalid);
    set.done(mv((a, "b"), (root, "b")));
    assert!(matches!(&set.last, Some(Step::Rename(step)) if step.moves_directory));
    set.done(mv((root, "a"), (c, "a")));
    set.done(mv((root, "b"), (root, "z")));
    assert!(matches!(&set.last, Some(Step::Rename(step)) if !step.moves_directory));
}

#[test]
fn renames_that_exchange_or_leave_a_whiteout() {
    let mut set = Set::new();
    let root = Gfid::ROOT;
    let (f, d) = (set.file("f", b""), set.make(root, "d", DIR));
    let below = set.make(d, "e", DIR);
    let noreplace = rename_op((root, "f"), (root, "d"), RenameMode::RenameNoreplace);
    set.refused(OpKind::Rename(noreplace), FsError::Exists);
    let exchange = |from, to| OpKind::Rename(rename_op(from, to, RenameMode::RenameExchange));
    set.refused(exchange((root, "f"), (root, "nothing")), FsError::NotFound);
    set.done(exchange((root, "f"), (d, "e")));
    assert_eq!(set.store.lookup(root, b"f").unwrap().gfid, Some(below));
    assert_eq!(set.store.lookup(d, b"e").unwrap().gfid, Some(f));

    let mut whiteout = rename_op((root, "f"), (root, "moved"), RenameMode::RenameWhiteout);
    set.refused(OpKind::Rename(whiteout.clone()), FsError::Invalid);
    whiteout.whiteout = Some(pick(root, b"f"));
    let mut onto = whiteout.clone();
    onto.set_how(RenameMode::RenameWhiteoutNoreplace);
    onto.to_name = "d".into();
    set.refused(OpKind::Rename(onto), FsError::Exists);
    whiteout.set_how(RenameMode::RenameWhiteoutNoreplace);
    set.done(OpKind::Rename(whiteout));
    assert_eq!(set.store.lookup(root, b"f").unwrap().mode, libc::S_IFCHR);
}

#[test]
fn a_resent_change_is_answered_from_its_record() {
    let mut set = Set::new();
    let op = create_op(Gfid::ROOT, "f", FILE);
    let first = set.done(OpKind::Create(op.clone()));
    let Seen::Done(recorded) = set.memory.find(set.session, 0, set.number, 0) else {
        panic!("not recorded")
    };
    let op = Op {
        op: Some(OpKind::Create(op)),
    };
    let again = reply_of_recorded(&op, None, &recorded, &set.store).unwrap();
    assert_eq!(again, first);
    // Gone meanwhile: told with no links.
    set.done(unlink_op("f", None));
    let again = reply_of_recorded(&op, None, &recorded, &set.store).unwrap();
    assert_eq!((again.errno, again.objects[0].nlink), (0, 0));
}

#[test]
fn an_absent_gfid_is_the_previous_operations() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    let op = Op {
        op: Some(OpKind::Open(Open::default())),
    };
    let held = keys_of_op(&op, set.session, Some(file));
    let Ok(Plan::Ready(planned)) = plan(&op, &set.context(&held, Some(file))) else {
        panic!("refused")
    };
    assert_eq!(planned.touched, [file]);
    assert_eq!(set.plan(&op).err(), Some(FsError::Invalid));
    set.refused(OpKind::Open(Open::default()), FsError::Invalid);
}

#[test]
fn an_exchange_is_of_the_two_objects_that_are_meant() {
    let mut set = Set::new();
    let (one, two) = (set.file("one", b""), set.file("two", b""));
    let exchange = |gfid, to_gfid| {
        OpKind::Rename(Rename {
            gfid: Some(gfid),
            to_gfid: Some(to_gfid),
            ..rename_op(
                (Gfid::ROOT, "one"),
                (Gfid::ROOT, "two"),
                RenameMode::RenameExchange,
            )
        })
    };
    set.refused(exchange(one, one), FsError::Stale);
    set.refused(exchange(two, two), FsError::Stale);
    set.done(exchange(one, two));
    set.done(exchange(two, one));
}
