//! What the command line and `-o` say, read once and checked.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use mortar_common::name::volume_name_refusal;
use rustix::mount::MountFlags;

/// Port of brickd where none is named.
pub const DEFAULT_PORT: u16 = 24017;
/// Longest timeout that can be asked for: a day.
const TIMEOUT_SECS_MAX: f64 = 86_400.0;
/// Inodes the kernel may know before the client asks for some back, where nobody says a number.
pub const INODE_LIMIT: usize = 500_000;

const OPTIONS_HELP: &str = "\
Mount options (-o), besides those of every file system (ro, noatime, nosuid, …):
  backup-volfile-servers=H2:H3  hosts to ask when the first does not answer
  port=N                        port of brickd [24017]
  attribute-timeout=SECONDS     how long attributes are believed [1]
  entry-timeout=SECONDS         how long names are believed [1]
  negative-timeout=SECONDS      how long the absence of a name is believed [0]
  io-timeout=SECONDS            fail what waits longer for a lost volume [0: wait]
  inode-limit=N                 inodes the kernel may know [500000]
  direct-io-mode=enable         bypass the kernel's page cache
  use-readdirp=no               list folders without attributes
  fuse-loop=own|fuser           who talks to the kernel: Mortar's own loop, or the
                                library fuser; one and the same on all mounts of a
                                volume, or flock locks do not hold between them [own]
  log-level=LEVEL               error, warn, info, debug, trace [info]
  log-file=FILE                 [/var/log/mortar/MOUNTPOINT.log]
  remount                       change ro, noatime, nosuid, nodev, noexec, sync, dirsync of a mount
GlusterFS's other mount options are accepted and have no effect.";

/// The command line, as mount(8) calls a helper: `mount.mortar SPEC DIR [-fnsv] [-o OPTIONS]`.
#[derive(Parser, Debug)]
#[command(
    name = "mount.mortar",
    version,
    about = "Mounts a Mortar volume",
    after_help = OPTIONS_HELP
)]
pub struct CommandLine {
    /// HOST[,HOST…]:/VOLUME[/SUBDIR]
    pub spec: String,
    /// Where to mount it
    pub mount_point: PathBuf,
    /// Mount options, comma separated; may be given more than once
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short = 'F', long)]
    pub foreground: bool,
    /// Read everything and mount nothing (mount(8) --fake)
    #[arg(short = 'f', long)]
    pub fake: bool,
    /// Do not write /etc/mtab (accepted from mount(8), nothing to do)
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Pass over options that are not known
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Log more
    #[arg(short = 'v', long)]
    pub verbose: bool,
    /// File system type (accepted from mount(8))
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
    /// Mount namespace (accepted from mount(8))
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Why the command line cannot be followed, in words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(String);

/// Whether reads and writes go through the kernel's page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageCache {
    /// They do, but for files opened with O_APPEND.
    Used,
    /// They never do (`direct-io-mode=enable`).
    Bypassed,
}

/// Whether listings bring attributes with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListingAttributes {
    /// READDIRPLUS.
    Auto,
    /// Plain READDIR only (`use-readdirp=no`).
    Never,
}

/// What is to be done at the mount point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Mount the volume.
    Mount,
    /// Give the mount that is there other flags of mount(2) (`remount`).
    Remount,
}

/// Who talks to the kernel's FUSE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FuseLoop {
    /// Our own loop (`fuse-loop=own`).
    Own,
    /// The library (`fuse-loop=fuser`).
    Fuser,
}

/// One flag of mount(2) that an option sets or clears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // Named as the options are.
pub enum KernelFlag {
    ReadOnly,
    NoSuid,
    NoDev,
    NoExec,
    Synchronous,
    DirSync,
    NoAtime,
    NoDirAtime,
}

/// Everything a mount is told.
#[derive(Clone, PartialEq, Debug)]
pub struct MountOptions {
    /// Hosts to ask for the view first, in order; then every peer of the view is asked.
    pub hosts: Vec<String>,
    /// Their port.
    pub port: u16,
    /// The volume.
    pub volume: String,
    /// Folder of the volume that becomes the mount's root, by components; empty = the whole.
    pub subdir: Vec<Vec<u8>>,
    /// As `/proc/mounts` shows the source: `HOST:/VOLUME[/SUBDIR]`.
    pub source: String,
    /// Where to mount.
    pub mount_point: PathBuf,
    /// Whether to mount or to remount.
    pub action: Action,
    /// Do not become a daemon.
    pub foreground: bool,
    /// Flags of mount(2).
    pub flags: Vec<KernelFlag>,
    /// How long attributes are believed.
    pub attribute_timeout: Duration,
    /// How long names are believed.
    pub entry_timeout: Duration,
    /// How long the absence of a name is believed.
    pub negative_timeout: Duration,
    /// How long a request waits for a lost brick before it fails; `None` = for ever.
    pub io_timeout: Option<Duration>,
    /// `error` … `trace`.
    pub log_level: String,
    /// `None` = standard error in the foreground, else a file named after the mount point.
    pub log_file: Option<PathBuf>,
    /// Inodes the kernel may know before the oldest are asked back; `None` = as the volume says.
    pub inode_limit: Option<usize>,
    /// `direct-io-mode`.
    pub page_cache: PageCache,
    /// `use-readdirp`.
    pub listing: ListingAttributes,
    /// `fuse-loop`.
    pub fuse_loop: FuseLoop,
}

