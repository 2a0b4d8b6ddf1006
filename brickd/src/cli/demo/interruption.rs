//! Ctrl-C, or another request to end: whatever the demo waits for, it notices at once.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mortar_common::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether the demo was told to end.
#[derive(Debug, Default)]
pub struct Interruption {
    state: Mutex<State>,
    changed: Signal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    GoOn,
    End,
}

impl Interruption {
    /// From now on SIGINT, SIGTERM and SIGHUP end the demo in its own way.
    pub fn watch() -> io::Result<Arc<Self>> {
        let interruption = Arc::new(Interruption::default());
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let told = Arc::clone(&interruption);
        std::thread::spawn(move || {
            for _ in signals.forever() {
                *told.lock() = State::End;
                told.changed.notify_all();
            }
        });
        Ok(interruption)
    }

    /// # Errors
    /// When the demo is to end.
    pub fn check(&self) -> Result<(), String> {
        self.wait(Duration::ZERO)
    }

    /// Sleeps for `time`, or until the demo is to end.
    ///
    /// # Errors
    /// When it is.
    pub fn wait(&self, time: Duration) -> Result<(), String> {
        let goes_on = |state: &mut State| *state == State::GoOn;
        let state = self.changed.wait_timeout_while(self.lock(), time, goes_on);
        match *state {
            State::GoOn => Ok(()),
            State::End => Err("interrupted".to_owned()),
        }
    }

    /// Sleeps until the demo is to end.
    pub fn wait_for_it(&self) {
        drop(
            self.changed
                .wait_while(self.lock(), |state| *state == State::GoOn),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
