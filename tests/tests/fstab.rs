//! `mount -t mortar`, as mount(8) and /etc/fstab do it, with the client installed as
//! /sbin/mount.mortar. The machine's own /sbin, /etc/fstab and /var/log stay as they are: each
//! command has others in a mount namespace of its own.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::cluster::{Cluster, Host, Ran, program, run, wait_until};

const WITHIN: Duration = Duration::from_secs(60);
/// mount(8): the helper was called wrongly.
const USAGE: Option<i32> = Some(1);
/// mount(8): the mount failed.
const FAILED: Option<i32> = Some(32);
/// mount(8): with `-a`, some of the mounts succeeded.
const SOME_SUCCEEDED: Option<i32> = Some(64);

/// A host on which Mortar's client is installed.
struct Installed<'a> {
    host: &'a Host,
    sbin: PathBuf,
    fstab: PathBuf,
    log: PathBuf,
}

impl<'a> Installed<'a> {
    fn on(cluster: &'a Cluster, host: &str) -> Self {
        let (sbin, log) = (cluster.folder("sbin"), cluster.folder("log"));
        let installed = fs::copy(program("mount-mortar"), sbin.join("mount.mortar"));
        installed.expect("the client as /sbin/mount.mortar");
        symlink("mount.mortar", sbin.join("mount.fuse.mortar")).unwrap();
        let fstab = cluster.folder("etc").join("fstab");
        fs::write(&fstab, "").unwrap();
        Installed {
            host: cluster.host(host),
            sbin,
            fstab,
            log,
        }
    }

    /// Writes /etc/fstab: lines of spec, mount point and options.
    fn fstab(&self, lines: &[(&str, &Path, &str)]) {
        let lines = lines.iter().map(|(spec, at, options)| {
            format!("{spec}  {}  mortar  {options}  0 0\n", at.display())
        });
        fs::write(&self.fstab, lines.collect::<String>()).unwrap();
    }

    /// A folder to mount on.
    fn point(&self, name: &str) -> PathBuf {
        let point = self.host.dir.join(name);
        fs::create_dir_all(&point).unwrap();
        point
    }

    /// Runs words, split at blanks.
    #[track_caller]
    fn run(&self, words: &str) -> Ran {
        let places = [
            ("/sbin", &self.sbin),
            ("/etc/fstab", &self.fstab),
            ("/var/log", &self.log),
        ];
        let binds = places.map(|(place, own)| {
            let place = fs::canonicalize(place)
                .unwrap_or_else(|error| panic!("this machine's {place}: {error}"));
            // Private first, or the machine itself would get the other folder too.
            format!(
                "mount --make-private \"$(findmnt -no TARGET --target {0})\" && \
                 mount --bind {1} {0} && ",
                place.display(),
                own.display()
            )
        });
        let script = format!("{}exec \"$@\"", binds.concat());
        let mut command = self.host.command("/bin/sh");
        command.args(["-c", &script, "installed"]);
        command.args(words.split_whitespace());
        run(command, WITHIN)
    }

    fn wait_unmounted(&self, point: &Path) {
        assert_eq!(mount_line(point), None);
        wait_until(WITHIN, "the client ends after umount", || {
            self.host.processes().is_empty()
        });
    }
}

/// The line of a mount point in /proc/mounts.
fn mount_line(point: &Path) -> Option<String> {
    let point = point.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut lines = mounts.lines();
    let line = lines.find(|line| line.split(' ').nth(1) == Some(point));
    line.map(str::to_owned)
}

#[track_caller]
fn assert_mounted(point: &Path, source: &str) {
    let line = mount_line(point).expect("a line in /proc/mounts");
    let mut fields = line.split(' ');
    assert_eq!(fields.next(), Some(source), "{line}");
    assert_eq!(fields.nth(1), Some("fuse.mortar"), "{line}");
}

