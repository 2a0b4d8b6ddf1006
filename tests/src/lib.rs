//! Tests of the whole of Mortar: real processes on hosts that are network namespaces, and what
//! the tests of one subject share.

pub mod cluster;
pub mod frames;
pub mod outage;
pub mod report;
pub mod scale;
pub mod stall;
pub mod trees;
