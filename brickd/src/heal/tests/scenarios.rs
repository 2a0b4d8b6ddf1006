//! Named cases of healing.
