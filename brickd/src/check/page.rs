//! What one brick tells of its objects: one page for each question, with a cursor for the next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mortar_common::{FsError, Gfid};
use mortar_proto::control::{
    CheckAsk, CheckCursor, CheckPage, CheckPart, CheckRequest, CheckedName, CheckedObject,
    CheckedOrphan,
};
use mortar_proto::data::{HealObjectStep, ReadDir};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::brick::{Brick, BrickError, HealSource, Store, store::handle_bucket};

/// A page has at most so many objects, gfids of names, and took about so long.
const OBJECTS_MAX: usize = 1_024;
const NAMES_BYTES_MAX: usize = 2 << 20;
const PAGE_TIME: Duration = Duration::from_secs(1);
/// A file is summed in pieces of this size.
const PIECE_BYTES: u64 = 8 << 20;
/// Of a page of a directory.
const DIR_PAGE_BYTES: u32 = 256 << 10;
/// Names told of a directory that is explained.
const EXPLAINED_NAMES_MAX: usize = 10_000;

/// Answers one question about a brick. `is_open`: whether somebody has an object open. Blocks, for
/// about a second at most.
///
/// # Errors
/// When the brick cannot be read; a single object that cannot be is told of in the page.
pub fn page(
    brick: &Brick,
    is_open: &dyn Fn(Gfid) -> bool,
    request: &CheckRequest,
) -> Result<CheckPage, BrickError> {
    let ask = request.ask();
    if ask == CheckAsk::CheckLeftovers {
        return Ok(CheckPage {
            leftovers: brick.leftovers()?,
            ..CheckPage::default()
        });
    }
    if ask == CheckAsk::CheckProgress {
        return Ok(CheckPage::default());
    }
    let cursor = request.after.clone().unwrap_or_default();
    let source = match ask {
        CheckAsk::CheckSome | CheckAsk::CheckExplain => Source::List {
            gfids: &request.gfids,
            next: cursor.index as usize,
        },
        _ => Source::Handles(Handles::after(brick, &cursor, request.after.is_none())),
    };
    let pager = Pager {
        brick,
        is_open,
        ask,
        started: Instant::now(),
        page: CheckPage::default(),
    };
    pager.run(source, cursor)
}

/// Where the gfids come from.
enum Source<'a> {
    Handles(Handles<'a>),
    List { gfids: &'a [Gfid], next: usize },
}

/// All gfids of a brick, the root first, then by folder of handles.
struct Handles<'a> {
    brick: &'a Brick,
    bucket: u32,
    after: Gfid,
    ready: VecDeque<Gfid>,
}

impl<'a> Handles<'a> {
    fn after(brick: &'a Brick, cursor: &CheckCursor, from_the_beginning: bool) -> Self {
        let after = cursor.gfid.unwrap_or(Gfid::ROOT);
        let mut ready = VecDeque::new();
        if from_the_beginning {
            ready.push_back(Gfid::ROOT);
        } else if cursor.part.is_some() {
            ready.push_back(after);
        }
        Handles {
            brick,
            bucket: cursor.bucket,
            after,
            ready,
        }
    }

    fn next(&mut self) -> Result<Option<Gfid>, BrickError> {
        while self.ready.is_empty() {
            let batch = self
                .brick
                .handles_after(self.bucket, self.after, OBJECTS_MAX)?;
            if batch.is_empty() {
                match self.brick.bucket_from(self.bucket + 1)? {
                    Some(bucket) => (self.bucket, self.after) = (bucket, Gfid::default()),
                    None => return Ok(None),
                }
            }
            self.ready.extend(batch);
        }
        let next = self.ready.pop_front();
        self.after = next.unwrap_or(self.after);
        Ok(next)
    }
}

/// An object is told of, or is too big for the rest of the page.
enum Told {
    Whole(Box<CheckedObject>),
    CutOff(CheckPart),
    /// It went while the walk was under way.
    Gone,
}

struct Pager<'a> {
    brick: &'a Brick,
    is_open: &'a dyn Fn(Gfid) -> bool,
    ask: CheckAsk,
    started: Instant,
    page: CheckPage,
}

