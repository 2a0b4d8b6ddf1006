//! The server's entry point.

use std::process::ExitCode;

use brickd::daemon::{self, Config};
use clap::Parser;

fn main() -> ExitCode {
    let config = Config::parse();
    if let Err(reason) =
        mortar_common::logging::start(&config.log_level, config.log_file.as_deref())
    {
        eprintln!("brickd: {reason}");
        return ExitCode::FAILURE;
    }
    match daemon::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("brickd: {error}");
            ExitCode::FAILURE
        }
    }
}
