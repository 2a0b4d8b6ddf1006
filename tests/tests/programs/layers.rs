//! Container layers on a shared volume: overlayfs with its lower, upper and work folders on the
//! mount, two containers from one base.

use std::path::Path;

use tests::cluster::{Cluster, run};
use tests::outage::{end, mounted, within};
use tests::{scale, trees};

use super::{Bricks, script, work};

/// What a container does to the files of its image. It must come out as on a plain folder.
fn changes(container: usize) -> String {
    format!(
        "find . -name 'Cargo.toml' | while read -r file; do echo 'container {container}' >>\"$file\"; done; \
         find . -name '*.md' -exec rm {{}} +; \
         first=$(find . -mindepth 3 -maxdepth 3 -type d | sort | sed -n {container}p); \
         rm -r \"$first\"; mkdir \"$first\"; echo new >\"$first/only of {container}\"; \
         second=$(find . -name 'src' -type d | sort | sed -n {container}p); \
         mv \"$second\" \"$second.moved\"; \
         file=$(find . -name 'lib.rs' -type f | sort | head -n 1); \
         ln \"$file\" hard; ln -s \"$file\" soft; chmod 600 \"$file\"; chown 1000:1000 soft -h; \
         mkfifo fifo; setfattr -n user.container -v {container} \"$file\"; \
         mv hard renamed; echo more >>renamed"
    )
}

/// Names, types, modes, owners, link targets and attributes below this folder; not its contents.
const LISTING: &str = "find . -mindepth 1 -printf '%P %y %m %U %G %l\\n' | sort; \
                       find . -print0 | sort -z | xargs -0 getfattr -h -d -m '^user'";

fn two_containers(bricks: Bricks) {
    let files = scale::pick(300, 3_000);
    let (cluster, mount) = mounted();
    let plain = cluster.folder("plain");
    trees::copy_sources(&plain.join("base"), files);
    let copy = format!(
        "cp -a '{}' base; mkdir up1 work1 merged1 up2 work2 merged2",
        plain.join("base").display()
    );
    run(script(&cluster, mount.path(), &copy), within()).ok();
    let both = [1, 2]
        .map(|n| {
            format!(
                "mount -t overlay layers -o lowerdir=base,upperdir=up{n},workdir=work{n} merged{n}; \
                 (cd merged{n}; {}); : >\"$MIDDLE\"",
                changes(n)
            )
        })
        .join("; ");
    work(&cluster, &mount, bricks, &both);
    for container in [1, 2] {
        let merged = mount.join(format!("merged{container}"));
        let expected = plain.join(format!("expected{container}"));
        let make = format!(
            "cp -a base expected{container}; cd expected{container}; {}",
            changes(container)
        );
        run(script(&cluster, &plain, &make), within()).ok();
        assert_same(&cluster, &expected, &merged);
        // Once more as another container host sees it: through a new mount of the layers.
        let again = format!(
            "umount merged{container}; mount -t overlay layers -o \
             lowerdir=base,upperdir=up{container},workdir=work{container} merged{container}"
        );
        run(script(&cluster, mount.path(), &again), within()).ok();
        assert_same(&cluster, &expected, &merged);
        run(
            script(&cluster, mount.path(), &format!("umount merged{container}")),
            within(),
        )
        .ok();
    }
    assert_same(&cluster, &plain.join("base"), &mount.join("base"));
    end(&cluster, mount);
}

#[track_caller]
fn assert_same(cluster: &Cluster, one: &Path, other: &Path) {
    let listings = [one, other].map(|folder| run(script(cluster, folder, LISTING), within()).ok());
    assert!(
        listings[0] == listings[1],
        "{} and {} differ:\n{}\n---\n{}",
        one.display(),
        other.display(),
        listings[0],
        listings[1]
    );
    let diff = format!(
        "diff -r --no-dereference -x fifo '{}' '{}'",
        one.display(),
        other.display()
    );
    assert_eq!(run(script(cluster, one, &diff), within()).ok(), "");
}

#[test]
fn two_containers_share_a_base() {
    two_containers(Bricks::Stay);
}

#[test]
fn two_containers_share_a_base_and_a_brick_is_lost() {
    two_containers(Bricks::Lose("gfs01"));
}
