//! Other users than root, in the test's own process.

use rustix::fs::Mode;
use rustix::process::{Gid, Uid, umask};
use rustix::thread::{
    UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

/// Who does something, and with which umask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'static [u32],
    /// umask(2).
    pub umask: u32,
}

impl User {
    /// Root, whose umask takes nothing away.
    pub const ROOT: User = User {
        uid: 0,
        gid: 0,
        groups: &[],
        umask: 0,
    };

    /// A user that is in one group only and whose umask takes nothing away.
    pub const fn ordinary(uid: u32, gid: u32) -> User {
        User {
            uid,
            gid,
            groups: &[],
            umask: 0,
        }
    }

    /// Runs `work` as this user, on a thread of its own; without any capability unless this is
    /// root.
    ///
    /// # Panics
    /// When this process may not become another user.
    pub fn does<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                self.become_it()
                    .unwrap_or_else(|error| panic!("becoming {self:?}: {error}"));
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn become_it(self) -> rustix::io::Result<()> {
        // SAFETY: only the umask and the working folder stop being shared with other threads; no
        // descriptor does.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        umask(Mode::from_raw_mode(self.umask));
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    }
}
