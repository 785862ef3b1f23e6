//! Faults of callers: slow ones, many of them, large ones.
