//! Promise 8: what an operation costs, in requests to a brick.
//!
//! The kernel asks for more than an application does: the attributes of the directory, extended
//! attributes, the end of a descriptor. None of that may reach a brick after a change of one's own.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::getxattr;
use rustix::io::Errno;
use tests::cluster::{Cluster, Mount, Process, program};
use tests::report;
use tests::requests::{Counter, PORT_BEHIND};

/// Timeouts that end no cached name or attribute during a test: what is counted is what an
/// operation itself costs.
const OPTIONS: &str = "attribute-timeout=600,entry-timeout=600";
const CREATE_WITHIN: Duration = Duration::from_secs(30);

/// A volume of one brick behind a proxy that counts, mounted. Fields are dropped in this order.
struct Counted {
    mount: Mount,
    counter: Counter,
    _brickd: Process,
    cluster: Cluster,
}

impl Counted {
    fn new() -> Self {
        let cluster = Cluster::new(&["gfs01", "client"]);
        let host = cluster.host("gfs01");
        let counter = Counter::start(host);
        let mut command = host.command(program("brickd"));
        command
            .args(["--listen", &format!("{}:{PORT_BEHIND}", host.address)])
            .args(["--advertise", "gfs01:24017"]);
        let brickd = Process::start(command, &host.log());
        tests::cluster::wait_until(CREATE_WITHIN, "brickd's admin socket", || {
            std::os::unix::net::UnixStream::connect(host.socket()).is_ok()
        });
        let brick = host.brick_spec("brick");
        host.mortar(&format!("volume create v01 {brick} force"))
            .ok();
        host.mortar("volume start v01").ok();
        let mount = cluster.mount("client", "gfs01:/v01", OPTIONS);
        Counted {
            mount,
            counter,
            _brickd: brickd,
            cluster,
        }
    }

    /// The same volume on a mount whose kernel knows nothing.
    fn again(self) -> Self {
        self.mount.unmount();
        let mount = self.cluster.mount("client", "gfs01:/v01", OPTIONS);
        Counted { mount, ..self }
    }

    #[track_caller]
    fn costs(&self, what: &str, expected: &[&str], work: impl FnOnce()) {
        let asked = self.counter.during(work);
        assert_eq!(asked, expected, "requests of: {what}");
    }
}

#[test]
fn a_change_is_one_request_beside_the_lookup_of_its_new_name() {
    let counted = Counted::new();
    let at = |name: &str| counted.mount.join(name);
    let write = |name: &str| fs::write(at(name), [b'x'; 4096]).unwrap();
    // The kernel looks the root up once.
    fs::metadata(counted.mount.path()).unwrap();

    counted.costs(
        "create, 4 KiB, close",
        &["Lookup", "Create", "Write"],
        || {
            write("a");
        },
    );
    counted.costs("the next one", &["Lookup", "Create", "Write"], || {
        write("b")
    });
    counted.costs("stat of the directory after it", &[], || {
        fs::metadata(counted.mount.path()).unwrap();
    });
    counted.costs("mkdir", &["Lookup", "Create"], || {
        fs::create_dir(at("d")).unwrap();
    });
    counted.costs("symlink", &["Lookup", "Create"], || {
        symlink("a", at("s")).unwrap();
    });
    counted.costs("hard link", &["Lookup", "Link"], || {
        fs::hard_link(at("a"), at("l")).unwrap();
    });
    counted.costs("rename", &["Lookup", "Rename"], || {
        fs::rename(at("a"), at("d/a")).unwrap();
    });
    counted.costs("chmod", &["Setattr"], || {
        fs::set_permissions(at("b"), Permissions::from_mode(0o600)).unwrap();
    });
    counted.costs("rmdir of what is not empty", &["Rmdir"], || {
        fs::remove_dir(at("d")).unwrap_err();
    });
    let asked = counted
        .counter
        .during(|| fs::remove_file(at("d/a")).unwrap());
    assert!(
        asked == ["Unlink"] || asked == ["Release+Unlink"],
        "unlink: {asked:?}"
    );
    counted.costs("rmdir", &["Rmdir"], || fs::remove_dir(at("d")).unwrap());
}

