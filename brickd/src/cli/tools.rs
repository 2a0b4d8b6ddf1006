//! Commands that need no brickd: mounting, completions, manual pages.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use clap_complete::Shell as Generator;

use super::grammar::{Cli, Mount, Shell};
use super::{Failure, Report};
use crate::daemon::Config;

/// What `mount -t mortar` runs.
const HELPER: &str = "mount.mortar";
/// What cargo calls the same program.
const HELPER_BUILT: &str = "mount-mortar";

/// Becomes the mount helper; returns only if it cannot be run.
pub fn mount(mount: &Mount) -> Result<Report, Failure> {
    let helper = helper().ok_or_else(|| {
        Failure(format!(
            "mount: failed: {HELPER} is neither on PATH nor in /sbin: install Mortar's client"
        ))
    })?;
    let mut command = Command::new(&helper);
    command.arg(&mount.source).arg(&mount.mount_point);
    if !mount.options.is_empty() {
        command.arg("-o").arg(mount.options.join(","));
    }
    let error = command.exec();
    Err(Failure(format!(
        "mount: failed: {} cannot be run: {error}",
        helper.display()
    )))
}

/// Runs a brickd in this process until it is told to stop.
pub fn daemon(options: Vec<std::ffi::OsString>) -> Result<Report, Failure> {
    let named = std::iter::once("brickd".into()).chain(options);
    let config = Config::try_parse_from(named).map_err(|error| Failure(error.to_string()))?;
    mortar_common::logging::start(&config.log_level, config.log_file.as_deref())
        .map_err(Failure)?;
    crate::daemon::run(&config).map_err(|error| Failure(format!("brickd: {error}")))?;
    Ok(Report::words(""))
}

/// The completions of a shell.
pub fn completions(shell: Shell) -> Report {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "mortar", &mut script);
    Report::words(String::from_utf8_lossy(&script).into_owned())
}

/// Writes `mortar.1` and one page for each command into `dir`, which is made if missing.
pub fn man(dir: &Path) -> Result<Report, Failure> {
    let failed = |error: std::io::Error| {
        Failure(format!(
            "man: failed: cannot write to {}: {error}",
            dir.display()
        ))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    Ok(Report::words(format!(
        "man: success: pages written to {}",
        dir.display()
    )))
}

fn helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|dir| dir.join(HELPER))
        .collect();
    places.extend(["/sbin", "/usr/sbin"].map(|dir| Path::new(dir).join(HELPER)));
    if let Ok(own) = std::env::current_exe() {
        places.extend(own.parent().map(|dir| dir.join(HELPER_BUILT)));
    }
    places.into_iter().find(|place| place.is_file())
}
