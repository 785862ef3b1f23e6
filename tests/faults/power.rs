//! F33: a power cut under an embedded database.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cast::site::base;
use crate::shoppers::{Promises, are_honoured};
use crate::sqlite::{REMEMBERED, copied, keeps, load, moment, site};
use crate::storage::runs;

/// The library that is preloaded, compiled here.
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

fn powerless_again_and_again(cycles: u64) {
    let (site, alice) = site();
    let promises = RefCell::new(Promises::default());
    let (data, disk) = (
        site.place.folder.join("data"),
        site.place.folder.join("disk"),
    );
    let library = power();
    let (library, kept) = (library.to_str().unwrap(), disk.to_str().unwrap());
    let (mut codes, mut ended) = (0, 0);
    for cycle in 0..cycles {
        if cycle.is_multiple_of(REMEMBERED) {
            let old = promises.take();
            codes += old.codes.len();
            ended += old.ended.len();
        }
        copied(&data, &disk);
        let server = site
            .place
            .serve(&[("LD_PRELOAD", library), ("FLUSHED", kept)]);
        load(&site, &server, &alice, &promises, async || {
            moment(cycle).await;
            server.signal("-KILL");
        });
        drop(server);
        keeps(
            &copied(&disk, &site.place.folder.join("copy")),
            &promises.borrow(),
        );
        // The next start finds what a disk would have kept, and nothing more.
        copied(&disk, &data);
    }
    let promises = promises.into_inner();
    codes += promises.codes.len();
    ended += promises.ended.len();
    println!("{cycles} power cuts: {codes} codes redeemed, {ended} grants revoked, none lost");
    assert!(codes as u64 > cycles);
    let server = site.place.serve(&[]);
    runs(are_honoured(&promises, &site.web(&base(&server))));
    assert_eq!(server.stop(), Some(0));
    let _ = std::fs::remove_file(library);
}

/// F33: a power cut, by the strictest disk there is: of the database's files it keeps what was flushed
/// and nothing else. Not covered: a disk that keeps some of what was not flushed, in another order than
/// it was written, and one that lies about flushing.
#[test]
fn f33_after_a_power_cut_everything_that_was_answered_is_there() {
    let _turn = crate::alone();
    powerless_again_and_again(12);
}

#[test]
#[ignore = "slow: a thousand power cuts"]
fn f33_after_a_power_cut_everything_that_was_answered_is_there_in_full() {
    let _turn = crate::alone();
    powerless_again_and_again(1_000);
}
