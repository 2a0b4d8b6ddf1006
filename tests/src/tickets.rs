//! A workload that tells at once whether two sides of a partition both acknowledge: clients take
//! numbered tickets, each by making a file that must not exist. Whoever goes on alone takes the
//! next number, and so does the other side, if there is one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cluster::wait_until;

/// Between two tickets of one client.
const PACE: Duration = Duration::from_millis(20);
const GOES_ON_WITHIN: Duration = Duration::from_secs(60);

/// The tickets of one round, in a folder of its own.
pub struct Tickets {
    folder: PathBuf,
    /// Who holds a ticket, and whether its text was synced.
    taken: Mutex<BTreeMap<u64, Ticket>>,
    violations: Mutex<Vec<String>>,
    stop: AtomicBool,
    /// Attempts of each client that were answered.
    done: Vec<AtomicU64>,
}

/// A ticket that was given out.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    client: usize,
    synced: bool,
}

impl Tickets {
    /// For so many clients, in the folder `name` of a volume's root, which exists already.
    pub fn new(name: &str, clients: usize) -> Self {
        Tickets {
            folder: name.into(),
            taken: Mutex::default(),
            violations: Mutex::default(),
            stop: AtomicBool::new(false),
            done: (0..clients).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Takes tickets as client number `client` over `mount` until told to stop.
    pub fn work(&self, client: usize, mount: &Path) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let path = mount.join(&self.folder).join(number.to_string());
            match File::create_new(&path) {
                Ok(file) => {
                    self.took(number, client);
                    self.fill(number, client, file);
                    std::thread::sleep(PACE);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => self.violated(format!("client {client}, {number}: {error}")),
            }
            self.done[client].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn took(&self, number: u64, client: usize) {
        let ticket = Ticket {
            client,
            synced: false,
        };
        if let Some(other) = lock(&self.taken).insert(number, ticket) {
            self.violated(format!(
                "ticket {number} was given to client {} and to client {client}",
                other.client
            ));
        }
    }

    fn fill(&self, number: u64, client: usize, mut file: File) {
        let written = file
            .write_all(text(number, client).as_bytes())
            .and_then(|()| file.sync_all());
        match written {
            Ok(()) => {
                if let Some(ticket) = lock(&self.taken).get_mut(&number) {
                    ticket.synced = true;
                }
            }
            Err(error) => self.violated(format!("client {client}, text of {number}: {error}")),
        }
    }

    /// How many were given out until now.
    pub fn given(&self) -> u64 {
        lock(&self.taken).len() as u64
    }

    /// Waits until every client was answered again.
    ///
    /// # Panics
    /// When one is not within a minute.
    #[track_caller]
    pub fn wait_for_all(&self) {
        let answered = || -> Vec<u64> {
            self.done
                .iter()
                .map(|one| one.load(Ordering::Relaxed))
                .collect()
        };
        let before = answered();
        wait_until(GOES_ON_WITHIN, "every client is answered", || {
            answered()
                .iter()
                .zip(&before)
                .all(|(now, before)| *now > before + 2)
        });
    }

    /// Lets the clients end after the attempt they are at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What must not be, so far; then, over `mount`, that nothing given out is missing or another's.
    pub fn violations(&self, mount: &Path) -> Vec<String> {
        let mut found = lock(&self.violations).clone();
        for (number, ticket) in lock(&self.taken).iter() {
            let path = mount.join(&self.folder).join(number.to_string());
            let wanted = text(*number, ticket.client);
            // Also at once, through another mount than the one that wrote it.
            match fs::read_to_string(&path) {
                Ok(read) if !ticket.synced || read == wanted => {}
                other => found.push(format!("{number} of {ticket:?} is {other:?}")),
            }
        }
        found
    }

    fn violated(&self, what: String) {
        lock(&self.violations).push(what);
    }
}

fn text(number: u64, client: usize) -> String {
    format!("ticket {number} of client {client}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folders: [&Path; 2]) -> Tickets {
        let tickets = Tickets::new("round", 2);
        for folder in folders {
            fs::create_dir_all(folder.join("round")).unwrap();
        }
        std::thread::scope(|scope| {
            for (client, folder) in folders.into_iter().enumerate() {
                let tickets = &tickets;
                scope.spawn(move || tickets.work(client, folder));
            }
            tickets.wait_for_all();
            tickets.stop();
        });
        tickets
    }

    #[test]
    fn one_folder_gives_each_ticket_once_and_two_are_found_out() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tickets = run([one.path(), one.path()]);
        assert!(tickets.given() > 0);
        assert_eq!(tickets.violations(one.path()), Vec::<String>::new());
        fs::write(one.path().join("round/0"), "lost").unwrap();
        assert_eq!(tickets.violations(one.path()).len(), 1);

        let split = run([one.path(), other.path()]).violations(other.path());
        assert!(!split.is_empty(), "two histories were not noticed");
    }
}
