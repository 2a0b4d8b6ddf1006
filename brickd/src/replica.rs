//! Replication of one set: order, apply, sessions, leases, failover.

pub mod core;