impl MountOptions {
    /// What the kernel itself does for this mount.
    pub fn mount_flags(&self) -> MountFlags {
        let bit = |flag: &KernelFlag| match flag {
            KernelFlag::ReadOnly => MountFlags::RDONLY,
            KernelFlag::NoSuid => MountFlags::NOSUID,
            KernelFlag::NoDev => MountFlags::NODEV,
            KernelFlag::NoExec => MountFlags::NOEXEC,
            KernelFlag::Synchronous => MountFlags::SYNCHRONOUS,
            KernelFlag::DirSync => MountFlags::DIRSYNC,
            KernelFlag::NoAtime => MountFlags::NOATIME,
            KernelFlag::NoDirAtime => MountFlags::NODIRATIME,
        };
        self.flags.iter().map(bit).collect()
    }

    /// Reads the command line.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn read(line: &CommandLine) -> Result<MountOptions, OptionError> {
        let (hosts, volume, subdir) = read_spec(&line.spec)?;
        let mut options = MountOptions {
            hosts,
            port: DEFAULT_PORT,
            volume,
            subdir,
            source: line.spec.clone(),
            mount_point: line.mount_point.clone(),
            action: Action::Mount,
            foreground: line.foreground,
            flags: Vec::new(),
            attribute_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Duration::ZERO,
            io_timeout: None,
            log_level: if line.verbose { "debug" } else { "info" }.to_owned(),
            log_file: None,
            inode_limit: None,
            page_cache: PageCache::Used,
            listing: ListingAttributes::Auto,
            fuse_loop: FuseLoop::Own,
        };
        for option in line.options.iter().flat_map(|list| list.split(',')) {
            match options.apply(option) {
                Ok(()) => {}
                Err(Refused::Unknown) if line.sloppy => {}
                Err(Refused::Unknown) => {
                    return Err(OptionError(format!(
                        "the mount option '{option}' is not known; see mount.mortar --help or \
                         leave it out"
                    )));
                }
                Err(Refused::Value(words)) => return Err(OptionError(words)),
            }
        }
        Ok(options)
    }

    fn apply(&mut self, option: &str) -> Result<(), Refused> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        if self.apply_flag(key) || is_silent(key) {
            return Ok(());
        }
        let needed = || {
            value.filter(|value| !value.is_empty()).ok_or_else(|| {
                Refused::Value(format!("the mount option '{key}' needs a value: {key}=…"))
            })
        };
        match key {
            "backup-volfile-servers" | "backupvolfile-server" | "backup-volfile-server" => {
                let more = needed()?.split([':', ' ']).filter(|host| !host.is_empty());
                self.hosts.extend(more.map(str::to_owned));
            }
            "port" | "server-port" => self.port = read_number(key, needed()?)?,
            "transport" | "transport-type" => read_transport(needed()?)?,
            "attribute-timeout" => self.attribute_timeout = read_seconds(key, needed()?)?,
            "entry-timeout" => self.entry_timeout = read_seconds(key, needed()?)?,
            "negative-timeout" => self.negative_timeout = read_seconds(key, needed()?)?,
            "io-timeout" => {
                let timeout = read_seconds(key, needed()?)?;
                self.io_timeout = (!timeout.is_zero()).then_some(timeout);
            }
            "log-level" => self.log_level = read_log_level(needed()?)?,
            "log-file" => self.log_file = Some(PathBuf::from(needed()?)),
            "inode-limit" | "lru-limit" => {
                let limit: usize = read_number(key, needed()?)?;
                self.inode_limit = Some(if limit == 0 { usize::MAX } else { limit });
            }
            "subdir-mount" => self.subdir = read_subdir(needed()?)?,
            "direct-io-mode" => {
                self.page_cache = match needed()? {
                    "enable" | "on" | "yes" | "true" => PageCache::Bypassed,
                    _ => PageCache::Used,
                };
            }
            "use-readdirp" => {
                self.listing = match needed()? {
                    "no" | "off" | "false" | "disable" | "0" => ListingAttributes::Never,
                    _ => ListingAttributes::Auto,
                };
            }
            "fuse-loop" => self.fuse_loop = read_fuse_loop(needed()?)?,
            "foreground" => self.foreground = true,
            "remount" => self.action = Action::Remount,
            _ => return Err(Refused::Unknown),
        }
        Ok(())
    }

    /// Options that are a flag of mount(2), and their opposites.
    fn apply_flag(&mut self, key: &str) -> bool {
        let (flag, set) = match key {
            "ro" => (KernelFlag::ReadOnly, true),
            "rw" => (KernelFlag::ReadOnly, false),
            "nosuid" => (KernelFlag::NoSuid, true),
            "suid" => (KernelFlag::NoSuid, false),
            "nodev" => (KernelFlag::NoDev, true),
            "dev" => (KernelFlag::NoDev, false),
            "noexec" => (KernelFlag::NoExec, true),
            "exec" => (KernelFlag::NoExec, false),
            "sync" => (KernelFlag::Synchronous, true),
            "async" => (KernelFlag::Synchronous, false),
            "dirsync" => (KernelFlag::DirSync, true),
            "noatime" => (KernelFlag::NoAtime, true),
            "atime" => (KernelFlag::NoAtime, false),
            "nodiratime" => (KernelFlag::NoDirAtime, true),
            "diratime" => (KernelFlag::NoDirAtime, false),
            _ => return false,
        };
        self.flags.retain(|have| *have != flag);
        if set {
            self.flags.push(flag);
        }
        true
    }
}

