//! Mounting, refusals, unmounting.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use mortar_proto::registry::VolumeStatus;

use crate::{Mount, PROGRAM, is_mounted, until};

#[test]
fn unmounting_ends_the_session_and_the_process() {
    let mount = Mount::new();
    fs::write(mount.path("f"), b"1").unwrap();
    mount.fake.take_counts();
    assert!(
        Command::new("umount")
            .arg(mount.root())
            .status()
            .unwrap()
            .success()
    );
    until("the session ends", || {
        mount.fake.take_counts().contains_key("session_close")
    });
    // In the foreground, by SIGTERM.
    let options = format!("port={}", mount.fake.port_numbers[1]);
    let mut process = Command::new(PROGRAM)
        .args(["--foreground", "127.0.0.1:/v01"])
        .arg(mount.root())
        .args(["-o", &options])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("it is mounted", || is_mounted(&mount.root()));
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"1");
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert!(!is_mounted(&mount.root()));
}

#[test]
fn a_folder_of_the_volume_can_be_the_root() {
    let mut mount = Mount::new();
    fs::create_dir_all(mount.path("a/b")).unwrap();
    fs::write(mount.path("a/b/f"), b"deep").unwrap();
    let at = mount.folder.path().join("sub");
    fs::create_dir(&at).unwrap();
    let refused = mount.mount_at("127.0.0.1:/v01/a/x", &at, "");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no folder /a/x"));
    let mounted = mount.mount_at("127.0.0.1:/v01/a/b", &at, "ro");
    assert!(
        mounted.status.success(),
        "{}",
        String::from_utf8_lossy(&mounted.stderr)
    );
    mount.extra.push(at.clone());
    assert_eq!(fs::read(at.join("f")).unwrap(), b"deep");
    assert_eq!(
        fs::write(at.join("g"), b"").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    let (inside, outside) = (
        fs::metadata(at.join("f")),
        fs::metadata(mount.path("a/b/f")),
    );
    assert_eq!(inside.unwrap().ino(), outside.unwrap().ino());
}

#[test]
fn permissions_are_checked_for_every_user() {
    let mount = Mount::new();
    fs::write(mount.path("secret"), b"1").unwrap();
    fs::set_permissions(mount.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(mount.root(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(mount.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let shell = format!(
        "cat {0}/secret && exit 3; umask 077; echo mine > {0}/own && cat {0}/own",
        mount.root().display()
    );
    let output = Command::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "sh",
            "-c",
            &shell,
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"mine\n");
    let own = fs::metadata(mount.path("own")).unwrap();
    assert_eq!((own.uid(), own.mode() & 0o777), (65534, 0o600));
    mount.assert_quiet();
}

#[test]
fn what_cannot_be_mounted_is_one_sentence() {
    let mount = Mount::new();
    let at = mount.folder.path().join("other");
    fs::create_dir(&at).unwrap();
    let refused = |spec: &str, at: &Path, options: &str, words: &str| {
        let output = mount.mount_at(spec, at, options);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{spec}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
        assert!(!is_mounted(at));
    };
    refused("127.0.0.1:/v02", &at, "", "Volume v02 does not exist");
    refused("127.0.0.1:/v01", &at.join("x"), "", "does not exist");
    refused("127.0.0.1:/v01", &at, "bogus", "'bogus' is not known");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = silent.local_addr().unwrap().port();
    drop(silent);
    refused(
        "127.0.0.1:/v01",
        &at,
        &format!("port={closed}"),
        "cannot reach 127.0.0.1",
    );
    refused("no-such-host.invalid:/v01", &at, "", "no-such-host.invalid");
    mount.fake.publish(VolumeStatus::VolumeStopped);
    refused("127.0.0.1:/v01", &at, "", "is not started");
    mount.fake.publish(VolumeStatus::VolumeStarted);
}

#[test]
fn the_library_serves_as_our_own_loop_does() {
    let mount = Mount::with("fuse-loop=fuser");
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), b"content").unwrap();
    assert_eq!(fs::read(mount.path("d/f")).unwrap(), b"content");
    fs::rename(mount.path("d/f"), mount.path("d/g")).unwrap();
    let names: Vec<_> = fs::read_dir(mount.path("d"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["g"]);
    let file = fs::File::options().write(true).open(mount.path("d/g"));
    let file = file.unwrap();
    crate::locks::fcntl_lock(&file, libc::F_WRLCK, true).unwrap();
    file.set_len(3).unwrap();
    assert_eq!(fs::read(mount.path("d/g")).unwrap(), b"con");
    fs::remove_file(mount.path("d/g")).unwrap();
    mount.assert_quiet();
}

#[test]
fn a_backup_host_is_asked_when_the_first_does_not_answer() {
    let mount = Mount::new();
    let at = mount.folder.path().join("other");
    fs::create_dir(&at).unwrap();
    let options = "backup-volfile-servers=127.0.0.1";
    let output = mount.mount_at("no-such-host.invalid:/v01", &at, options);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
}
