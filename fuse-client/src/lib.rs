//! Mortar's FUSE client, `mount.mortar`.
//!
//! The way of a request: [`kernel`] turns it into a call of
//! [`fs`], which asks the primary through [`session`] over a [`connection`] and keeps in [`cache`]
//! what the answer said. [`view`] follows the registry; [`mount`] starts and ends it all.

pub mod cache;
pub mod connection;
pub mod fs;
pub mod kernel;
pub mod mount;
pub mod mounts;
pub mod options;
pub mod session;
pub mod view;
