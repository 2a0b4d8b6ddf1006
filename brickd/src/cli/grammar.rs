//! The grammar of the command line, as clap reads it. Where gluster uses keywords instead of flags
//! (`replica 2 transport tcp … force`) the words are taken as they come and read by `keywords`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admin::{DATA_DIR, PORT, SOCKET_NAME};

/// Administers a pool of Mortar peers and its volumes.
#[derive(Debug, Parser)]
#[command(
    name = "mortar",
    version,
    infer_subcommands = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Unambiguous beginnings of commands are accepted: 'mortar v i' is 'mortar volume info'."
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Answer yes to every question (script), or ask even when standard input is no terminal
    #[arg(long, global = true, value_enum)]
    pub mode: Option<Mode>,
    /// Ask the brickd of this host over the network instead of the local one
    #[arg(
        long,
        global = true,
        value_name = "HOST[:PORT]",
        visible_alias = "remote-host"
    )]
    pub host: Option<String>,
    /// The local brickd's admin socket
    #[arg(long, global = true, value_name = "PATH", env = "MORTAR_SOCKET")]
    #[arg(default_value_os_t = default_socket())]
    pub socket: PathBuf,
    /// Give up after so many seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 120)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

/// Whether questions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Every question is answered yes.
    Script,
    /// Questions are asked on whatever standard input is.
    Interactive,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Peers: the hosts of the pool
    #[command(subcommand, infer_subcommands = true)]
    Peer(PeerCommand),
    /// The pool as a whole
    #[command(subcommand, infer_subcommands = true)]
    Pool(PoolCommand),
    /// Volumes
    #[command(subcommand, infer_subcommands = true)]
    Volume(VolumeCommand),
    /// Single bricks
    #[command(subcommand, infer_subcommands = true)]
    Brick(BrickCommand),
    /// The registry that the peers keep together
    #[command(subcommand, infer_subcommands = true)]
    Registry(RegistryCommand),
    /// Mount a volume (as 'mount -t mortar' does)
    Mount(Mount),
    /// Show it all on this machine: three peers, a mount, a killed brick, a heal
    Demo(super::demo::DemoArgs),
    /// Run a brickd in this process, with its own options
    #[command(hide = true, disable_help_flag = true)]
    Daemon {
        /// The options of brickd
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<std::ffi::OsString>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        dir: PathBuf,
    },
}

/// `mortar peer …`
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Bring a host into the pool
    Probe {
        /// Its name or address, with :PORT if brickd does not listen on the usual one
        #[arg(value_name = "HOST[:PORT]")]
        peer: String,
    },
    /// Take a host out of the pool
    Detach {
        /// Its name or address
        #[arg(value_name = "HOST")]
        peer: String,
        /// 'force': also if it does not answer
        #[arg(value_name = "force")]
        words: Vec<String>,
    },
    /// Show the other peers and whether they are connected
    Status,
}

/// `mortar pool …`
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List all peers, this one too
    List,
}

