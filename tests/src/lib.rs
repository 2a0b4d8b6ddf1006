//! Tests of the whole of Mortar.

pub mod simulator;
