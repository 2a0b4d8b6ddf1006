//! SQLite shared by two processes of one mount and by two mounts, and PostgreSQL.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tests::cluster::{Allowed, Cluster, Mount, Running, run, wait_until};
use tests::outage::{end, mounted, within};
use tests::scale;
use tests::sqlite::Sqlite;

use super::{Bricks, script, work};

/// Rows that `who` puts into a table, each in a transaction of its own.
fn inserts(who: &str, rows: usize) -> String {
    format!(
        "i=0; while [ $i -lt {rows} ]; do sqlite3 -bail -cmd '.timeout 120000' db \
         \"BEGIN IMMEDIATE; INSERT INTO t VALUES('{who}', $i, randomblob(1000)); COMMIT;\"; \
         i=$((i+1)); done"
    )
}

fn make(cluster: &Cluster, folder: &Path, journal: &str) {
    let make = format!(
        "sqlite3 -bail db 'PRAGMA journal_mode={journal}; \
         CREATE TABLE t(who TEXT, n INTEGER, bytes BLOB, UNIQUE(who, n));'"
    );
    run(script(cluster, folder, &make), within()).ok();
}

fn check(cluster: &Cluster, folder: &Path, rows: usize) {
    let check = "sqlite3 db 'PRAGMA integrity_check; SELECT who, count(*), max(n) FROM t \
                 GROUP BY who ORDER BY who;'";
    let said = run(script(cluster, folder, check), within()).ok();
    let last = rows - 1;
    assert_eq!(said, format!("ok\na|{rows}|{last}\nb|{rows}|{last}\n"));
}

fn write_ahead_log_of_two_processes(bricks: Bricks) {
    let rows = scale::pick(60, 1_000);
    let (cluster, mount) = mounted();
    make(&cluster, mount.path(), "wal");
    // A third that stays connected keeps the log and its shared memory from being removed.
    let text = format!(
        "mkfifo \"$MIDDLE.hold\"; sqlite3 db <\"$MIDDLE.hold\" & exec 9>\"$MIDDLE.hold\"; \
         echo 'SELECT count(*) FROM t;' >&9; \
         ({}) & a=$!; ({}; : >\"$MIDDLE\"; {}) & b=$!; wait $a; wait $b; exec 9>&-; wait",
        inserts("a", rows),
        inserts("b", rows / 2),
        inserts("b", rows).replace("i=0", &format!("i={}", rows / 2)),
    );
    work(&cluster, &mount, bricks, &text);
    check(&cluster, mount.path(), rows);
    end(&cluster, mount);
}

#[test]
fn sqlite_with_a_write_ahead_log_by_two_processes() {
    write_ahead_log_of_two_processes(Bricks::Stay);
}

#[test]
fn sqlite_with_a_write_ahead_log_by_two_processes_and_a_lost_brick() {
    write_ahead_log_of_two_processes(Bricks::Lose("gfs01"));
}

fn rollback_journal_from_two_mounts(bricks: Bricks) {
    let rows = scale::pick(60, 1_000);
    let (cluster, mount) = mounted();
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    make(&cluster, mount.path(), "delete");
    let one = Running::start(script(&cluster, other.path(), &inserts("a", rows)));
    let text = format!(
        "{}; : >\"$MIDDLE\"; {}",
        inserts("b", rows / 3),
        inserts("b", rows).replace("i=0", &format!("i={}", rows / 3)),
    );
    work(&cluster, &mount, bricks, &text);
    one.finish(within()).ok();
    check(&cluster, mount.path(), rows);
    check(&cluster, other.path(), rows);
    other.unmount();
    end(&cluster, mount);
}

#[test]
fn sqlite_with_a_rollback_journal_from_two_mounts() {
    rollback_journal_from_two_mounts(Bricks::Stay);
}

#[test]
fn sqlite_with_a_rollback_journal_from_two_mounts_and_a_lost_brick() {
    rollback_journal_from_two_mounts(Bricks::Lose("gfs02"));
}

/// Defines `pg PROGRAM ARGUMENTS`, which runs one of PostgreSQL's programs as its user, and `start`.
/// The socket lies outside of the volume, so nothing listens on a port.
fn postgres(socket: &Path) -> String {
    format!(
        "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1); \
         as='setpriv --reuid postgres --regid postgres --init-groups'; \
         pg() {{ program=$1; shift; $as $bin/$program \"$@\"; }}; sock='{0}'; \
         start() {{ pg pg_ctl -D pg -s -w -t 120 -l pg/log -o \"-k $sock -c listen_addresses=\" start; }}; \
         ",
        socket.display()
    )
}

