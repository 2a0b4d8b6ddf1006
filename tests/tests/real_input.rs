//! Real programs on real input, each once with a brick killed in the middle and started again.

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::cluster::run;
use tests::outage::{end, files_below, mounted, size_of, through_an_outage, within};
use tests::{scale, trees};

fn shell(script: &str, folder: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(folder);
    // A repository that belongs to another user is cloned all the same.
    command.env("GIT_CONFIG_COUNT", "1");
    command
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*");
    for name in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "RUSTFLAGS",
        "GIT_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

#[test]
fn git_clones_this_repository_and_finds_it_whole() {
    let (cluster, mount) = mounted();
    let clones = scale::pick(3, 10);
    let script = format!(
        "set -e; i=0; while [ $i -lt {clones} ]; do git clone -q --no-local '{}' w$i; \
         git -C w$i fsck --full --strict; git -C w$i status --porcelain; i=$((i+1)); done",
        trees::repository().display()
    );
    let seen = cluster.brick("gfs02").join("w1");
    let cloned = shell(&script, mount.path());
    let ran = through_an_outage(&cluster, "gfs01", cloned, within(), || seen.exists());
    assert_eq!(ran.stdout, "", "git status sees changes in a fresh clone");
    for number in 0..clones {
        let check = "git fsck --full --strict && git status --porcelain";
        let checked = run(shell(check, &mount.join(format!("w{number}"))), within());
        assert_eq!(checked.ok(), "");
    }
    end(&cluster, mount);
}

#[test]
fn tar_brings_source_files_in_and_out() {
    let files = scale::pick(3_000, 20_000);
    let (cluster, mount) = mounted();
    let (input, output) = (cluster.folder("input"), cluster.folder("output"));
    trees::copy_sources(&input, files);
    let script = format!("tar -C '{}' -cf - . | tar -xf -", input.display());
    let brick = cluster.brick("gfs02");
    through_an_outage(
        &cluster,
        "gfs01",
        shell(&script, mount.path()),
        within(),
        || files_below(&brick) > files / 4,
    );
    let back = format!("tar -C '{}' -cf - . | tar -xf -", mount.path().display());
    run(shell(&back, &output), within()).ok();
    let diff = format!("diff -r '{}' '{}'", input.display(), output.display());
    run(shell(&diff, &input), within()).ok();
    end(&cluster, mount);
}

#[test]
fn rsync_says_that_nothing_differs() {
    let files = scale::pick(1_500, 20_000);
    let (cluster, mount) = mounted();
    let input = cluster.folder("input");
    trees::copy_sources(&input, files);
    let copy = format!("rsync -a '{}/' ./", input.display());
    let brick = cluster.brick("gfs01");
    through_an_outage(
        &cluster,
        "gfs02",
        shell(&copy, mount.path()),
        within(),
        || files_below(&brick) > files / 4,
    );
    let check = format!(
        "rsync -a --checksum --dry-run --itemize-changes '{}/' ./",
        input.display()
    );
    assert_eq!(
        run(shell(&check, mount.path()), within()).ok(),
        "",
        "rsync finds differences"
    );
    end(&cluster, mount);
}

/// Many small transactions, a brick killed among them.
fn sqlite(journal: &str, grows: &str) {
    let transactions = scale::pick(400, 5_000);
    let (cluster, mount) = mounted();
    let script = format!(
        "set -e; {{ echo 'PRAGMA journal_mode={journal}; CREATE TABLE t(n INTEGER, text BLOB);'; \
         i=0; while [ $i -lt {transactions} ]; do \
         echo \"BEGIN; INSERT INTO t VALUES($i, randomblob(2000)); COMMIT;\"; i=$((i+1)); done; }} \
         | sqlite3 -bail db"
    );
    let file = cluster.brick("gfs02").join(grows);
    let ran = through_an_outage(
        &cluster,
        "gfs01",
        shell(&script, mount.path()),
        within(),
        || size_of(&file) > 100_000,
    );
    assert_eq!(ran.stdout.trim(), journal);
    let check = "sqlite3 db 'PRAGMA integrity_check; SELECT count(*), max(n) FROM t;'";
    let said = run(shell(check, mount.path()), within()).ok();
    assert_eq!(
        said.trim(),
        format!("ok\n{transactions}|{}", transactions - 1)
    );
    end(&cluster, mount);
}

#[test]
fn sqlite_with_a_rollback_journal() {
    sqlite("delete", "db");
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    sqlite("wal", "db-wal");
}

#[test]
fn cargo_builds_in_the_mount() {
    let (cluster, mount) = mounted();
    let script = if scale::is_full() {
        format!(
            "set -e; git clone -q --no-local '{}' w; cd w; cargo build --offline --quiet",
            trees::repository().display()
        )
    } else {
        small_crate(&mount.join("w"));
        "set -e; cd w; for n in 1 2 3; do cargo build --offline --quiet; touch src/*.rs; done; \
         cargo run --offline --quiet"
            .to_owned()
    };
    let target = cluster.brick("gfs02").join("w/target/debug");
    let ran = through_an_outage(
        &cluster,
        "gfs01",
        shell(&script, mount.path()),
        within(),
        || files_below(&target) > 2,
    );
    if !scale::is_full() {
        assert_eq!(ran.stdout.trim(), "3240");
    }
    end(&cluster, mount);
}

/// A crate without dependencies, of modules enough for rustc to work in parallel.
fn small_crate(folder: &Path) {
    const MODULES: usize = 40;
    fs::create_dir_all(folder.join("src")).unwrap();
    let manifest =
        "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    let mut main = String::new();
    for number in 0..MODULES {
        let module = format!(
            "pub fn value(seed: u64) -> u64 {{\n    let words: Vec<String> = (0..seed).map(|n| \
             format!(\"{{n}}\")).collect();\n    words.len() as u64 + {number}\n}}\n"
        );
        fs::write(folder.join(format!("src/m{number}.rs")), module).unwrap();
        main.push_str(&format!("mod m{number};\n"));
    }
    let calls: Vec<String> = (0..MODULES)
        .map(|number| format!("m{number}::value({number} + 42)"))
        .collect();
    main.push_str(&format!(
        "fn main() {{\n    println!(\"{{}}\", {});\n}}\n",
        calls.join(" + ")
    ));
    fs::write(folder.join("src/main.rs"), main).unwrap();
}
