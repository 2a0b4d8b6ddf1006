//! Commands that need no brickd: mounting, completions, manual pages.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::Shell as Generator;

use super::grammar::{Cli, Mount, Shell};
use super::{Failure, Report};
use crate::daemon::Config;

/// What `mount -t mortar` runs.
const HELPER: &str = "mount.mortar";

/// Mounts in this process: the very program that `mount -t mortar` runs.
pub fn mount(mount: &Mount) -> ExitCode {
    let mut arguments: Vec<OsString> = vec![HELPER.into()];
    arguments.push(mount.source.clone().into());
    arguments.push(mount.mount_point.clone().into());
    if !mount.options.is_empty() {
        arguments.push("-o".into());
        arguments.push(mount.options.join(",").into());
    }
    fuse_client::mount::main_from(arguments)
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
