//! Mortar's server and command line.
//!
//! Layers, lowest first: [`brick`] (one folder on one disk), [`replica`] (order, sessions,
//! failover), [`heal`], [`check`], [`split`] (two sides that both went on alone), [`link`] (what peers know of each other), [`registry`] (who and what is in
//! the pool), [`host`] (all bricks of this host), [`admin`] (commands), [`cli`].

pub mod admin;
pub mod brick;
pub mod check;
pub mod cli;
pub mod daemon;
pub mod heal;
pub mod host;
pub mod link;
pub mod registry;
pub mod replica;
pub mod split;
