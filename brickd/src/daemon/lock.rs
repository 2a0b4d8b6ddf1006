//! One brickd a data folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::DaemonError;

/// The right to use a data folder, for the life of this process.
pub struct DataDirLock {
    _file: File,
}

/// Makes the data folder if it is absent and locks it.
pub fn take(data_dir: &Path) -> Result<DataDirLock, DaemonError> {
    let failed = |source| DaemonError::DataDir {
        path: data_dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(data_dir).map_err(failed)?;
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(data_dir.join("brickd.lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed)?;
            let pid = pid.trim().to_owned();
            return Err(DaemonError::AlreadyRunning {
                path: data_dir.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(DataDirLock { _file: file })
}
