//! Names of directory entries and of volumes, checked once at the edge.

use crate::errors::FsError;

/// Longest name of an entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest name of a volume, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 255;
/// The brick's own folder in its root: no client can name it.
pub const PRIVATE_DIR: &str = ".mortar";
/// The folder in a volume's root that holds the other side's version of each file that both sides
/// of a split changed.
pub const SPLIT_DIR: &str = ".split-brain";

/// Checks the last component of a path: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
/// Newlines and bytes that are not UTF-8 are names like any other.
pub fn check_entry_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(FsError::Invalid);
    }
    Ok(())
}

/// Why a volume cannot have this name; `None` = it can.
pub fn volume_name_refusal(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("a volume name cannot be empty".to_owned());
    }
    if name.len() > VOLUME_NAME_BYTES_MAX {
        return Some(format!(
            "the volume name has {} characters; at most {VOLUME_NAME_BYTES_MAX} are allowed",
            name.len()
        ));
    }
    if name == "all" {
        return Some("'all' means every volume and cannot be a volume's name".to_owned());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.chars().all(plain) || name.starts_with('-') {
        return Some(format!(
            "the volume name '{name}' may hold only letters, digits, '-' and '_', and not begin with '-'"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(check_entry_name(bad), Err(FsError::Invalid), "{bad:?}");
        }
        assert_eq!(check_entry_name(&[b'x'; 256]), Err(FsError::NameTooLong));
        for good in [&b"a"[..], b"...", b"new\nline", &[0xff, 0xfe], &[b'x'; 255]] {
            assert_eq!(check_entry_name(good), Ok(()));
        }
    }

    #[test]
    fn volume_names() {
        assert!(volume_name_refusal("v01").is_none());
        assert!(volume_name_refusal("").is_some());
        assert!(volume_name_refusal(&"v".repeat(300)).is_some());
        assert!(volume_name_refusal("a/b").is_some());
        assert!(volume_name_refusal("all").is_some());
    }
}
