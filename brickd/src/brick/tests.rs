//! Tests of whole bricks, one file per family.