#[test]
fn what_the_kernel_asks_around_an_operation_stays_in_the_client() {
    let counted = Counted::new();
    let path = counted.mount.join("file");
    fs::write(&path, [b'x'; 4096]).unwrap();
    fs::metadata(&path).unwrap();
    counted.costs("stat", &[], || {
        fs::metadata(&path).unwrap();
    });
    counted.costs("an attribute that is not there", &[], || {
        for name in [
            "user.none",
            "security.capability",
            "system.posix_acl_access",
        ] {
            let mut value = [0u8; 16];
            let got = getxattr(&path, name, &mut value[..]);
            assert_eq!(got, Err(Errno::NODATA), "{name}");
        }
    });
    let file = File::options().write(true).open(&path).unwrap();
    counted.costs("the end of one descriptor of two", &[], || {
        drop(file.try_clone().unwrap());
    });
    counted.costs("fsync", &["Fsync"], || file.sync_all().unwrap());
}

#[test]
fn a_small_file_is_read_with_its_open() {
    let counted = Counted::new();
    fs::write(counted.mount.join("file"), [b'x'; 4096]).unwrap();
    let counted = counted.again();
    let path = counted.mount.join("file");
    counted.costs("lookup of a name that is not there", &["Lookup"], || {
        fs::metadata(counted.mount.join("none")).unwrap_err();
    });
    counted.costs("open and read", &["Lookup", "Open+Read"], || {
        assert_eq!(fs::read(&path).unwrap().len(), 4096);
    });
    let asked = counted.counter.during(|| drop(fs::read(&path).unwrap()));
    assert!(
        asked == ["Open"] || asked == ["Getattr"],
        "open and read of what the kernel has: {asked:?}"
    );
    let mut file = File::open(&path).unwrap();
    counted.costs("read of what the kernel has", &[], || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
    });
}

/// Entries with their attributes that a page holds at least.
const PAGE_ENTRIES_MIN: usize = 50;

/// A folder of this many files on a mount whose kernel knows nothing of them.
fn folder_of(files: usize) -> (Counted, PathBuf) {
    let counted = Counted::new();
    let folder = counted.mount.join("many");
    fs::create_dir(&folder).unwrap();
    for number in 0..files {
        File::create(folder.join(format!("{number:05}"))).unwrap();
    }
    let counted = counted.again();
    let folder = counted.mount.join("many");
    fs::metadata(&folder).unwrap();
    (counted, folder)
}

#[track_caller]
fn assert_pages_only(asked: &[String], files: usize) {
    let (first, pages) = asked.split_first().expect("a listing");
    assert_eq!(first, "Getattr+Readdir");
    assert!(pages.iter().all(|ops| ops == "Readdir"), "{asked:?}");
    assert!(asked.len() <= files / PAGE_ENTRIES_MIN + 1, "{asked:?}");
}

#[test]
fn a_listing_asks_for_pages_only() {
    const FILES: usize = 1000;
    let (counted, folder) = folder_of(FILES);
    let mut listed = 0;
    let asked = counted
        .counter
        .during(|| listed = fs::read_dir(&folder).unwrap().count());
    assert_eq!(listed, FILES);
    report::say(&format!("{} requests list {FILES} files", asked.len()));
    assert_pages_only(&asked, FILES);
}

#[test]
fn a_listing_with_attributes_asks_for_pages_only() {
    const FILES: usize = 1000;
    let (counted, folder) = folder_of(FILES);
    let mut listed = 0;
    let asked = counted.counter.during(|| {
        for entry in fs::read_dir(&folder).unwrap() {
            listed += u64::from(entry.unwrap().metadata().unwrap().is_file());
        }
    });
    assert_eq!(listed, FILES as u64);
    report::say(&format!(
        "{} requests list {FILES} files with their attributes",
        asked.len()
    ));
    assert_pages_only(&asked, FILES);
}
