//! What becomes of one name of the side that merges. Pure: what both sides hold in, what to do
//! out. Whether the base changed something too is judged there, as the request arrives.

use mortar_common::Gfid;
use mortar_proto::data::Object;

/// `cluster.favorite-child-policy`: which version of a file that both sides changed is taken
/// without asking.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Favorite {
    /// Nobody decides: a conflict.
    #[default]
    None,
    /// The bigger one.
    Size,
    /// The one changed last, by ctime.
    Ctime,
    /// The one written last, by mtime.
    Mtime,
    /// The one that most copies have; of two nobody has a majority.
    Majority,
}

/// `cluster.split-unit`: what is decided at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Unit {
    /// Each file by itself.
    #[default]
    File,
    /// The whole volume: nothing is merged.
    Volume,
}

/// Which of two versions a policy, or a command, takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Winner {
    /// The side that went on.
    Base,
    /// The other.
    Other,
    /// Neither: they do not differ in what is looked at, or nobody said.
    Nobody,
}

/// The version that `favorite` takes.
pub fn favorite(favorite: Favorite, base: &Object, other: &Object) -> Winner {
    let time = |time: Option<mortar_proto::data::Time>| time.map(|it| (it.secs, it.nanos));
    let order = match favorite {
        Favorite::None | Favorite::Majority => std::cmp::Ordering::Equal,
        Favorite::Size => other.size.cmp(&base.size),
        Favorite::Ctime => time(other.ctime).cmp(&time(base.ctime)),
        Favorite::Mtime => time(other.mtime).cmp(&time(base.mtime)),
    };
    match order {
        std::cmp::Ordering::Less => Winner::Base,
        std::cmp::Ordering::Greater => Winner::Other,
        std::cmp::Ordering::Equal => Winner::Nobody,
    }
}

/// What the base holds under a name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory(Gfid),
    /// Anything else.
    File(Gfid),
}

impl Held {
    /// Of a lookup's answer.
    pub fn of(found: Option<&Object>) -> Held {
        let Some(gfid) = found.and_then(|object| object.gfid) else {
            return Held::Nothing;
        };
        match found.is_some_and(|object| object.mode & libc::S_IFMT == libc::S_IFDIR) {
            true => Held::Directory(gfid),
            false => Held::File(gfid),
        }
    }
}

/// What a name holds on the side that merges, and what of that it changed alone.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mine {
    /// What it holds.
    pub gfid: Gfid,
    /// The name was changed alone: made, or moved here.
    pub name: Change,
    /// The object was: content, owner, mode or xattrs.
    pub object: Change,
}

/// Whether something was changed alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was.
    Alone,
    /// It is as it was when both sides were one.
    Common,
}

/// What becomes of a name that holds a file here.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step {
    /// It is in place, or the base's to say.
    Nothing,
    /// The base has the object, under another name: it gets this one too, or is moved here.
    Name,
    /// The base has nothing here: the file is brought whole.
    Bring,
    /// The base has this file here: what it has is replaced, unless it changed it too.
    Replace(Gfid),
    /// A directory is in the way: kept as a version.
    Keep(Gfid),
}

/// What becomes of a name that holds a file on the side that merges.
///
/// `brought` is what the base got for this object before, under another name or in an earlier
/// attempt; `known` whether the base has the object itself.
pub fn file(mine: Mine, held: Held, brought: Gfid, known: bool) -> Step {
    let changed = mine.object == Change::Alone;
    if mine.name == Change::Common && !changed {
        return Step::Nothing;
    }
    match held {
        Held::File(gfid) if gfid == brought => Step::Nothing,
        Held::File(gfid) if gfid == mine.gfid && !changed => Step::Nothing,
        Held::File(gfid) => Step::Replace(gfid),
        Held::Directory(gfid) => Step::Keep(gfid),
        // The base removed the name and this side did not touch the name: then its content was.
        Held::Nothing if changed || !known => Step::Bring,
        Held::Nothing => Step::Name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Change::{Alone, Common};

    const MINE: Gfid = Gfid { hi: 9, lo: 1 };
    const OTHER: Gfid = Gfid { hi: 9, lo: 2 };
    const BROUGHT: Gfid = Gfid { hi: 9, lo: 3 };

    fn mine(name: Change, object: Change) -> Mine {
        Mine {
            gfid: MINE,
            name,
            object,
        }
    }

    #[test]
    fn what_was_not_changed_alone_is_left_to_the_base() {
        for held in [
            Held::Nothing,
            Held::File(MINE),
            Held::File(OTHER),
            Held::Directory(OTHER),
        ] {
            assert_eq!(
                file(mine(Common, Common), held, BROUGHT, true),
                Step::Nothing
            );
        }
    }

    #[test]
    fn what_was_changed_alone_is_brought_once() {
        let made = mine(Alone, Alone);
        assert_eq!(file(made, Held::Nothing, BROUGHT, false), Step::Bring);
        assert_eq!(
            file(made, Held::File(BROUGHT), BROUGHT, true),
            Step::Nothing
        );
        assert_eq!(
            file(made, Held::File(OTHER), BROUGHT, false),
            Step::Replace(OTHER)
        );
        assert_eq!(
            file(made, Held::Directory(OTHER), BROUGHT, false),
            Step::Keep(OTHER)
        );
        let written = mine(Common, Alone);
        assert_eq!(
            file(written, Held::File(MINE), BROUGHT, true),
            Step::Replace(MINE)
        );
        assert_eq!(file(written, Held::Nothing, BROUGHT, false), Step::Bring);
        let linked = mine(Alone, Common);
        assert_eq!(file(linked, Held::Nothing, BROUGHT, true), Step::Name);
        assert_eq!(file(linked, Held::Nothing, BROUGHT, false), Step::Bring);
        assert_eq!(file(linked, Held::File(MINE), BROUGHT, true), Step::Nothing);
        assert_eq!(
            file(linked, Held::File(OTHER), BROUGHT, true),
            Step::Replace(OTHER)
        );
    }

    #[test]
    fn a_policy_takes_one_version_or_none() {
        let at = |secs, size| Object {
            mtime: Some(mortar_proto::data::Time { secs, nanos: 0 }),
            ctime: Some(mortar_proto::data::Time {
                secs: -secs,
                nanos: 0,
            }),
            size,
            ..Default::default()
        };
        let (old, new) = (at(1, 10), at(2, 5));
        assert_eq!(favorite(Favorite::Mtime, &old, &new), Winner::Other);
        assert_eq!(favorite(Favorite::Ctime, &old, &new), Winner::Base);
        assert_eq!(favorite(Favorite::Size, &old, &new), Winner::Base);
        assert_eq!(favorite(Favorite::Size, &new, &old), Winner::Other);
        assert_eq!(favorite(Favorite::Mtime, &old, &old), Winner::Nobody);
        assert_eq!(favorite(Favorite::None, &old, &new), Winner::Nobody);
        assert_eq!(favorite(Favorite::Majority, &old, &new), Winner::Nobody);
    }
}