impl Pager<'_> {
    fn run(
        mut self,
        mut source: Source<'_>,
        mut cursor: CheckCursor,
    ) -> Result<CheckPage, BrickError> {
        let mut part = cursor.part.take();
        loop {
            let next = match &mut source {
                Source::Handles(handles) => handles.next()?,
                Source::List { gfids, next } => gfids.get(*next).copied(),
            };
            let Some(gfid) = next else {
                return Ok(self.page);
            };
            (cursor.bucket, cursor.gfid) = (handle_bucket(gfid), Some(gfid));
            match self.tell(gfid, part.take()) {
                Told::CutOff(rest) => cursor.part = Some(rest),
                Told::Whole(object) => self.page.objects.push(*object),
                Told::Gone => {}
            }
            if let (Source::List { next, .. }, None) = (&mut source, &cursor.part) {
                *next += 1;
                cursor.index = *next as u32;
            }
            if cursor.part.is_some() || self.is_full() {
                self.page.next = Some(cursor);
                return Ok(self.page);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.page.objects.len() >= OBJECTS_MAX
            || self.page.names.len() >= NAMES_BYTES_MAX
            || self.started.elapsed() >= PAGE_TIME
    }

    fn tell(&mut self, gfid: Gfid, part: Option<CheckPart>) -> Told {
        let told = self.try_to_tell(gfid, part.unwrap_or_default());
        let some = matches!(self.ask, CheckAsk::CheckSome | CheckAsk::CheckExplain);
        match told {
            Ok(told) => told,
            Err(error) if !is_absent(&error) => Told::Whole(Box::new(CheckedObject {
                gfid: Some(gfid),
                problem: error.to_string(),
                ..CheckedObject::default()
            })),
            // Who asks for it wants to know that it is not there.
            Err(_) if some => Told::Whole(Box::new(CheckedObject {
                gfid: Some(gfid),
                ..CheckedObject::default()
            })),
            Err(_) => Told::Gone,
        }
    }

    fn try_to_tell(&mut self, gfid: Gfid, mut part: CheckPart) -> Result<Told, BrickError> {
        let step = self.brick.heal_object(gfid)?;
        let mut checked = self.attributes(gfid, &step);
        let mode = step.object.as_ref().map_or(0, |object| object.mode) & libc::S_IFMT;
        let whole = match mode {
            libc::S_IFDIR => self.names(gfid, &mut part, &mut checked)?,
            libc::S_IFREG if matches!(self.ask, CheckAsk::CheckWalk | CheckAsk::CheckSome) => {
                let size = step.object.map_or(0, |object| object.size);
                self.bytes(gfid, size, &mut part)?
            }
            _ => true,
        };
        if !whole {
            return Ok(Told::CutOff(part));
        }
        checked.content = part.sum;
        if self.ask == CheckAsk::CheckExplain {
            checked.path = self.brick.path_of(gfid).unwrap_or_default();
        }
        Ok(Told::Whole(Box::new(checked)))
    }

    /// All but the content. What copies may differ in is left out.
    fn attributes(&self, gfid: Gfid, step: &HealObjectStep) -> CheckedObject {
        let mut object = step.object.unwrap_or_default();
        (object.blocks, object.atime, object.presence) = (0, None, 0);
        object.mtime = self.brick.settled_mtime(gfid).or(object.mtime);
        let is_dir = object.mode & libc::S_IFMT == libc::S_IFDIR;
        let marked = self.brick.is_marked_orphan(gfid);
        let nameless = if is_dir { marked } else { object.nlink == 0 };
        let links = match (is_dir, nameless) {
            (true, false) => u32::from(gfid != Gfid::ROOT),
            (true, true) => 0,
            (false, _) => object.nlink,
        };
        if is_dir {
            (object.size, object.nlink) = (0, 0);
        }
        let mut xattrs = step.xattrs.clone();
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        let xattrs = xattrs.iter().fold(0, |sum, xattr| {
            let name = xxh3_64_with_seed(&xattr.name, sum);
            xxh3_64_with_seed(&xattr.value, name)
        });
        let orphan = match (nameless, marked) {
            (false, _) => CheckedOrphan::CheckedNamed,
            (true, false) => CheckedOrphan::CheckedUnmarked,
            (true, true) if (self.is_open)(gfid) => CheckedOrphan::CheckedOpen,
            (true, true) => CheckedOrphan::CheckedIdle,
        };
        CheckedObject {
            gfid: Some(gfid),
            object: Some(object),
            xattrs,
            target: xxh3_64(&step.target),
            links,
            orphan: orphan.into(),
            ..CheckedObject::default()
        }
    }

    /// Sums a file's bytes from where `part` stands; whether it came to the end. Holes are not read,
    /// and zeros count as a hole does: copies may differ in that.
    fn bytes(&mut self, gfid: Gfid, size: u64, part: &mut CheckPart) -> Result<bool, BrickError> {
        while part.offset < size {
            if self.started.elapsed() >= PAGE_TIME {
                return Ok(false);
            }
            let piece = (size - part.offset).min(PIECE_BYTES);
            let hole = match self.brick.next_extent(gfid, part.offset)? {
                Some((_, len, true)) => len,
                Some(_) => 0,
                // It was cut meanwhile.
                None => return Ok(true),
            };
            if hole >= piece {
                let pieces = (hole / PIECE_BYTES).max(1);
                part.offset = part.offset.saturating_add(pieces * PIECE_BYTES);
                continue;
            }
            let sum = self.brick.sum(gfid, part.offset, piece)?;
            self.page.bytes += piece;
            if sum != sum_of_zeros(piece) {
                part.sum = xxh3_64_with_seed(&sum.to_le_bytes(), part.sum ^ part.offset);
            }
            part.offset += piece;
        }
        Ok(true)
    }

    /// Adds up a directory's names and what they lead to; whether it came to the end.
    fn names(
        &mut self,
        gfid: Gfid,
        part: &mut CheckPart,
        checked: &mut CheckedObject,
    ) -> Result<bool, BrickError> {
        loop {
            let page = self.brick.read_dir(&ReadDir {
                gfid: Some(gfid),
                after_hash: part.after_hash,
                after_name: part.after_name.clone().into(),
                max_bytes: DIR_PAGE_BYTES,
                plus: false,
            })?;
            for entry in &page.entries {
                let leads_to = entry.gfid.unwrap_or_default();
                let seed = xxh3_64(&leads_to.to_bytes()) ^ u64::from(entry.r#type);
                // In whatever order they come.
                let sum = xxh3_64_with_seed(&entry.name, seed);
                part.sum = part.sum.wrapping_add(sum);
                part.names += 1;
                self.page.names.extend_from_slice(&leads_to.to_bytes());
                let explains = self.ask == CheckAsk::CheckExplain;
                if explains && checked.names.len() < EXPLAINED_NAMES_MAX {
                    checked.names.push(CheckedName {
                        name: String::from_utf8_lossy(&entry.name).into_owned(),
                        gfid: entry.gfid,
                    });
                }
            }
            if let Some(last) = page.entries.last() {
                (part.after_hash, part.after_name) = (last.hash, last.name.to_vec());
            }
            if page.end || page.entries.is_empty() {
                break;
            }
            if self.is_full() && self.ask != CheckAsk::CheckExplain {
                return Ok(false);
            }
        }
        checked.strays = self.brick.strays_in(gfid, part.names)?;
        Ok(true)
    }
}

fn is_absent(error: &BrickError) -> bool {
    matches!(
        error,
        BrickError::Refused {
            error: FsError::NotFound | FsError::Stale | FsError::NotDirectory,
            ..
        }
    )
}

/// As [`HealSource::sum`] has it of so many zeros, at most a piece.
fn sum_of_zeros(len: u64) -> u64 {
    static PIECE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let sum = |len: u64| xxh3_64(&vec![0; len as usize]);
    match len {
        PIECE_BYTES => *PIECE.get_or_init(|| sum(PIECE_BYTES)),
        len => sum(len),
    }
}
