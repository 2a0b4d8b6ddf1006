//! tar, rsync and cp with everything a file can have beside its bytes; git's own housekeeping.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tests::cluster::{VOLUME, run};
use tests::outage::{end, mounted, within};
use tests::{scale, trees};

use super::{Bricks, script, work};

/// ACLs, attributes, hard links, holes, special files, odd modes and old times.
const RICH: &str = "\
    mkdir acl && touch acl/file && setfacl -m u:1234:rw,g:5678:r acl/file; \
    setfacl -d -m u:1234:rwx acl && mkdir acl/inherits; \
    mkdir attributes && echo a >attributes/file; \
    setfattr -n user.colour -v blue attributes/file; setfattr -n user.colour -v red attributes; \
    setfattr -n trusted.seal -v 1 attributes/file; \
    mkdir links && echo one >links/a && ln links/a links/b && ln links/a acl/c && ln -s a links/soft; \
    mkdir sparse && truncate -s 64M sparse/file && echo end >>sparse/file; \
    dd if=/dev/urandom of=sparse/file bs=64k count=1 seek=300 conv=notrunc status=none; \
    mkdir special && mkfifo special/fifo && mknod special/null c 1 3; \
    mkdir modes && touch modes/setuid modes/none && chmod 4755 modes/setuid && chmod 0 modes/none; \
    chmod 1777 modes && chown 1000:1001 modes/none; \
    mkdir times && touch -d '1965-01-02 03:04:05.123456789' times/old; \
    touch -d '2100-06-07 08:09:10.987654321' times/late; touch -d '2001-01-01' times";

/// Everything of a tree but its bytes; times of folders and links as well.
const LISTING: &str = "find . -mindepth 1 -printf '%P %y %m %U %G %n %s %T@ %l\\n' | sort; \
    find . -print0 | sort -z | xargs -0 getfacl -p -n; \
    find . -print0 | sort -z | xargs -0 getfattr -h -d -m '^(user|trusted)\\.[cs]'";

fn a_rich_tree_is_copied(bricks: Bricks, copy: &str) {
    let (cluster, mount) = mounted();
    let input = cluster.folder("input");
    trees::copy_sources(&input.join("sources"), scale::pick(400, 4_000));
    run(script(&cluster, &input, RICH), within()).ok();
    let from = input.display();
    let text =
        format!("mkdir 1 2; from='{from}'; to=1; {copy}; : >\"$MIDDLE\"; from=1; to=2; {copy}");
    work(&cluster, &mount, bricks, &text);
    let expected = run(script(&cluster, &input, LISTING), within()).ok();
    for copy in ["1", "2"] {
        let copied = mount.join(copy);
        let listed = run(script(&cluster, &copied, LISTING), within()).ok();
        assert!(
            expected == listed,
            "copy {copy} differs:\n{expected}\n---\n{listed}"
        );
        let diff = format!("diff -r --no-dereference -x fifo -x null '{from}' .");
        assert_eq!(run(script(&cluster, &copied, &diff), within()).ok(), "");
    }
    cluster.wait_healed(VOLUME);
    for (brick, copy) in [
        ("gfs01", "1"),
        ("gfs01", "2"),
        ("gfs02", "1"),
        ("gfs02", "2"),
    ] {
        let file = cluster.brick(brick).join(copy).join("sparse/file");
        let used_kib = fs::metadata(&file).unwrap().blocks() / 2;
        assert!(
            (64..1024).contains(&used_kib),
            "{used_kib} KiB of {}",
            file.display()
        );
    }
    end(&cluster, mount);
}

const TAR: &str = "tar -C \"$from\" --acls --xattrs --xattrs-include='*' --sparse -cf - . \
                   | tar -C $to --acls --xattrs --xattrs-include='*' -xpf -";
/// Without the window rsync leaves a time alone that differs in nanoseconds only.
const RSYNC: &str = "rsync -aAXHS --modify-window=-1 \"$from/\" $to/";
const CP: &str = "cp -a --sparse=always \"$from/.\" $to/";

#[test]
fn tar_keeps_everything() {
    a_rich_tree_is_copied(Bricks::Stay, TAR);
}

#[test]
fn tar_keeps_everything_and_a_brick_is_lost() {
    a_rich_tree_is_copied(Bricks::Lose("gfs02"), TAR);
}

#[test]
fn rsync_keeps_everything() {
    a_rich_tree_is_copied(Bricks::Stay, RSYNC);
}

#[test]
fn rsync_keeps_everything_and_a_brick_is_lost() {
    a_rich_tree_is_copied(Bricks::Lose("gfs01"), RSYNC);
}

#[test]
fn cp_keeps_everything() {
    a_rich_tree_is_copied(Bricks::Stay, CP);
}

#[test]
fn cp_keeps_everything_and_a_brick_is_lost() {
    a_rich_tree_is_copied(Bricks::Lose("gfs01"), CP);
}

/// Commits, repacks and prunes: many small files made, linked, renamed over and removed.
fn git_keeps_house(bricks: Bricks) {
    let commits = scale::pick(12, 100);
    let (cluster, mount) = mounted();
    let text = format!(
        "git clone -q --no-local '{}' w; cd w; git config user.name m; git config user.email m@m; \
         i=0; while [ $i -lt {commits} ]; do echo $i >>README.md; git commit -qam $i; i=$((i+1)); \
         [ $i -ne 3 ] || : >\"$MIDDLE\"; done; git repack -q -a -d; \
         git gc -q --prune=now; git fsck --full --strict; git status --porcelain; \
         git log --format=%s -n 1",
        trees::repository().display()
    );
    let said = work(&cluster, &mount, bricks, &text).stdout;
    assert_eq!(said, format!("{}\n", commits - 1));
    let kept = fs::read_dir(mount.join("w/.git/objects/pack")).unwrap();
    assert!(kept.count() >= 2, "gc left no pack");
    let checked = run(
        script(&cluster, &mount.join("w"), "git fsck --full --strict"),
        within(),
    );
    assert_eq!(checked.ok(), "");
    end(&cluster, mount);
}

#[test]
fn git_collects_its_garbage() {
    git_keeps_house(Bricks::Stay);
}

#[test]
fn git_collects_its_garbage_and_a_brick_is_lost() {
    git_keeps_house(Bricks::Lose("gfs02"));
}
