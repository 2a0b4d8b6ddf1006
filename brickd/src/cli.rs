//! The command line `mortar`: gluster's grammar and wording over the admin service.
//!
//! Every command gives a [`Report`] (text for people, JSON for programs) or a [`Failure`] (one
//! sentence on standard error). Only this module prints. The exit status is 0 only on success.
//!
//! With `--json` each command prints one object: `ok` and, when it is false or the command reports
//! nothing else, `message`; what else it holds is written beside each command's code.

mod ask;
mod check;
mod connect;
pub mod demo;
pub mod grammar;
mod heal;
mod keywords;
mod peer;
mod registry;
mod tools;
mod volume;
mod volume_status;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use mortar_proto::control::Done;
use serde_json::{Value, json};

use connect::Session;
use grammar::{BrickCommand, Cli, Command, Global};

/// What a command says when it has something to say.
#[derive(Debug)]
pub struct Report {
    text: String,
    json: Value,
    verdict: Verdict,
}

/// Whether what a report tells is as it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Good,
    /// The command did what it was to do, and found something wrong: the exit status says so.
    Bad,
}

/// Why a command fails, in one sentence (gluster's wording may put the reason on a second line).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl Report {
    /// Words alone.
    fn words(text: impl Into<String>) -> Self {
        let text = text.into();
        Report {
            json: json!({ "message": text.trim_end() }),
            text,
            verdict: Verdict::Good,
        }
    }

    /// Words for people and an object for programs.
    fn new(text: String, json: Value) -> Self {
        Report {
            text,
            json,
            verdict: Verdict::Good,
        }
    }
}

impl From<crate::admin::Refusal> for Failure {
    fn from(refusal: crate::admin::Refusal) -> Self {
        Failure(refusal.0)
    }
}

/// Runs the command line of this process and prints what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Mount(mount) = &cli.command {
        return tools::mount(mount); // It forks: before any thread, and with its own exit status.
    }
    let json = cli.global.json;
    match run(cli) {
        Ok(report) => {
            let is_good = report.verdict == Verdict::Good;
            let text = if json {
                object(report.json, is_good)
            } else {
                report.text
            };
            let printed = print(&mut std::io::stdout(), &text);
            if is_good { printed } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            if json {
                print(
                    &mut std::io::stdout(),
                    &object(json!({ "message": failure.0 }), false),
                );
            }
            print(&mut std::io::stderr(), &failure.0);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<Report, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => demo::run(&args)
            .map(|()| Report::words(""))
            .map_err(Failure),
        Command::Daemon { options } => tools::daemon(options),
        Command::Completions { shell } => Ok(tools::completions(shell)),
        Command::Man { dir } => tools::man(&dir),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure(format!("cannot start: {error}")))?;
            runtime.block_on(administer(command, global))
        }
    }
}

async fn administer(command: Command, global: &Global) -> Result<Report, Failure> {
    let session = Session::new(global);
    match command {
        Command::Peer(command) => peer::run(command, &session).await,
        Command::Pool(command) => peer::pool(command, &session).await,
        Command::Volume(command) => volume::run(command, &session).await,
        Command::Brick(command) => brick(command, &session).await,
        Command::Registry(command) => registry::run(command, &session).await,
        // Answered without a brickd, before this is called.
        Command::Mount(_)
        | Command::Demo(_)
        | Command::Daemon { .. }
        | Command::Completions { .. }
        | Command::Man { .. } => Ok(Report::words("")),
    }
}

async fn brick(command: BrickCommand, session: &Session<'_>) -> Result<Report, Failure> {
    let (verb, name) = match &command {
        BrickCommand::Stop { brick } => ("stop", brick),
        BrickCommand::Start { brick } => ("start", brick),
    };
    let spec: crate::admin::BrickSpec = name.parse()?;
    let request = mortar_proto::control::BrickName {
        brick: spec.to_string(),
    };
    let mut client = session.client().await?;
    let done = match command {
        BrickCommand::Stop { .. } => session.call(client.brick_stop(request)).await?,
        BrickCommand::Start { .. } => session.call(client.brick_start(request)).await?,
    };
    finish(&format!("brick {verb}: {spec}"), done)
}

/// `WHAT: success`, `WHAT: success: words`, or `WHAT: failed: why`.
fn finish(what: &str, done: Done) -> Result<Report, Failure> {
    match (done.failed, done.message.as_str()) {
        (true, why) => Err(Failure(format!("{what}: failed: {why}"))),
        (false, "") => Ok(Report::words(format!("{what}: success"))),
        (false, words) => Ok(Report::words(format!("{what}: success: {words}"))),
    }
}

fn object(mut json: Value, ok: bool) -> String {
    if let Value::Object(map) = &mut json {
        map.insert("ok".to_owned(), Value::Bool(ok));
    }
    json.to_string()
}

/// Prints with exactly one newline at the end of non-empty text that lacks one. A reader that went
/// away (`| head`) is no failure of the command.
fn print(to: &mut dyn Write, text: &str) -> ExitCode {
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let written = to
        .write_all(text.as_bytes())
        .and_then(|()| to.write_all(end.as_bytes()))
        .and_then(|()| to.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests;
