//! Creates the file of a key-encrypting key.

use std::fs::OpenOptions;
use std::io::{Error, Write};
use std::path::Path;

use crate::keys::Kek;
use crate::secret::Entropy;

/// Writes a new KEK to a new file that only its owner can read.
///
/// # Errors
/// A sentence with the path. An existing file is never replaced.
pub fn write_kek(path: &Path, entropy: &Entropy) -> Result<(), String> {
    let failed = |error: Error| {
        format!(
            "the key-encrypting key cannot be written to {}: {error}",
            path.display()
        )
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    // Complete or not at all: a process that is killed must not leave half a KEK behind.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = Path::new(&name);
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(draft).map_err(failed)?;
    writeln!(file, "{}", *Kek::generate(entropy)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    // Unlike a rename, a link fails if the path exists.
    let linked = std::fs::hard_link(draft, path).map_err(failed);
    std::fs::remove_file(draft).map_err(failed)?;
    linked
}
