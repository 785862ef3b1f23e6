//! `restore`: replaces the embedded database with a copy. The copy lacks the revocations since it was made, so
//! no node issues anything from it until `recover`.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::backup::{Draft, failed, sync_folder, usage_error};
use super::{Exit, Output, block_on};
use crate::app::{StartError, key_table};
use crate::cli::command::{clock, entropy};
use crate::config::Config;
use crate::db::{Claim, Copied, CopyError, Schema, Store, fold_log, mark_restored, verify};
use crate::keys::Keychain;
use crate::time::Timestamp;

/// Number of connections to the copy.
const CONNECTIONS: u32 = 1;

#[derive(clap::Args)]
pub struct Arguments {
    /// File of `backup`, or another complete copy of one database.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the existing database. Its file is kept under another name.
    #[arg(long)]
    replace: bool,
}

pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<()> {
    let url = config.database_url();
    let Some(path) = url.strip_prefix("sqlite:").map(Path::new) else {
        return Err(usage_error(
            "the database is PostgreSQL; stop all nodes, run `pg_restore` and then `portcullis recover` (docs/operations.md, \"Restore\")",
        ));
    };
    let file = &arguments.file;
    if !file.is_file() {
        return Err(usage_error(format!("{} is not a file", file.display())));
    }
    if has_log(file) {
        // Without its log, such a file may be empty or malformed.
        return Err(usage_error(format!(
            "{} has a write-ahead log beside it, so it is not a complete copy; make one with `portcullis backup`",
            file.display()
        )));
    }
    // 1. The existing database is not in use.
    let exists = is_database(path);
    if exists && !arguments.replace {
        return Err(usage_error(format!(
            "there is a database at {}; pass --replace to replace it by the copy",
            path.display()
        )));
    }
    let _claim = Claim::on(&url).map_err(StartError::from)?;
    let now = clock().now();
    // 2. The copy is complete, of this version, encrypted under the configured KEKs, and marked as restored.
    let draft = Draft::beside(path)?;
    std::fs::copy(file, &draft.0).map_err(|error| failed(file, error))?;
    restrict_access(&draft.0).map_err(|error| failed(&draft.0, error))?;
    let copied = prepare(&draft.0, config, now).map_err(|error| with_path(file, error))?;
    // 3. The existing database is renamed, and the copy takes its place.
    let aside = match exists {
        true => Some(set_aside(path, now)?),
        false => None,
    };
    std::fs::rename(&draft.0, path).map_err(|error| failed(path, error))?;
    sync_folder(path).map_err(|error| failed(path, error))?;
    report(output, path, aside.as_deref(), &copied);
    Ok(())
}

/// Why a copy is rejected.
enum PrepareError {
    Copy(CopyError),
    Other(anyhow::Error),
}

impl From<CopyError> for PrepareError {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

impl<E: Into<StartError>> From<E> for PrepareError {
    fn from(error: E) -> Self {
        Self::Other(error.into().into())
    }
}

fn with_path(file: &Path, error: PrepareError) -> anyhow::Error {
    match error {
        PrepareError::Copy(error) => failed(file, error),
        PrepareError::Other(error) => error,
    }
}

/// Checks a copy, brings its schema up to date and marks it as restored.
fn prepare(draft: &Path, config: &Config, now: Timestamp) -> Result<Copied, PrepareError> {
    let copied = verify(draft)?;
    let url = format!("sqlite:{}", draft.display());
    let store = Store::open(&url, CONNECTIONS, entropy())?;
    match store.schema()? {
        Schema::Current => {}
        Schema::Older(_) => drop(store.migrate()?),
        Schema::Newer(unknown) => {
            return Err(PrepareError::from(StartError::Configuration(format!(
                "the copy was migrated by a newer version of portcullis ({}); restore it with that version",
                unknown.join(", ")
            ))));
        }
    }
    check_keks(config, &store).map_err(PrepareError::Other)?;
    drop(store);
    fold_log(draft)?;
    mark_restored(draft, now)?;
    let file = File::open(draft).and_then(|file| file.sync_all());
    file.map_err(|error| CopyError::Failed(error.to_string()))?;
    Ok(copied)
}

/// Rejects a copy that no configured KEK decrypts, because a server would not start with it.
fn check_keks(config: &Config, store: &Store) -> anyhow::Result<()> {
    block_on(async {
        let keychain = Keychain::read(&config.keys.kek).map_err(StartError::from)?;
        let table = key_table(config, store, &entropy()).await?;
        let snapshot = table.read(clock().now()).await;
        let snapshot = snapshot.map_err(StartError::from)?;
        let checked = snapshot.check_keks(&keychain).map_err(StartError::from);
        checked.map_err(|error| {
            let message =
                format!("{error}; put the key-encrypting key of the copy into `keys.kek` first");
            StartError::Configuration(message).into()
        })
    })
}

/// Returns whether there is a database at `path`. An empty file is left by a [`Claim`].
fn is_database(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.len() > 0) || has_log(path)
}

fn has_log(path: &Path) -> bool {
    std::fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Renames the existing database, with its log and journal.
fn set_aside(path: &Path, now: Timestamp) -> anyhow::Result<PathBuf> {
    match fold_log(path) {
        Ok(()) => {}
        Err(CopyError::InUse) => {
            return Err(Exit {
                code: 69,
                message: format!("another process has {} open; stop it first", path.display()),
            }
            .into());
        }
        // A damaged database is a reason to restore. Its log is renamed with it.
        Err(error) => {
            tracing::warn!(event = "storage.error", reason = "replaced", %error, "the replaced database is damaged");
        }
    }
    let aside = beside(path, &format!(".replaced-{}", now.secs()));
    for suffix in ["-wal", "-shm", "-journal", ""] {
        let (from, to) = (beside(path, suffix), beside(&aside, suffix));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&from, error));
            }
            _ => {}
        }
    }
    Ok(aside)
}

/// Makes the copy accessible to its owner only, because a copied file keeps the mode of the original.
fn restrict_access(file: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn report(output: Output, path: &Path, aside: Option<&Path>, copied: &Copied) {
    let aside = aside.map(|aside| aside.display().to_string());
    let view = json!({ "file": path.display().to_string(), "replaced": aside, "as_of": copied.beat.to_string(), "feed_epoch": copied.epoch });
    let kept = aside.map_or_else(String::new, |aside| {
        format!("The replaced database is {aside}; delete it when you no longer need it.\n")
    });
    output.print(
        &view,
        format!(
            "{} is now the copy, without the changes after {}.\n{kept}\
             No server issues anything from it until you run `portcullis recover`, which signs out all users.",
            path.display(),
            copied.beat
        ),
    );
}
