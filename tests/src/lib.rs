//! Tests of the whole of Mortar.
