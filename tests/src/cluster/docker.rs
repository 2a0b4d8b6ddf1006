//! Containers of a real Docker: a dockerd of the test's own, whose folders lie in the cluster's,
//! so that neither meets the machine's containers; images made from the machine's own files, so
//! that no registry is asked; networks plugged into the cluster's switch by hand.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::net::Place;
use super::process::{Process, Ran, program, run, wait_until};
use super::{Cable, Cluster};

const DAEMON_WITHIN: Duration = Duration::from_secs(60);
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
const IMAGE: &str = "mortar-test:latest";
/// What a container of these tests has besides `mount.mortar`.
const TOOLS: [&str; 12] = [
    "sh", "cat", "ls", "ln", "mkdir", "mknod", "mount", "sleep", "stat", "touch", "umount", "wc",
];

/// A dockerd of the test's own, ended with its containers when dropped.
pub struct Docker {
    folder: PathBuf,
    daemon: Process,
}

/// How a container is run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// May mount: CAP_SYS_ADMIN and the device number of `/dev/fuse`, which itself is missing.
    pub may_mount: bool,
    /// Folders of the machine and where they are seen, as `docker run -v` takes them.
    pub binds: Vec<(PathBuf, String)>,
}

/// A running container.
pub struct Container<'a> {
    docker: &'a Docker,
    id: String,
    /// Its cable to the cluster's switch.
    pub cable: Cable,
}

impl Docker {
    /// Starts dockerd and makes the image.
    ///
    /// # Panics
    /// With dockerd's own words when this machine cannot run it: the test fails, for what it has
    /// to show was not shown.
    #[track_caller]
    pub fn start(cluster: &Cluster) -> Self {
        let folder = cluster.folder("docker");
        let mut command = Command::new("dockerd");
        for (flag, name) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
        ] {
            command.arg(flag).arg(folder.join(name));
        }
        command.arg("--host").arg(socket_of(&folder));
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        let namespace = folder
            .to_string_lossy()
            .replace('/', "-")
            .trim_matches('-')
            .to_owned();
        command.args(["--containerd-namespace", &namespace]);
        command.args([
            "--containerd-plugins-namespace",
            &format!("{namespace}-plugins"),
        ]);
        let mut daemon = Process::start(command, &folder.join("log"));
        wait_until(DAEMON_WITHIN, "dockerd answers", || {
            assert!(
                daemon.is_running(),
                "dockerd cannot run here:\n{}",
                daemon.log_tail()
            );
            let mut version = Command::new("docker");
            version.args(["--host", &socket_of(&folder), "version"]);
            run(version, COMMAND_WITHIN).status.success()
        });
        let docker = Docker { folder, daemon };
        docker.import();
        docker
    }

    /// Runs a container whose first process only waits, on the cluster's network.
    #[track_caller]
    pub fn run(&self, cluster: &Cluster, options: &RunOptions) -> Container<'_> {
        let mut command = self.command();
        command.args(["run", "--detach", "--network", "none"]);
        for host in cluster.hosts() {
            command
                .arg("--add-host")
                .arg(format!("{}:{}", host.name, host.address));
        }
        if options.may_mount {
            // Docker's AppArmor profile, where there is one, forbids mount(2) whatever the
            // capabilities.
            command.args([
                "--cap-add",
                "SYS_ADMIN",
                "--device-cgroup-rule",
                "c 10:229 rwm",
            ]);
            command.args(["--security-opt", "apparmor=unconfined"]);
        }
        for (from, to) in &options.binds {
            command
                .arg("--volume")
                .arg(format!("{}:{to}", from.display()));
        }
        command.args([IMAGE, "/bin/sleep", "3600"]);
        let id = run(command, COMMAND_WITHIN).ok().trim().to_owned();
        let mut inspect = self.command();
        inspect.args(["inspect", "--format", "{{.State.Pid}}", &id]);
        let pid = run(inspect, COMMAND_WITHIN)
            .ok()
            .trim()
            .parse()
            .expect("a process id");
        let cable = cluster.plug(&Place::Process(pid));
        Container {
            docker: self,
            id,
            cable,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.args(["--host", &socket_of(&self.folder)]);
        command
    }

    /// Makes the image: the tools and `mount.mortar` with the libraries they are linked with.
    #[track_caller]
    fn import(&self) {
        let root = self.folder.join("root");
        for folder in [
            "bin", "sbin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp",
        ] {
            fs::create_dir_all(root.join(folder)).expect("a folder of the image");
        }
        let mut libraries = BTreeSet::new();
        for tool in TOOLS {
            let found = path_of(tool);
            libraries.extend(libraries_of(&found));
            copy(&found, &root.join("bin").join(tool));
        }
        let client = program("mount-mortar");
        libraries.extend(libraries_of(&client));
        copy(&client, &root.join("sbin/mount.mortar"));
        for library in libraries {
            let to = root.join(library.strip_prefix("/").expect("ldd names whole paths"));
            fs::create_dir_all(to.parent().expect("a library's folder")).expect("a folder");
            copy(&library, &to);
        }
        let archive = self.folder.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
        run(tar, COMMAND_WITHIN).ok();
        let mut import = self.command();
        import.arg("import").arg(&archive).arg(IMAGE);
        run(import, COMMAND_WITHIN).ok();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Ends its containers and its containerd; what stays is removed with the cluster.
        self.daemon.signal(Signal::TERM);
        let start = std::time::Instant::now();
        while self.daemon.is_running() && start.elapsed() < COMMAND_WITHIN {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Container<'_> {
    /// Runs words in it, given to its shell.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Ran {
        run(self.sh_command(script), COMMAND_WITHIN)
    }

    /// The command that does so, to be run beside others.
    pub fn sh_command(&self, script: &str) -> Command {
        let mut command = self.docker.command();
        command.args(["exec", &self.id, "/bin/sh", "-c", script]);
        command
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let mut remove = self.docker.command();
        remove.args(["rm", "--force", &self.id]);
        if !std::thread::panicking() {
            run(remove, COMMAND_WITHIN).ok();
        } else {
            let _ = remove.output();
        }
    }
}

fn socket_of(folder: &Path) -> String {
    format!("unix://{}", folder.join("sock").display())
}

#[track_caller]
fn path_of(tool: &str) -> PathBuf {
    let folders = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"];
    let found = folders
        .iter()
        .map(|folder| Path::new(folder).join(tool))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("this machine has no {tool}"))
}

#[track_caller]
fn libraries_of(file: &Path) -> Vec<PathBuf> {
    let mut ldd = Command::new("ldd");
    ldd.arg(file);
    let listed = run(ldd, COMMAND_WITHIN).ok();
    listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[track_caller]
fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{} to the image: {error}", from.display()));
}
