//! STATFS.

use mortar_common::FsError;
use mortar_proto::data::{Caller, StatFs, StatFsOp, op, result};

use super::{Fs, FsResult};

impl Fs {
    /// Sizes of the smallest copy.
    pub fn statfs(&self, caller: Caller) -> FsResult<StatFs> {
        let (result, _, _) = self.read_op(caller, op::Op::Statfs(StatFsOp {}))?;
        match result.ok {
            Some(result::Ok::Statfs(sizes)) => Ok(sizes),
            _ => Err(FsError::Io),
        }
    }
}
