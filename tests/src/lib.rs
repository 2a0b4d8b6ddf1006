//! Tests of the whole of Mortar: real processes on hosts that are network namespaces, what the
//! tests of one subject share, and the simulator of the replication logic.

pub mod acl;
pub mod cluster;
pub mod compare;
pub mod faults;
pub mod frames;
pub mod locks;
pub mod mapping;
pub mod model;
pub mod outage;
pub mod power;
pub mod report;
pub mod requests;
pub mod scale;
pub mod simulator;
pub mod sqlite;
pub mod stall;
pub mod tickets;
pub mod tools;
pub mod trees;
pub mod users;