#[test]
fn a_line_of_fstab_is_mounted_and_unmounted() {
    let cluster = Cluster::two_hosts();
    let client = Installed::on(&cluster, "client");
    let point = client.point("v01");
    client.fstab(&[("gfs01,gfs02:/v01", &point, "defaults,_netdev")]);

    client.run(&format!("mount {}", point.display())).ok();
    assert_mounted(&point, "gfs01,gfs02:/v01");
    fs::write(point.join("file"), "x").unwrap();
    let name = point.to_str().unwrap().trim_matches('/').replace('/', "-");
    let log = client.log.join("mortar").join(format!("{name}.log"));
    assert!(fs::read_to_string(log).unwrap().contains("is mounted on"));

    // What is mounted already is not mounted again.
    let again = client.run("mount -a -v").ok();
    assert!(again.contains("already mounted"), "{again}");
    client.run(&format!("umount {}", point.display())).ok();
    client.wait_unmounted(&point);
    assert!(!point.join("file").exists());

    // The client is killed: the same command mounts over what is left.
    client.run(&format!("mount {}", point.display())).ok();
    let open = fs::File::open(point.join("file")).unwrap();
    client.host.shut_down();
    assert!(fs::metadata(&point).is_err(), "the mount still lives");
    client.run(&format!("mount {}", point.display())).ok();
    assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "x");
    drop(open);
    client.run(&format!("umount {}", point.display())).ok();
    client.wait_unmounted(&point);

    // By addresses, which no other test has: what is unmounted by its source must be this.
    let [one, two] = ["gfs01", "gfs02"].map(|host| cluster.host(host).address);
    let source = format!("{one},{two}:/v01");
    client.fstab(&[(&source, &point, "defaults,_netdev")]);
    for line in ["mount -a", "mount -a -t mortar -O _netdev"] {
        client.run(line).ok();
        assert_mounted(&point, &source);
        assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "x");
        client.run(&format!("umount {source}")).ok();
        client.wait_unmounted(&point);
    }
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn what_cannot_be_mounted_ends_with_the_status_of_mount_and_a_reason() {
    let cluster = Cluster::two_hosts();
    let client = Installed::on(&cluster, "client");
    let (good, bad) = (client.point("good"), client.point("bad"));
    let refused = |words: &str, status: Option<i32>, reason: &str| {
        let ran = client.run(words);
        assert_eq!(ran.status.code(), status, "{ran}");
        let said = ran.refused();
        assert!(said.contains(reason), "{reason} not in: {said}");
        assert_eq!(mount_line(&bad), None, "{words}");
    };
    let at = bad.display();
    let mount = "mount -t mortar";
    refused(
        &format!("{mount} gfs01:/none {at}"),
        FAILED,
        "Volume none does not exist",
    );
    refused(&format!("{mount} gfs09:/v01 {at}"), FAILED, "gfs09");
    refused(
        &format!("{mount} gfs01:/v01 {at} -o attribute-timeout=soon"),
        USAGE,
        "attribute-timeout",
    );
    refused(
        &format!("{mount} gfs01:/v01 {at} -o nonsense"),
        USAGE,
        "nonsense",
    );
    // A trial run: everything is read, nothing is mounted.
    client.run(&format!("{mount} -f gfs01:/v01 {at}")).ok();
    assert_eq!(mount_line(&bad), None);
    // Options that are not known are passed over when asked for.
    client
        .run(&format!("{mount} -s gfs01:/v01 {at} -o nonsense"))
        .ok();
    client.run(&format!("umount {at}")).ok();

    client.fstab(&[("gfs01:/none", &bad, "_netdev")]);
    refused("mount -a", FAILED, "Volume none does not exist");
    client.fstab(&[
        ("gfs01:/none", &bad, "_netdev"),
        ("gfs01:/v01", &good, "_netdev"),
    ]);
    refused("mount -a", SOME_SUCCEEDED, "Volume none does not exist");
    assert_mounted(&good, "gfs01:/v01");
    client.run(&format!("umount {}", good.display())).ok();
    client.wait_unmounted(&good);

    cluster.mortar("gfs01", "volume stop v01").ok();
    refused(
        &format!("{mount} gfs01:/v01 {at}"),
        FAILED,
        "'v01' is not started",
    );
    cluster.assert_logs_clean(&[]);
}

