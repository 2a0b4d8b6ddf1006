//! `mortar`: administers a pool.

fn main() -> std::process::ExitCode {
    brickd::cli::main()
}
