//! Replication of one set: order, apply, sessions, leases, failover.

pub mod core;
pub mod keys;
pub mod memory;
pub mod plan;
