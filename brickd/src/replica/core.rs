//! The decision logic of one copy of a replica set: event in, commands out.
