//! Names that several clients make, replace, move and remove.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::{Program, bytes_of, token, token_in};
use crate::faults::history::{Answer, Name, Op, Space, Token};
use crate::faults::seats::{Root, Seat};

const NAMES: u8 = 8;
/// Names of [`Space::Files`] in each of its folders.
const NAMES_A_FOLDER: u8 = 4;
const PROGRAM: u8 = 3;
const ID: &str = "id";

#[derive(Default)]
pub(super) struct Names {
    made: u64,
}

pub(super) fn prepare(folder: &Path) {
    for name in ["files0", "files1", "trees", "private"] {
        fs::create_dir(folder.join(name)).expect("a folder");
    }
}

fn path_of(folder: &Path, name: Name) -> PathBuf {
    match name.space {
        Space::Files => folder.join(format!(
            "files{}/n{}",
            name.index / NAMES_A_FOLDER,
            name.index
        )),
        Space::Trees => folder.join(format!("trees/n{}", name.index)),
    }
}

/// A place that nobody else knows.
fn private(folder: &Path, token: Token) -> PathBuf {
    folder.join(format!("private/{:016x}", token.0))
}

fn content(token: Token) -> Vec<u8> {
    bytes_of(token, 16 + (token.0.wrapping_mul(331) % 9000) as usize)
}

fn all_names(space: Space) -> impl Iterator<Item = Name> {
    (0..NAMES).map(move |index| Name { space, index })
}

pub(super) fn read_all(seat: &Seat, root: &Root) {
    let folder = root.path.join(&seat.folder);
    for space in [Space::Files, Space::Trees] {
        all_names(space).for_each(|name| look(seat, &folder, name));
        list(seat, &folder, space);
    }
}

fn look(seat: &Seat, folder: &Path, name: Name) {
    let path = path_of(folder, name);
    let path = match name.space {
        Space::Files => path,
        Space::Trees => path.join(ID),
    };
    seat.run(Op::Look(name), || match fs::read(path) {
        Ok(bytes) if bytes.is_empty() && name.space == Space::Files => Ok(Answer::Empty),
        Ok(bytes) => Ok(token_in(&bytes)),
        Err(error) => absent_if_not_found(error),
    });
}

fn list(seat: &Seat, folder: &Path, space: Space) {
    let folders: &[&str] = match space {
        Space::Files => &["files0", "files1"],
        Space::Trees => &["trees"],
    };
    seat.run(Op::List(space), || {
        let mut names = Vec::new();
        for below in folders {
            for entry in fs::read_dir(folder.join(below))? {
                let name = entry?.file_name();
                let index = name
                    .to_str()
                    .and_then(|name| name.strip_prefix('n')?.parse().ok());
                match index {
                    Some(index) => names.push(Name { space, index }),
                    None => return Ok(Answer::Torn(format!("a name {}", name.display()))),
                }
            }
        }
        Ok(Answer::Names(names))
    });
}

fn absent_if_not_found(error: io::Error) -> io::Result<Answer> {
    match error.kind() {
        ErrorKind::NotFound => Ok(Answer::Absent),
        _ => Err(error),
    }
}

fn done_or(result: io::Result<()>) -> io::Result<Answer> {
    match result {
        Ok(()) => Ok(Answer::Done),
        Err(error) if is_taken(&error) => Ok(Answer::Taken),
        Err(error) => absent_if_not_found(error),
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty
    )
}

impl Names {
    fn next(&mut self, seat: &Seat) -> Token {
        self.made += 1;
        token(seat.client.id, PROGRAM, self.made)
    }

    fn change_file(&mut self, seat: &mut Seat, folder: &Path, name: Name) {
        let path = path_of(folder, name);
        match seat.random.below(4) {
            0 => self.make_file(seat, name, &path),
            1 => {
                let token = self.next(seat);
                let whole = private(folder, token);
                let prepared = seat.run(Op::Other("write a file"), || {
                    fs::write(&whole, content(token)).map(|()| Answer::Done)
                });
                if prepared.is_some() {
                    seat.run(Op::Put(name, token), || {
                        fs::rename(&whole, &path).map(|()| Answer::Done)
                    });
                }
            }
            2 => {
                seat.run(Op::Remove(name), || done_or(fs::remove_file(&path)));
            }
            _ => move_name(seat, folder, name),
        }
    }

    fn make_file(&mut self, seat: &mut Seat, name: Name, path: &Path) {
        let token = self.next(seat);
        let mut file = None;
        seat.run(Op::Make(name, token), || match File::create_new(path) {
            Ok(made) => {
                file = Some(made);
                Ok(Answer::Done)
            }
            Err(error) if is_taken(&error) => Ok(Answer::Taken),
            Err(error) => Err(error),
        });
        if let Some(mut file) = file {
            seat.run(Op::Fill(token), || {
                file.write_all(&content(token)).map(|()| Answer::Done)
            });
        }
    }

    fn change_tree(&mut self, seat: &mut Seat, folder: &Path, name: Name) {
        let path = path_of(folder, name);
        match seat.random.below(3) {
            0 => {
                let token = self.next(seat);
                let whole = private(folder, token);
                let prepared = seat.run(Op::Other("make a tree"), || {
                    fs::create_dir(&whole)?;
                    fs::write(whole.join(ID), content(token)).map(|()| Answer::Done)
                });
                if prepared.is_none() {
                    return;
                }
                let made = seat.run(Op::Make(name, token), || done_or(fs::rename(&whole, &path)));
                if made == Some(Answer::Taken) {
                    remove_tree(seat, &whole);
                }
            }
            1 => {
                let aside = private(folder, self.next(seat));
                let removed = seat.run(Op::Remove(name), || match fs::rename(&path, &aside) {
                    Ok(()) => Ok(fs::read(aside.join(ID)).map_or(Answer::Done, |b| token_in(&b))),
                    Err(error) => absent_if_not_found(error),
                });
                if removed.is_some_and(|removed| removed != Answer::Absent) {
                    remove_tree(seat, &aside);
                }
            }
            _ => move_name(seat, folder, name),
        }
    }
}

fn move_name(seat: &mut Seat, folder: &Path, from: Name) {
    let to = Name {
        space: from.space,
        index: (from.index + 1 + seat.random.below(usize::from(NAMES) - 1) as u8) % NAMES,
    };
    seat.run(Op::Move(from, to), || {
        done_or(fs::rename(path_of(folder, from), path_of(folder, to)))
    });
}

/// Removes a tree that is this program's alone.
fn remove_tree(seat: &Seat, tree: &Path) {
    seat.run(Op::Other("remove a tree"), || {
        fs::remove_file(tree.join(ID))?;
        fs::remove_dir(tree).map(|()| Answer::Done)
    });
}

impl Program for Names {
    fn step(&mut self, seat: &mut Seat, root: &Root) {
        let folder = root.path.join(&seat.folder);
        let space = if seat.random.chance(60) {
            Space::Files
        } else {
            Space::Trees
        };
        let name = Name {
            space,
            index: seat.random.below(usize::from(NAMES)) as u8,
        };
        match (seat.random.below(100), space) {
            (0..40, _) => look(seat, &folder, name),
            (40..45, _) => list(seat, &folder, space),
            (_, Space::Files) => self.change_file(seat, &folder, name),
            (_, Space::Trees) => self.change_tree(seat, &folder, name),
        }
    }
}
