//! `backup`: copies the embedded database to one file while servers use it.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Exit, Output, open};
use crate::cli::command::clock;
use crate::config::Config;
use crate::db::{Copied, Store, mark_restored, verify};
use crate::time::Timestamp;

#[derive(clap::Args)]
pub struct Arguments {
    /// The new file. An existing one is never overwritten.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    if !config.database_url().starts_with("sqlite:") {
        return Err(usage_error(
            "the database is PostgreSQL; copy it with `pg_dump --format=custom --file=FILE URL` (docs/operations.md, \"Back up\")",
        ));
    }
    let file = &arguments.file;
    if file.symlink_metadata().is_ok() {
        return Err(usage_error(format!(
            "{} exists; use a new file name",
            file.display()
        )));
    }
    let store = open(config)?;
    let now = clock().now();
    let draft = Draft::beside(file)?;
    let copied = copy(&store, &draft.0, now).map_err(|why| failed(file, why))?;
    draft.rename_to(file)?;
    report(output, file, &copied);
    Ok(())
}

/// Copies the database into the draft, marks it as a copy and checks it.
fn copy(store: &Store, draft: &Path, now: Timestamp) -> Result<Copied, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let name = draft.to_str().ok_or("the name is not UTF-8")?;
    store.copy_to(name).map_err(|error| text(&error))?;
    // Whether the copy is used by `restore` or by hand, on this machine or another, no node issues anything from
    // it until `recover`.
    mark_restored(draft, now).map_err(|error| text(&error))?;
    let copied = verify(draft).map_err(|error| text(&error))?;
    let file = File::open(draft).map_err(|error| text(&error))?;
    file.sync_all().map_err(|error| text(&error))?;
    Ok(copied)
}

/// A temporary file beside the final one. Only its owner can read it. It is removed unless it is renamed.
pub(super) struct Draft(pub(super) PathBuf);

impl Draft {
    /// Creates an empty draft.
    ///
    /// # Errors
    /// [`Exit`] with the path.
    pub(super) fn beside(file: &Path) -> anyhow::Result<Self> {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let draft = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.create_new(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(&draft) {
            Ok(_) => Ok(Self(draft)),
            Err(error) => Err(failed(&draft, error)),
        }
    }

    /// Renames the draft to its final name, which must not exist.
    fn rename_to(&self, file: &Path) -> anyhow::Result<()> {
        // Unlike a rename, a link does not replace a file that was created in the meantime.
        match std::fs::hard_link(&self.0, file) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(usage_error(format!(
                    "{} exists; use a new file name",
                    file.display()
                )));
            }
            // Some file systems do not support links.
            Err(_) => std::fs::rename(&self.0, file).map_err(|error| failed(file, error))?,
        }
        sync_folder(file).map_err(|error| failed(file, error))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut name = self.0.as_os_str().to_owned();
            name.push(suffix);
            // Usually the file does not exist any more.
            let _ = std::fs::remove_file(name);
        }
    }
}

/// Writes the directory of a file to disk, so that its name survives a power failure.
pub(super) fn sync_folder(file: &Path) -> std::io::Result<()> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

pub(super) fn usage_error(message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    Exit { code: 2, message }.into()
}

pub(super) fn failed(file: &Path, why: impl std::fmt::Display) -> anyhow::Error {
    Exit {
        code: 1,
        message: format!("{}: {why}", file.display()),
    }
    .into()
}

fn report(output: Output, file: &Path, copied: &Copied) {
    let bytes = std::fs::metadata(file).map_or(0, |file| file.len());
    let view = json!({ "file": file.display().to_string(), "bytes": bytes, "as_of": copied.beat.to_string(), "feed_epoch": copied.epoch });
    output.print(
        &view,
        format!(
            "{} contains the database as of {} ({bytes} bytes, checked).\n\
             Keep the key-encrypting keys of `keys.kek` in another place: the copy cannot be used without them.",
            file.display(),
            copied.beat
        ),
    );
}
