//! Why the registry could not do what it was asked.

/// An error of the registry, in words for the administrator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Too few voters answer. Nothing was changed.
    #[error("no quorum: {reachable} of {voters} voters reachable")]
    NoQuorum {
        /// Voters that answered, this peer among them.
        reachable: usize,
        /// Voters there are.
        voters: usize,
    },
    /// Enough voters live, but none leads at the moment. Nothing was changed.
    #[error("the registry has no leader yet ({reachable} of {voters} voters reachable): try again")]
    NoLeader {
        /// Voters that answered, this peer among them.
        reachable: usize,
        /// Voters there are.
        voters: usize,
    },
    /// The change was sent and no answer came: it may be applied, now or later.
    #[error(
        "no answer within {waited_ms} ms ({reachable} of {voters} voters reachable): the change \
         may still be applied; look before you repeat it"
    )]
    Unknown {
        /// How long was waited, in milliseconds.
        waited_ms: u64,
        /// Voters that answered afterwards, this peer among them.
        reachable: usize,
        /// Voters there are.
        voters: usize,
    },
    /// Whoever proposed it has thought better of it before it was sent to a leader. Nothing was
    /// changed.
    #[error("the change is not wanted any more")]
    NotWanted,
    /// Refused; the sentence says why and what to do. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The data directory cannot be read or written.
    #[error("cannot keep the registry in {path}: {reason}")]
    Storage {
        /// File or folder.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The registry of this peer was stopped or has failed.
    #[error("the registry of this peer does not run: {0}")]
    Stopped(String),
}

impl RegistryError {
    pub(super) fn storage(path: &std::path::Path, reason: impl ToString) -> Self {
        RegistryError::Storage {
            path: path.display().to_string(),
            reason: reason.to_string(),
        }
    }

    pub(super) fn stopped(reason: impl ToString) -> Self {
        RegistryError::Stopped(reason.to_string())
    }
}
