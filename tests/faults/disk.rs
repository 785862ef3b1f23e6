//! A small disk that can be filled.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts a `tmpfs` of this many MiB over a folder. Only root may mount; for other users it prints that,
    /// and returns `None`.
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

    /// Mounts an ext4 file system of this many MiB that can fail. Prints a message and returns `None` if this
    /// machine cannot create one.
    pub fn that_fails(folder: &Path, mib: u64) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let image = folder.with_extension("img");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).output();
        let mounted = made.is_ok_and(|made| made.status.success())
            && Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, folder])
                .output()
                .is_ok_and(|mounted| mounted.status.success());
        if !mounted {
            eprintln!("SKIPPED: no ext4 on a loop device can be mounted here");
            return None;
        }
        Some(Self {
            folder: folder.to_owned(),
        })
    }

    /// Makes the kernel stop all writes, as after a disk error (ext4(5), `errors=remount-ro`).
    pub fn fails(&self) {
        does(
            Command::new("mount")
                .args(["-o", "remount,abort"])
                .arg(&self.folder),
        );
    }

    /// Does the same, for the account that owns a path.
    pub fn belongs_like(&self, other: &Path) {
        let reference = format!("--reference={}", other.display());
        does(Command::new("chown").arg(reference).arg(&self.folder));
    }

    /// Fills the disk until not a single byte fits.
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

    /// Frees the space.
    pub fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    /// Makes the file system read-only.
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
        // Unmounts lazily, because the server of a failed test may still use it.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

#[track_caller]
fn does(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
