//! Test suites of others that `.ci/run` installs with `cargo install`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::run;

const VERSION_WITHIN: Duration = Duration::from_secs(30);

/// A program installed from crates.io in exactly this version, looked for in PATH and in cargo's
/// own folder.
///
/// # Panics
/// When it is not there, with the command that installs it: a suite that does not run must not
/// look like one that passed.
#[track_caller]
pub fn installed(name: &str, version: &str) -> PathBuf {
    let install = format!("install it with `cargo install {name}@{version} --locked`");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let own = cargo.or(home).map(|cargo| cargo.join("bin"));
    let found = std::env::split_paths(&path)
        .chain(own)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("this test needs {name} {version}, which is absent: {install}"));
    let mut asked = Command::new(&found);
    asked.arg("--version");
    let said = run(asked, VERSION_WITHIN).ok();
    assert!(
        said.split_whitespace().any(|word| word == version),
        "{} is not version {version} but {said}: {install}",
        found.display()
    );
    found
}