enum Refused {
    Unknown,
    Value(String),
}

/// Options that mean something to mount(8), systemd or GlusterFS and nothing here, or that are
/// always so: permissions are always checked by the kernel for every user, ACLs are always on.
fn is_silent(key: &str) -> bool {
    const SILENT: &str = "defaults auto noauto user nouser users owner group _netdev nofail \
        comment relatime norelatime strictatime nostrictatime lazytime nolazytime silent loud \
        mand nomand iversion noiversion allow_other default_permissions user_id group_id acl noacl \
        fetch-attempts fopen-keep-cache gid-timeout background-qlen congestion-threshold \
        kernel-writeback-cache auto-invalidation reader-thread-count event-history selinux \
        resolve-gids process-name volume-name volfile-max-fetch-attempts inode-table-size \
        invalidate-limit attr-times-granularity oom-score-adj global-threading thin-client \
        enable-ino32 mem-accounting fuse-mountopts xlator-option root-squash dump-fuse \
        volume-id worm aux-gfid-mount";
    key.is_empty()
        || SILENT.split_whitespace().any(|silent| silent == key)
        || ["x-", "X-", "halo-"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

type Spec = (Vec<String>, String, Vec<Vec<u8>>);

fn read_spec(spec: &str) -> Result<Spec, OptionError> {
    let wrong = || OptionError(format!("'{spec}' is not HOST[,HOST]:/VOLUME[/SUBDIR]"));
    let (hosts, path) = match spec.split_once(":/") {
        Some(parts) => parts,
        None => spec.rsplit_once(':').ok_or_else(wrong)?,
    };
    let hosts: Vec<String> = hosts
        .split(',')
        .map(|host| host.trim().trim_matches(['[', ']']).to_owned())
        .collect();
    if hosts
        .iter()
        .any(|host| host.is_empty() || host.contains(['/', ' ']))
    {
        return Err(wrong());
    }
    let (volume, subdir) = path.split_once('/').unwrap_or((path, ""));
    if let Some(refusal) = volume_name_refusal(volume) {
        return Err(OptionError(format!("{refusal} (in '{spec}')")));
    }
    let subdir = read_subdir(subdir).map_err(|refused| match refused {
        Refused::Value(words) => OptionError(words),
        Refused::Unknown => wrong(),
    })?;
    Ok((hosts, volume.to_owned(), subdir))
}

fn read_subdir(text: &str) -> Result<Vec<Vec<u8>>, Refused> {
    let mut components = Vec::new();
    for component in text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
    {
        mortar_common::name::check_entry_name(component.as_bytes()).map_err(|_| {
            Refused::Value(format!(
                "the folder '{text}' of the volume is not a plain path"
            ))
        })?;
        components.push(component.as_bytes().to_vec());
    }
    Ok(components)
}

fn read_number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Refused> {
    value
        .parse()
        .map_err(|_| Refused::Value(format!("'{value}' is not a number that {key} can have")))
}

fn read_seconds(key: &str, value: &str) -> Result<Duration, Refused> {
    let seconds: f64 = read_number(key, value)?;
    if !(0.0..=TIMEOUT_SECS_MAX).contains(&seconds) {
        return Err(Refused::Value(format!(
            "{key} is {value} s; it must be between 0 and {TIMEOUT_SECS_MAX} s"
        )));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn read_transport(value: &str) -> Result<(), Refused> {
    match value {
        "tcp" | "socket" => Ok(()),
        _ => Err(Refused::Value(format!(
            "the transport '{value}' is not offered; use tcp"
        ))),
    }
}

fn read_fuse_loop(value: &str) -> Result<FuseLoop, Refused> {
    match value {
        "own" => Ok(FuseLoop::Own),
        "fuser" => Ok(FuseLoop::Fuser),
        _ => Err(Refused::Value(format!(
            "'{value}' is not a FUSE loop; use own or fuser"
        ))),
    }
}

fn read_log_level(value: &str) -> Result<String, Refused> {
    let level = value.to_ascii_lowercase();
    Ok(match level.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" | "off" => level,
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        "none" => "off".to_owned(),
        _ => {
            return Err(Refused::Value(format!(
                "'{value}' is not a log level; use error, warn, info, debug or trace"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<MountOptions, OptionError> {
        let line = CommandLine::try_parse_from([&["mount.mortar"], arguments].concat()).unwrap();
        MountOptions::read(&line)
    }

    #[test]
    fn the_spec_names_hosts_volume_and_folder() {
        let options = read(&["gfs01,gfs02:/v01/a/b", "/mnt", "-o", "rw"]).unwrap();
        assert_eq!(options.hosts, ["gfs01", "gfs02"]);
        assert_eq!(options.volume, "v01");
        assert_eq!(options.subdir, [b"a", b"b"]);
        assert_eq!(options.port, DEFAULT_PORT);
        assert_eq!(read(&["h:v01", "/mnt"]).unwrap().volume, "v01");
        assert_eq!(
            read(&["[fd00::1]:/v01", "/mnt"]).unwrap().hosts,
            ["fd00::1"]
        );
        for wrong in ["h", ":/v01", "h:/", "h:/v01/..", "h:/a b"] {
            assert!(read(&[wrong, "/mnt"]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_as_fstab_has_them() {
        let options = read(&[
            "h:/v",
            "/mnt",
            "-o",
            "defaults,_netdev,nofail,backup-volfile-servers=b:c,ro,noatime,acl,x-systemd.after=y",
            "-o",
            "attribute-timeout=0.5,entry-timeout=0,log-level=WARNING,direct-io-mode=enable,port=9",
        ])
        .unwrap();
        assert_eq!(options.hosts, ["h", "b", "c"]);
        assert_eq!(options.flags, [KernelFlag::ReadOnly, KernelFlag::NoAtime]);
        assert_eq!(options.attribute_timeout, Duration::from_millis(500));
        assert_eq!(options.entry_timeout, Duration::ZERO);
        assert_eq!(options.log_level, "warn");
        assert_eq!(options.page_cache, PageCache::Bypassed);
        assert_eq!(options.port, 9);
        assert_eq!(options.fuse_loop, FuseLoop::Own);
        let options = read(&["h:/v", "/mnt", "-o", "fuse-loop=fuser"]).unwrap();
        assert_eq!(options.fuse_loop, FuseLoop::Fuser);
    }

    #[test]
    fn a_remount_is_read_as_mount_8_asks_for_it() {
        let list = "ro,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other";
        let options = read(&["h:/v", "/mnt", "-o", list]).unwrap();
        assert_eq!(options.action, Action::Remount);
        assert_eq!(options.flags, [KernelFlag::ReadOnly]);
    }

    #[test]
    fn what_cannot_be_followed_is_one_sentence() {
        let refusal = |option: &str| {
            read(&["h:/v", "/mnt", "-o", option])
                .unwrap_err()
                .to_string()
        };
        assert!(refusal("frobnicate").contains("'frobnicate' is not known"));
        assert!(refusal("port=x").contains("not a number"));
        assert!(refusal("attribute-timeout=-1").contains("between"));
        assert!(refusal("transport=rdma").contains("use tcp"));
        assert!(refusal("fuse-loop=best").contains("use own or fuser"));
        assert!(refusal("log-level=loud").contains("log level"));
        assert!(refusal("log-file=").contains("needs a value"));
        assert!(read(&["-s", "h:/v", "/mnt", "-o", "frobnicate"]).is_ok());
    }
}
