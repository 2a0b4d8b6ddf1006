//! Who this peer is: a random id made with the data directory.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use mortar_common::{PeerId, VolumeId};
use serde::{Deserialize, Serialize};

use super::error::RegistryError;

const FILE: &str = "identity";

/// This peer's id and the uuid that `peer status` shows.
///
/// An empty data directory makes a new one, so a host that lost its disk is a new peer and can
/// never be taken for the old one, which promised things it has forgotten. So does leaving a pool:
/// Raft must never see one id with two logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Raft's node id; 16 hex digits in the file.
    #[serde(with = "hex")]
    pub peer: u64,
    /// 8-4-4-4-12 hex digits.
    pub uuid: String,
}

impl Identity {
    /// The identity kept in `data_dir`; made, and made durable, if there is none.
    pub fn load_or_make(data_dir: &Path) -> Result<Self, RegistryError> {
        let path = data_dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| RegistryError::storage(&path, format!("not readable: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::renew(data_dir),
            Err(error) => Err(RegistryError::storage(&path, error)),
        }
    }

    /// A new identity, durable in `data_dir` when this returns.
    pub fn renew(data_dir: &Path) -> Result<Self, RegistryError> {
        let identity = Identity {
            peer: PeerId::random().0,
            uuid: VolumeId::random().to_string(),
        };
        identity
            .write(data_dir)
            .map_err(|error| RegistryError::storage(&data_dir.join(FILE), error))?;
        Ok(identity)
    }

    fn write(&self, data_dir: &Path) -> io::Result<()> {
        let fresh = data_dir.join("identity.new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&fresh, data_dir.join(FILE))?;
        fs::File::open(data_dir)?.sync_all()
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:016x}"))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_lives_as_long_as_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_make(dir.path()).unwrap();
        assert_eq!(Identity::load_or_make(dir.path()).unwrap(), first);
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_ne!(Identity::load_or_make(dir.path()).unwrap().peer, first.peer);
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_peer() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{").unwrap();
        let error = Identity::load_or_make(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not readable"), "{error}");
    }
}
