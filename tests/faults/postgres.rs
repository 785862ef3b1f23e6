//! Faults of Postgres and of the way to it.
