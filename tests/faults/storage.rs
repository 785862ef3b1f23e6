//! Faults of disks, files and migrations.