/// `mortar volume …`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume of bricks: folders on the pool's hosts
    #[command(
        override_usage = "mortar volume create <NAME> [replica <COUNT>] [transport tcp] <HOST:/PATH>... [force]"
    )]
    Create {
        /// Its name: letters, digits, '-' and '_'
        name: String,
        /// How many copies, the transport (tcp), the bricks as HOST:/PATH, and force to skip checks
        #[arg(value_name = "WORDS", required = true)]
        words: Vec<String>,
    },
    /// Start a volume; 'force' also starts stopped bricks, 'force HOST:/PATH' trusts that brick
    #[command(override_usage = "mortar volume start <NAME> [force [HOST:/PATH]]")]
    Start {
        /// Its name
        name: String,
        /// force, and the brick to trust
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Stop a volume: its data is inaccessible until it is started again
    #[command(override_usage = "mortar volume stop <NAME> [force]")]
    Stop {
        /// Its name
        name: String,
        /// 'force': do not ask
        #[arg(value_name = "force")]
        words: Vec<String>,
    },
    /// Delete a stopped volume; the files stay in the brick folders
    #[command(override_usage = "mortar volume delete <NAME> [force]")]
    Delete {
        /// Its name
        name: String,
        /// 'force': do not ask
        #[arg(value_name = "force")]
        words: Vec<String>,
    },
    /// Show how volumes are made up
    Info {
        /// A volume's name, or all
        name: Option<String>,
    },
    /// List the volumes' names
    List,
    /// Show which bricks are online
    #[command(override_usage = "mortar volume status [<NAME>|all] [detail|clients]")]
    Status {
        /// A volume's name or all; detail or clients
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Set options, or show which there are ('volume set help')
    #[command(
        override_usage = "mortar volume set <NAME> <KEY> <VALUE>...\n       mortar volume set help"
    )]
    Set {
        /// The volume's name, or help
        name: String,
        /// One or more options, each with its value
        #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
        pairs: Vec<String>,
    },
    /// Show the value of an option
    Get {
        /// The volume's name
        name: String,
        /// The option, or all
        key: String,
    },
    /// Set options back to their defaults: one, or all
    #[command(override_usage = "mortar volume reset <NAME> [KEY] [force]")]
    Reset {
        /// The volume's name
        name: String,
        /// The option; none = all
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Give a brick's place to a new, empty one, which is filled from the copies in sync
    #[command(
        override_usage = "mortar volume replace-brick <NAME> <HOST:/PATH> <NEW-HOST:/PATH> commit force"
    )]
    ReplaceBrick {
        /// The volume's name
        name: String,
        /// The brick that goes, the one that comes, and commit force
        #[arg(value_name = "WORDS", required = true)]
        words: Vec<String>,
    },
    /// Fill a brick anew in the same folder: after 'start' empty it or change its disk, then 'commit'
    #[command(
        override_usage = "mortar volume reset-brick <NAME> <HOST:/PATH> {start | <HOST:/PATH> commit [force]}"
    )]
    ResetBrick {
        /// The volume's name
        name: String,
        /// The brick, and start; or the brick twice and commit, with force to give up its old content
        #[arg(value_name = "WORDS", required = true)]
        words: Vec<String>,
    },
    /// Heal copies that lack changes, or show what is pending
    #[command(
        override_usage = "mortar volume heal <NAME> [full|enable|disable|info [summary|split-brain]|split-brain {latest-mtime FILE|bigger-file FILE|source-brick HOST:BRICK [FILE]}|statistics heal-count]"
    )]
    Heal {
        /// The volume's name
        name: String,
        /// What to do; nothing = heal what is marked
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Compare all bricks of a volume that is in use, and report whatever is unequal or left over
    #[command(
        long_about = "Compares all bricks of a volume, which may be in use: names, types, modes, owners, sizes, times of \
        modification, extended attributes, links and every byte. Reports what is unequal, orphan handles, wrong link \
        counts, names that are no objects and stale marks, each once it has stayed so for some seconds. The exit status \
        is 0 when there is nothing to report. With --timeout the check may be silent for so long; it may take longer."
    )]
    Check {
        /// The volume's name
        name: String,
    },
}

/// `mortar brick …`
#[derive(Debug, Subcommand)]
pub enum BrickCommand {
    /// Take one brick down while its host lives
    Stop {
        /// HOST:/PATH
        brick: String,
    },
    /// Bring it up again
    Start {
        /// HOST:/PATH
        brick: String,
    },
}

/// `mortar registry …`
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Show leader, term, applied index, voters, and who lags
    Status,
    /// Begin a new pool from this peer's state alone, when the other voters are lost for good
    Recover {
        /// Needed: what only the others know is forgotten
        #[arg(long)]
        force: bool,
    },
}

/// `mortar mount …`
#[derive(Debug, Args)]
pub struct Mount {
    /// Hosts to ask first, the volume, and perhaps a folder in it
    #[arg(value_name = "HOST[,HOST...]:/VOLUME[/SUBDIR]")]
    pub source: String,
    /// Where to mount it
    #[arg(value_name = "MOUNTPOINT")]
    pub mount_point: PathBuf,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// `HOST[:PORT]` as an address to connect to, the usual port when none is given.
pub fn host_and_port(host: &str) -> String {
    let port_of = |text: &str| text.parse::<u16>().is_ok();
    match host.rsplit_once(':') {
        Some((name, port)) if port_of(port) && (!name.contains(':') || name.ends_with(']')) => {
            host.to_owned()
        }
        Some(_) if !host.starts_with('[') => format!("[{host}]:{PORT}"),
        _ => format!("{host}:{PORT}"),
    }
}

fn default_socket() -> PathBuf {
    PathBuf::from(DATA_DIR).join(SOCKET_NAME)
}
