//! A small tree in which names come, move, are replaced and go, each change with an fsync of the
//! file and of the directories.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Expect, Work};
use crate::simulator::Random;

const FOLDERS: usize = 3;
const NAMES: usize = 12;

/// What each path holds.
type Model = BTreeMap<PathBuf, u64>;

pub(super) struct Names {
    folder: PathBuf,
    random: Random,
    made: u64,
    acknowledged: Model,
    /// What holds if the step under way comes to its end.
    tried: Model,
    /// The file that is being made: its content may not be there yet.
    unfinished: Option<PathBuf>,
}

impl Names {
    pub fn new(seed: u64) -> Self {
        Names {
            folder: PathBuf::new(),
            random: Random::new(seed),
            made: 0,
            acknowledged: Model::new(),
            tried: Model::new(),
            unfinished: None,
        }
    }

    fn any_path(&mut self) -> PathBuf {
        let (folder, name) = (self.random.below(FOLDERS), self.random.below(NAMES));
        PathBuf::from(format!("d{folder}/n{name}"))
    }

    fn any_there(&mut self) -> Option<PathBuf> {
        let count = self.acknowledged.len().max(1);
        let at = self.random.below(count);
        self.acknowledged.keys().nth(at).cloned()
    }

    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap_or(path);
        File::open(self.folder.join(parent))?.sync_all()
    }

    fn make(&mut self, path: PathBuf) -> io::Result<()> {
        self.made += 1;
        self.tried.insert(path.clone(), self.made);
        self.unfinished = Some(path.clone());
        let mut file = File::create_new(self.folder.join(&path))?;
        file.write_all(content(self.made).as_bytes())?;
        file.sync_all()?;
        self.sync_parent(&path)
    }

    fn rename(&mut self, from: &Path, to: PathBuf) -> io::Result<()> {
        if let Some(moved) = self.tried.remove(from) {
            self.tried.insert(to.clone(), moved);
        }
        fs::rename(self.folder.join(from), self.folder.join(&to))?;
        self.sync_parent(&to)?;
        self.sync_parent(from)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.tried.remove(path);
        fs::remove_file(self.folder.join(path))?;
        self.sync_parent(path)
    }
}

impl Work for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        self.folder = folder.to_owned();
        for number in 0..FOLDERS {
            fs::create_dir(folder.join(format!("d{number}")))?;
            File::open(folder.join(format!("d{number}")))?.sync_all()?;
        }
        File::open(folder)?.sync_all()
    }

    fn step(&mut self) -> io::Result<()> {
        let path = self.any_path();
        let there = self.any_there();
        match (there, self.random.below(4)) {
            (Some(from), 0 | 1) if from != path => self.rename(&from, path)?,
            (Some(there), 2) => self.remove(&there)?,
            _ if !self.acknowledged.contains_key(&path) => self.make(path)?,
            _ => {}
        }
        self.acknowledged = self.tried.clone();
        self.unfinished = None;
        Ok(())
    }

    fn check(&mut self, folder: &Path, _expect: Expect) -> Result<(), String> {
        let mut found = Model::new();
        for number in 0..FOLDERS {
            let name = PathBuf::from(format!("d{number}"));
            let entries = fs::read_dir(folder.join(&name)).map_err(|error| error.to_string())?;
            for entry in entries {
                let path = name.join(entry.map_err(|error| error.to_string())?.file_name());
                let text = fs::read_to_string(folder.join(&path))
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                let number = text
                    .split_once('\n')
                    .and_then(|(first, _)| first.parse().ok());
                let whole = number.filter(|number| text == content(*number));
                // The file under way counts as there, or as not there, with any content.
                let number = match whole {
                    None if self.unfinished.as_ref() == Some(&path) => self.tried[&path],
                    None => return Err(format!("{} is damaged: {text:?}", path.display())),
                    Some(number) => number,
                };
                found.insert(path, number);
            }
        }
        if found != self.acknowledged && found != self.tried {
            return Err(format!(
                "there is {found:?}\nfsynced was {:?}\nor after the step under way {:?}",
                self.acknowledged, self.tried
            ));
        }
        Ok(())
    }
}

fn content(number: u64) -> String {
    format!("{number}\n{}", "x".repeat(number as usize * 331 % 9000))
}
