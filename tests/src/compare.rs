//! The same done on a bare disk and through a mount, and what came out compared.

use std::fmt::Debug;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cluster::{Cluster, Mount, VOLUME};

/// A volume's mount and a folder of the disk below it.
pub struct Both {
    /// gfs01 and gfs02 with a brick each.
    pub cluster: Cluster,
    /// The volume, on the host `client`.
    pub mount: Mount,
    disk: PathBuf,
    cases: u32,
    looks: Vec<Look>,
    differences: Vec<String>,
}

/// What can be looked at again, in the folder of its case.
struct Look {
    what: String,
    case: String,
    look: Box<dyn Fn(&Path) -> String>,
}

impl Default for Both {
    fn default() -> Self {
        Both::new()
    }
}

impl Both {
    /// A volume of two copies, founded and mounted.
    #[track_caller]
    pub fn new() -> Self {
        let cluster = Cluster::two_hosts();
        let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
        let disk = cluster.folder("disk");
        Both {
            cluster,
            mount,
            disk,
            cases: 0,
            looks: Vec::new(),
            differences: Vec::new(),
        }
    }

    /// Does one case in a folder of its own that everybody may write to, on the disk and in the
    /// mount, and notes where the outcomes differ.
    pub fn case<T: PartialEq + Debug>(&mut self, what: &str, act: impl Fn(&Path) -> T) {
        self.case_seen(what, act);
    }

    /// [`Both::case`], with what came out in the mount.
    pub fn case_seen<T: PartialEq + Debug>(&mut self, what: &str, act: impl Fn(&Path) -> T) -> T {
        self.cases += 1;
        let name = self.case_name();
        let [on_disk, on_mount] = [&self.disk, self.mount.path()].map(|place| {
            let folder = place.join(&name);
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
            act(&folder)
        });
        self.compare(what, &on_disk, &on_mount);
        on_mount
    }

    /// [`Both::case`], whose outcome is what `look` sees afterwards; [`Both::look_again`] looks
    /// once more.
    pub fn kept<T: PartialEq + Debug>(
        &mut self,
        what: &str,
        make: impl Fn(&Path),
        look: impl Fn(&Path) -> T + 'static,
    ) {
        self.case(what, |folder| {
            make(folder);
            look(folder)
        });
        self.looks.push(Look {
            what: what.to_owned(),
            case: self.case_name(),
            look: Box::new(move |folder| format!("{:?}", look(folder))),
        });
    }

    /// Looks at every [`Both::kept`] case again.
    pub fn look_again(&mut self, when: &str) {
        for Look { what, case, look } in std::mem::take(&mut self.looks) {
            let [on_disk, on_mount] =
                [&self.disk, self.mount.path()].map(|place| look(&place.join(&case)));
            self.compare(&format!("{what}, {when}"), &on_disk, &on_mount);
            self.looks.push(Look { what, case, look });
        }
    }

    /// Does `cases` while the backup is away, and looks at them again through the copy that was
    /// healed, when it is the only one.
    #[track_caller]
    pub fn through_a_heal(&mut self, cases: impl FnOnce(&mut Self)) {
        let away = self.cluster.backup(VOLUME).name.clone();
        let there = self.cluster.primary(VOLUME).name.clone();
        self.cluster.host(&away).kill_brickd();
        cases(self);
        self.cluster.host(&away).start_brickd();
        self.cluster.wait_healed(VOLUME);
        self.cluster.host(&there).kill_brickd();
        self.look_again("after the heal, from the copy that was healed");
        self.cluster.host(&there).start_brickd();
        self.cluster.wait_healed(VOLUME);
    }

    /// Asserts that nothing differed, and that both bricks hold the same.
    #[track_caller]
    pub fn end(self) {
        let count = self.differences.len();
        assert!(
            count == 0,
            "{count} of {} cases are not as on the disk:\n{}",
            self.cases,
            self.differences.join("\n")
        );
        self.cluster.assert_healed_and_equal();
        self.mount.unmount();
        self.cluster.assert_logs_clean(&[]);
    }

    fn case_name(&self) -> String {
        format!("case-{:04}", self.cases)
    }

    fn compare<T: PartialEq + Debug>(&mut self, what: &str, on_disk: &T, on_mount: &T) {
        if on_disk != on_mount {
            self.differences.push(format!(
                "{what}:\n   disk  {on_disk:?}\n   mount {on_mount:?}"
            ));
        }
    }
}