/// Money that was moved is neither lost nor made, indexes agree with their tables, and every
/// transaction that was reported as done is in the history.
fn postgres_keeps_its_books(bricks: Bricks) {
    let seconds = scale::pick(6, 60);
    let (cluster, mount) = mounted();
    let socket = cluster.folder("socket");
    run(script(&cluster, &socket, "chmod 1777 ."), within()).ok();
    let begin = postgres(&socket);
    let text = format!(
        "{begin} chmod 755 .; install -d -o postgres -g postgres -m 700 pg; \
         pg initdb -k -D pg -A trust >/dev/null; start; \
         pg pgbench -h $sock -i -s 1 -q postgres 2>/dev/null; : >\"$MIDDLE\"; \
         pg pgbench -h $sock -n -c 3 -T {seconds} postgres 2>/dev/null \
         | sed -n 's/^number of transactions actually processed: //p'"
    );
    let said = work(&cluster, &mount, bricks, &text).stdout;
    let reported: u64 = said
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("no count in {said:?}"));
    assert!(reported > 0, "nothing was done");
    crash_and_recover(&cluster, &mount, &begin);
    let text = format!(
        "{begin} pg psql -h $sock -qAt postgres -c \"CREATE EXTENSION amcheck; \
         SELECT count(bt_index_check(oid, true)) > 100 FROM pg_class WHERE relkind = 'i' AND relam = 403; \
         SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), \
         (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history), \
         (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history), \
         (SELECT count(*) FROM pgbench_history) >= {reported};\"; \
         pg pg_ctl -D pg -s -w -t 120 -m fast stop; pg pg_checksums --check -D pg >/dev/null"
    );
    let said = run(script(&cluster, mount.path(), &text), within()).ok();
    assert_eq!(said, "t\nt|t|t|t\n");
    end(&cluster, mount);
}

/// SIGKILL of the server and of all its processes while clients work; then it starts again.
fn crash_and_recover(cluster: &Cluster, mount: &Mount, begin: &str) {
    let text = format!(
        "{begin} pg pgbench -h $sock -n -c 3 -T 60 postgres >/dev/null 2>&1 & \
         bench=$!; before=$(pg psql -h $sock -qAt postgres -c 'SELECT count(*) FROM pgbench_history'); \
         until [ $(pg psql -h $sock -qAt postgres -c 'SELECT count(*) FROM pgbench_history') -gt $before ]; \
         do sleep 0.1; done; \
         main=$(head -n 1 pg/postmaster.pid); all=\"$main $(ps -o pid= --ppid $main)\"; \
         kill -9 $all; wait $bench || true; \
         for pid in $all; do while kill -0 $pid 2>/dev/null; do sleep 0.1; done; done; \
         start; grep -q 'automatic recovery in progress' pg/log"
    );
    run(script(cluster, mount.path(), &text), within()).ok();
}

#[test]
fn postgresql_recovers_from_a_crash() {
    postgres_keeps_its_books(Bricks::Stay);
}

#[test]
fn postgresql_recovers_from_a_crash_after_a_lost_brick() {
    postgres_keeps_its_books(Bricks::Lose("gfs01"));
}

/// Every copy is started anew in the middle of a transaction, which loses its lock. A read under it
/// answers EIO, of which SQLite says that the database is malformed. It is not.
#[test]
fn sqlite_that_lost_its_lock_reads_nothing_and_the_database_is_whole() {
    let cluster = Cluster::three_peers();
    let source = "gfs01,gfs02,gfs03:/v01";
    let mount = cluster.mount("client", source, "");
    let other = cluster.mount("client", source, "");
    // Made over the other mount, and longer than what is read ahead.
    let mut made = Sqlite::start(&other.join("db")).unwrap();
    let rows = made.ask(
        "CREATE TABLE a(n INTEGER); INSERT INTO a VALUES(1); CREATE TABLE b(bytes BLOB); \
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 1500) \
         INSERT INTO b SELECT randomblob(3000) FROM c; SELECT count(*) FROM b;",
    );
    assert_eq!(rows.as_deref(), Ok("1500"));
    let mut sqlite = Sqlite::start(&mount.join("db")).unwrap();
    let one = sqlite.ask("BEGIN IMMEDIATE; UPDATE a SET n = 2; SELECT n FROM a;");
    assert_eq!(one.as_deref(), Ok("2"));

    let bricks = ["gfs01", "gfs02"].map(|name| cluster.host(name));
    bricks
        .iter()
        .for_each(|host| host.signal_brickd(Signal::KILL));
    bricks.iter().for_each(|host| host.kill_brickd());
    bricks.iter().for_each(|host| host.start_brickd());
    let lost = "locks are lost";
    wait_until(within(), "the client knows that its lock is lost", || {
        let logs = cluster.host("client").logs();
        let mut texts = logs.iter().map(|log| fs::read_to_string(log).unwrap());
        texts.any(|text| text.contains(lost))
    });
    let read = sqlite.ask("SELECT sum(length(bytes)) FROM b;").unwrap_err();
    assert!(read.contains("os error 5)"), "{read}");
    drop(sqlite);
    for mount in [&mount, &other] {
        let mut sqlite = Sqlite::start(&mount.join("db")).unwrap();
        let [sound, n, sum] = sqlite
            .ask_for("PRAGMA integrity_check; SELECT n FROM a; SELECT sum(length(bytes)) FROM b;")
            .unwrap();
        assert_eq!([&*sound, &*n, &*sum], ["ok", "1", "4500000"]);
    }
    drop(made);
    cluster.assert_healed_and_equal();
    mount.unmount();
    other.unmount();
    cluster.assert_logs_clean(&[Allowed {
        text: lost,
        why: "the transaction had one",
    }]);
}
