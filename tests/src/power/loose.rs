//! Files that nobody fsyncs: a cut of all hosts may lose them, a cut of one may not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Expect, Work};

const NAME: &str = "loose";

#[derive(Default)]
pub(super) struct Loose {
    folder: PathBuf,
    tried: u64,
    acknowledged: u64,
}

/// How many whole loose files there are below the works' folder.
pub fn files_left(folder: &Path) -> u64 {
    (0u64..)
        .take_while(|number| is_whole(&folder.join(NAME), *number))
        .count() as u64
}

fn is_whole(folder: &Path, number: u64) -> bool {
    fs::read_to_string(folder.join(number.to_string())).is_ok_and(|text| text == content(number))
}

fn content(number: u64) -> String {
    format!("file {number}\n").repeat(100)
}

impl Work for Loose {
    fn name(&self) -> &'static str {
        NAME
    }

    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        self.folder = folder.to_owned();
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let number = self.tried;
        self.tried += 1;
        fs::write(self.folder.join(number.to_string()), content(number))?;
        self.acknowledged = self.tried;
        Ok(())
    }

    fn check(&mut self, folder: &Path, expect: Expect) -> Result<(), String> {
        let lost: Vec<u64> = (0..self.acknowledged)
            .filter(|number| !is_whole(folder, *number))
            .collect();
        match (expect, lost.first()) {
            (Expect::Everything, Some(first)) => Err(format!(
                "{} of {} files are lost or damaged, the first is {first}",
                lost.len(),
                self.acknowledged
            )),
            _ => Ok(()),
        }
    }
}