#[test]
fn the_options_of_a_line_do_what_they_say() {
    let cluster = Cluster::two_hosts();
    let client = Installed::on(&cluster, "client");
    let (plain, slow, quick, ro) = (
        client.point("plain"),
        client.point("slow"),
        client.point("quick"),
        client.point("ro"),
    );
    let log = |name: &str| client.host.dir.join("log").join(name);
    let option = |name: &str, level: &str| {
        format!("_netdev,log-level={level},log-file={}", log(name).display())
    };
    client.fstab(&[
        ("gfs01:/v01", &plain, &option("plain", "error")),
        (
            "gfs01:/v01",
            &slow,
            &format!(
                "{},attribute-timeout=600,entry-timeout=600",
                option("slow", "info")
            ),
        ),
        (
            "gfs01:/v01",
            &quick,
            &format!(
                "{},attribute-timeout=0,entry-timeout=0",
                option("quick", "debug")
            ),
        ),
        (
            "gfs09:/v01",
            &ro,
            &format!(
                "{},ro,noatime,nosuid,nodev,noexec,backup-volfile-servers=gfs08:gfs02",
                option("ro", "warn")
            ),
        ),
    ]);
    client.run("mount -a").ok();

    let flags = mount_line(&ro).expect("mounted by a backup server");
    for flag in [
        "ro",
        "noatime",
        "nosuid",
        "nodev",
        "noexec",
        "default_permissions",
        "allow_other",
    ] {
        let options = flags.split(' ').nth(3).unwrap();
        assert!(options.split(',').any(|one| one == flag), "{flag}: {flags}");
    }
    assert_eq!(
        fs::write(ro.join("no"), "x").unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );

    fs::write(plain.join("file"), "x").unwrap();
    let mode = |mount: &Path| fs::metadata(mount.join("file")).unwrap().mode() & 0o777;
    let before = (mode(&slow), mode(&quick), mode(&ro));
    assert_eq!(before, (0o644, 0o644, 0o644));
    fs::set_permissions(plain.join("file"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(plain.join("file"), plain.join("other")).unwrap();
    fs::write(plain.join("file"), "y").unwrap();
    fs::set_permissions(plain.join("file"), Permissions::from_mode(0o640)).unwrap();
    assert_eq!(mode(&quick), 0o640, "with timeouts of 0");
    assert_eq!(mode(&slow), 0o644, "with timeouts of 600 s");
    wait_until(WITHIN, "the timeouts of 1 s are over", || {
        mode(&ro) == 0o640
    });
    assert_eq!(mode(&slow), 0o644, "with timeouts of 600 s");

    let levels = |name: &str| {
        let text = fs::read_to_string(log(name)).unwrap();
        let has = |level: &str| text.contains(&format!(" {level} "));
        (has("INFO"), has("DEBUG"))
    };
    assert_eq!(levels("plain"), (false, false), "log-level=error");
    assert_eq!(levels("slow"), (true, false), "log-level=info");
    assert_eq!(levels("quick"), (true, true), "log-level=debug");
    for point in [&plain, &slow, &quick, &ro] {
        client.run(&format!("umount {}", point.display())).ok();
    }
    client.wait_unmounted(&plain);
    cluster.assert_logs_clean(&[]);
}

#[test]
fn a_mount_is_made_read_only_and_writable_again_in_its_place() {
    let cluster = Cluster::two_hosts();
    let client = Installed::on(&cluster, "client");
    let (point, empty) = (client.point("v01"), client.point("empty"));
    let options = "defaults,_netdev,nosuid,attribute-timeout=0.5";
    client.fstab(&[("gfs01,gfs02:/v01", &point, options)]);
    client.run(&format!("mount {}", point.display())).ok();
    fs::write(point.join("file"), "x").unwrap();
    let has = |flag: &str| {
        let line = mount_line(&point).expect("it stays mounted");
        let flags = line.split(' ').nth(3).unwrap().to_owned();
        flags.split(',').any(|one| one == flag)
    };
    let reader = fs::File::open(point.join("file")).unwrap();

    // By its place alone, and by the type that fstab has.
    for kind in ["", "-t mortar "] {
        let to = |options: &str| {
            let words = format!("mount {kind}-o remount,{options} {}", point.display());
            client.run(&words).ok();
        };
        to("ro");
        assert!(has("ro"), "{kind}");
        let refused = fs::write(point.join("file"), "y").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
        assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "x");
        to("rw");
        assert!(!has("ro"), "{kind}");
        fs::write(point.join("file"), "x").unwrap();
    }
    assert_eq!(std::io::read_to_string(reader).unwrap(), "x");

    let at = empty.display();
    let nothing = client.run(&format!("mount.mortar gfs01:/v01 {at} -o remount,ro"));
    assert_eq!(nothing.status.code(), FAILED);
    let said = nothing.refused();
    assert!(said.contains("no Mortar volume is mounted"), "{said}");
    client.run(&format!("umount {}", point.display())).ok();
    client.wait_unmounted(&point);
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
