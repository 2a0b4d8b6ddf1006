//! `mount.mortar`: mounts a Mortar volume.

use std::process::ExitCode;

fn main() -> ExitCode {
    fuse_client::mount::main()
}
