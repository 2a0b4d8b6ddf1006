//! heal.
