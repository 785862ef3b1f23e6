//! Files that contain a secret and must not be readable by other users.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads a file that contains a secret, and trims it. Fails if other users can read the file.
///
/// # Errors
/// A message with the path.
pub(crate) fn read_secret_file(path: &Path) -> Result<String, String> {
    let place = path.display();
    // Opened once, so that the mode belongs to the text even if the file is replaced in the meantime.
    let (text, mode) = read(path).map_err(|error| format!("{place}: {error}"))?;
    if mode & forbidden(path) != 0 {
        return Err(format!(
            "{place} can be read by other users (mode {:03o}); run: chmod 600 {place}",
            mode & 0o777
        ));
    }
    Ok(text.trim().to_owned())
}

/// Returns whether all users of this machine can read the file.
pub(super) fn is_read_by_all(path: &Path) -> bool {
    let file = File::open(path);
    file.and_then(|file| mode(&file))
        .is_ok_and(|mode| mode & 0o004 != 0)
}

fn read(path: &Path) -> std::io::Result<(String, u32)> {
    let mut file = File::open(path)?;
    let (mut text, mode) = (String::new(), mode(&file)?);
    file.read_to_string(&mut text)?;
    Ok((text, mode))
}

#[cfg(unix)]
fn mode(file: &File) -> std::io::Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata()?.permissions().mode())
}

#[cfg(not(unix))]
fn mode(_: &File) -> std::io::Result<u32> {
    Ok(0o600)
}

/// Returns the mode bits that the file must not have. A systemd credential may be readable by its group: with
/// `DynamicUser` its mode is 0440, and an ACL restricts access.
fn forbidden(path: &Path) -> u32 {
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(folder) if is_below(path, Path::new(&folder)) => 0o037,
        _ => 0o077,
    }
}

/// Returns whether `path` is below `folder`, after resolving symbolic links.
fn is_below(path: &Path, folder: &Path) -> bool {
    match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => false,
    }
}
