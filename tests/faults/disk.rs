//! A small disk that can be filled.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// A `tmpfs` of so many MiB over a folder. Only root may mount: for anybody else it is `None`, and
    /// said aloud.
    pub fn over(folder: &Path, mib: u32) -> Option<Self> {
        let id = Command::new("id").arg("-u").output().unwrap();
        if id.stdout != b"0\n" {
            eprintln!("SKIPPED: a full disk is a tmpfs, which only root may mount");
            return None;
        }
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={mib}m,mode=700");
        does(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(folder),
        );
        Some(Self {
            folder: folder.to_owned(),
        })
    }

    /// The same, for the account that a path belongs to.
    pub fn belongs_like(&self, other: &Path) {
        let reference = format!("--reference={}", other.display());
        does(Command::new("chown").arg(reference).arg(&self.folder));
    }

    /// Until not one more byte fits.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        let zeros = vec![0; 64 * 1024];
        let mut size = zeros.len();
        while size > 0 {
            match ballast.write(&zeros[..size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => size /= 2,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Somebody makes room.
    pub fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    /// From now on nothing can be written.
    pub fn becomes_read_only(&self) {
        does(
            Command::new("mount")
                .args(["-o", "remount,ro"])
                .arg(&self.folder),
        );
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that a failed test left may still be there.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

#[track_caller]
fn does(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
