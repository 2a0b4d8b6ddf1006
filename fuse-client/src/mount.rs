//! From the command line to a mount and to its end.

mod daemon;
mod remount;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use mortar_proto::registry::VolumeStatus;

use crate::fs::{Fs, Settings};
use crate::kernel::{self, Unmounter};
use crate::mounts;
use crate::options::{Action, CommandLine, INODE_LIMIT, MountOptions};
use crate::session::{Mounted, Session};
use crate::view::{Host, ViewWatch, Volume, VolumeView};

/// Exit status when the command line is wrong, as mount(8) has it.
const EXIT_USAGE: u8 = 1;
/// Exit status when the mount fails.
const EXIT_FAILED: u8 = 32;
/// After a signal, files in use may be finished with for this long before the process ends.
const SIGNAL_GRACE: Duration = Duration::from_secs(3);
/// Where a mount in the background logs when it is not told.
const LOG_FOLDER: &str = "/var/log/mortar";

/// The program, with the arguments of this process.
pub fn main() -> ExitCode {
    main_from(std::env::args_os())
}

/// The program. The first argument is its name. Call it before any thread is started.
pub fn main_from(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            // Nothing can be done when even the help cannot be printed.
            let _ = error.print();
            return if error.use_stderr() {
                EXIT_USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let options = MountOptions::read(&line).map_err(|error| error.to_string());
    let cleared = |options: MountOptions| match options.action {
        _ if line.fake => Ok(options),
        Action::Remount => Ok(options),
        Action::Mount => mounts::clear_dead(&options.mount_point).map(|()| options),
    };
    let options = match options.and_then(cleared).and_then(at_real_path) {
        Ok(options) => options,
        Err(sentence) => {
            eprintln!("mount.mortar: {sentence}");
            return EXIT_USAGE.into();
        }
    };
    let outcome = if line.fake {
        Ok(())
    } else if options.action == Action::Remount {
        remount::remount(&options)
    } else if options.foreground {
        run(&options, || Ok(()))
    } else {
        daemon::start(|mounted| run(&options, mounted))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("mount.mortar: {sentence}");
            EXIT_FAILED.into()
        }
    }
}

/// Mounts, says so by `mounted`, and serves until the volume is unmounted.
fn run(options: &MountOptions, mounted: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    start_log(options)?;
    let (session, volume) = open_session(options)?;
    let settings = Settings {
        attribute_timeout: options.attribute_timeout,
        entry_timeout: options.entry_timeout,
        negative_timeout: options.negative_timeout,
        page_cache: options.page_cache,
        listing: options.listing,
        inode_limit: options
            .inode_limit
            .or(volume.inode_limit)
            .unwrap_or(INODE_LIMIT),
    };
    let served = Fs::new(session.clone(), settings, &options.subdir).and_then(|fs| {
        let mount = kernel::mount(options).map_err(|error| error.to_string())?;
        let serving = kernel::serve(mount, fs.clone(), options);
        Ok((serving.map_err(|error| error.to_string())?, fs))
    });
    let (serving, fs) = match served {
        Ok(served) => served,
        Err(sentence) => {
            session.close();
            return Err(sentence);
        }
    };
    let unmounter = serving.unmounter();
    let started = end_on_signal(unmounter.clone(), fs).and_then(|()| mounted());
    if let Err(sentence) = started {
        unmounter.unmount();
        session.close();
        return Err(sentence);
    }
    warn_of_request_timeouts();
    tracing::info!(
        "mount.mortar {}: {} is mounted on {}",
        env!("CARGO_PKG_VERSION"),
        options.source,
        options.mount_point.display()
    );
    let outcome = serving
        .run()
        .map_err(|error| format!("the FUSE loop failed: {error}"));
    tracing::info!("{} is unmounted", options.mount_point.display());
    outcome
}

