//! Several registries in one process, over gRPC on loopback ports.

mod faults;
mod fixture;
mod members;
mod wiped;

use fixture::{Host, agree, create, end, leader, option, pool, slow, wait};
