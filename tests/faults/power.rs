//! F33: a power cut with a SQLite database.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sqlite::{copied, kill_cycles, site};

/// Compiles the library that is preloaded.
fn power() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/power.c");
    let library =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-{}.so", std::process::id()));
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    library
}

fn survives_power_cuts(cycles: u64) {
    let stage = site();
    let folder = &stage.0.installation.folder;
    let (data, disk, library) = (folder.join("data"), folder.join("disk"), power());
    copied(&data, &disk);
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FLUSHED", disk.to_str().unwrap()),
    ];
    // The next start finds what a disk would have kept, and nothing more.
    let goes_on = || {
        copied(&disk, &data);
    };
    let (codes, _) = kill_cycles(cycles, &stage, &variables, &disk, goes_on);
    assert!(codes > cycles);
    let _ = std::fs::remove_file(library);
}

/// F33: a power cut with the strictest possible disk: of the database files it keeps only what was flushed.
/// Not covered: a disk that keeps some of the unflushed writes in another order, and one that reports a flush
/// that did not happen.
#[test]
fn f33_sqlite_power_cut_loses_no_confirmed_write() {
    let _turn = crate::alone();
    survives_power_cuts(12);
}

#[test]
#[ignore = "slow: a thousand power cuts"]
fn f33_sqlite_power_cut_loses_no_confirmed_write_in_full() {
    let _turn = crate::alone();
    survives_power_cuts(1_000);
}
