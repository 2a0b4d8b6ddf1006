//! What goes on beside requests: opens that ended are released in batches.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mortar_proto::data::{Caller, Release, op};

use super::Fs;
use crate::session::Effect;

/// A file closed for this long is released; one that is opened again sooner stays registered.
const RELEASE_AFTER: Duration = Duration::from_millis(50);
/// Released in one request.
const RELEASE_OPS_MAX: usize = 256;
/// How often an idle thread looks whether the mount has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the session.
pub fn start(fs: &Arc<Fs>) -> std::io::Result<()> {
    let weak = Arc::downgrade(fs);
    std::thread::Builder::new()
        .name("closer".to_owned())
        .spawn(move || release(&weak))?;
    Ok(())
}

fn release(weak: &Weak<Fs>) {
    loop {
        let holdings = match weak.upgrade() {
            Some(fs) if !fs.session.is_closing() => fs.session.holdings().clone(),
            _ => return,
        };
        if !holdings.wait_idle(LOOK_EVERY) {
            continue;
        }
        std::thread::sleep(RELEASE_AFTER);
        let Some(fs) = weak.upgrade() else { return };
        let gfids = holdings.take_idle(RELEASE_OPS_MAX, RELEASE_AFTER);
        if gfids.is_empty() {
            continue;
        }
        let ops = gfids
            .iter()
            .map(|gfid| op::Op::Release(Release { gfid: Some(*gfid) }))
            .collect();
        match fs.ask(Caller::default(), ops, &[], Effect::Repeatable) {
            Ok(answer) => {
                // An object the primary does not know ends the request; the rest comes next time.
                let (judged, left) = gfids.split_at(answer.results.len().min(gfids.len()));
                holdings.released(judged);
                holdings.not_released(left);
            }
            Err(error) => {
                tracing::debug!("closed files are not released yet: {error}");
                holdings.not_released(&gfids);
            }
        }
    }
}