fn open_session(options: &MountOptions) -> Result<(Arc<Session>, Arc<VolumeView>), String> {
    let name = &options.volume;
    let hosts = options
        .hosts
        .iter()
        .map(|host| Host {
            name: host.clone(),
            port: options.port,
        })
        .collect();
    let view =
        ViewWatch::start(name, hosts).map_err(|error| format!("cannot start a thread: {error}"))?;
    let volume = match view.first()? {
        Volume::Absent => {
            return Err(format!(
                "Volume {name} does not exist in the pool of {}; 'mortar volume list' shows those that do",
                options.hosts[0]
            ));
        }
        Volume::Present(volume) if volume.status != VolumeStatus::VolumeStarted => {
            return Err(format!(
                "the volume '{name}' is not started; start it with 'mortar volume start {name}'"
            ));
        }
        Volume::Present(volume) if volume.sets > 1 => {
            return Err(format!(
                "the volume '{name}' has {} replica sets; this client serves volumes of one",
                volume.sets
            ));
        }
        Volume::Present(volume) => volume,
    };
    let mounted = Mounted {
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        mount_point: options.mount_point.to_string_lossy().into_owned(),
        io_timeout: options.io_timeout,
    };
    let session = Session::open(view, mounted)
        .map_err(|problem| format!("no brick of the volume '{name}' serves: {problem}"))?;
    Ok((session, volume))
}

/// SIGTERM and SIGINT unmount; what is in use by then is cut off after a grace.
fn end_on_signal(unmounter: Unmounter, fs: Arc<Fs>) -> Result<(), String> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let words = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(words)?;
    let fs = Arc::downgrade(&fs);
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let spawned = thread.spawn(move || {
        if let Some(signal) = signals.forever().next() {
            tracing::info!("signal {signal}: unmounting");
            unmounter.unmount();
            std::thread::sleep(SIGNAL_GRACE);
            if let Some(fs) = fs.upgrade() {
                tracing::info!("files are still in use; they are cut off");
                fs.stop();
            }
            std::process::exit(0);
        }
    });
    spawned.map(|_| ()).map_err(words)
}

fn at_real_path(options: MountOptions) -> Result<MountOptions, String> {
    let at = options.mount_point.display();
    let real = std::fs::canonicalize(&options.mount_point).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENOENT) => format!("the mount point {at} does not exist"),
            _ => format!("the mount point {at}: {error}"),
        }
    })?;
    if !real.is_dir() {
        return Err(format!("the mount point {at} is not a directory"));
    }
    Ok(MountOptions {
        mount_point: real,
        ..options
    })
}

fn start_log(options: &MountOptions) -> Result<(), String> {
    // fuser logs what is none of an administrator's business, as errors.
    let level = format!("{},fuser=off", options.log_level);
    let file = match &options.log_file {
        Some(file) => Some(file.clone()),
        None if options.foreground => None,
        None => Some(default_log_file(&options.mount_point)?),
    };
    mortar_common::logging::start(&level, file.as_deref())
}

/// `/var/log/mortar/mnt-data.log` for `/mnt/data`.
fn default_log_file(mount_point: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(LOG_FOLDER).map_err(|error| {
        format!("cannot make the log folder {LOG_FOLDER}: {error}; name a file with -o log-file=…")
    })?;
    let path = mount_point.to_string_lossy();
    let name = path.trim_matches('/').replace('/', "-");
    Ok(Path::new(LOG_FOLDER).join(format!("{name}.log")))
}

/// A kernel that gives up on requests would end the mount during a longer failover.
fn warn_of_request_timeouts() {
    for name in ["default_request_timeout", "max_request_timeout"] {
        let value = std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}"));
        if let Ok(value) = value
            && value
                .trim()
                .parse::<u64>()
                .is_ok_and(|seconds| seconds != 0)
        {
            tracing::warn!(
                "fs.fuse.{name} is {} s: a failover that takes longer ends this mount; set it to 0",
                value.trim()
            );
        }
    }
}
