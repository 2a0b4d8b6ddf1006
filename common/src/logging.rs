//! Logging: one line an event on standard error or in a file, level by flag.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. Call once, before any thread is started.
///
/// `level` is `error`, `warn`, `info`, `debug`, `trace` or a filter as tracing-subscriber takes it.
///
/// # Errors
/// When the level cannot be read or the file cannot be opened, in words.
pub fn start(level: &str, file: Option<&Path>) -> Result<(), String> {
    // openraft warns of every late message, and h2 of a peer that was frozen and gives up many calls
    // at once; what matters of either the registry says itself. Naming one in the level switches it
    // on.
    let filter = EnvFilter::try_new(format!("openraft=off,h2=error,{level}"))
        .map_err(|error| format!("'{level}' is not a log level: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(true);
    match file {
        None => subscriber
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init(),
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| format!("cannot write the log {}: {error}", path.display()))?;
            subscriber
                .with_writer(Mutex::new(file))
                .with_ansi(false)
                .init();
        }
    }
    Ok(())
}
