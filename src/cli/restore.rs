//! `restore`: puts a copy in the place of the embedded database. It knows nothing of what was revoked
//! since, so no node issues anything from it until `recover`.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::backup::{Draft, failed, refuse, sync_folder};
use super::{Exit, Output, block_on};
use crate::app::{StartError, key_table};
use crate::cli::command::{clock, entropy};
use crate::config::Config;
use crate::db::{Claim, Copied, CopyError, Schema, Store, fold_log, mark_restored, verify};
use crate::keys::Keychain;
use crate::time::Timestamp;

/// Of the one connection that the copy needs.
const CONNECTIONS: u32 = 1;

#[derive(clap::Args)]
pub struct Arguments {
    /// A file that `backup` made, or another complete copy of one database.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the database that is there. Its file is kept beside, under another name.
    #[arg(long)]
    replace: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let url = config.database_url();
    let Some(path) = url.strip_prefix("sqlite:").map(Path::new) else {
        return Err(refuse(
            "the database is PostgreSQL; stop all nodes, run `pg_restore` and then `portcullis recover` (docs/operations.md, \"Restore\")",
        ));
    };
    let file = &arguments.file;
    if !file.is_file() {
        return Err(refuse(format!("{} is not a file", file.display())));
    }
    if has_log(file) {
        // Such a file alone may be empty, or malformed.
        return Err(refuse(format!(
            "{} has a write-ahead log beside it, so it is not a complete copy; make one with `portcullis backup`",
            file.display()
        )));
    }
    // 1. The database that is there is not in use.
    let there = is_database(path);
    if there && !arguments.replace {
        return Err(refuse(format!(
            "there is a database at {}; pass --replace to put the copy in its place",
            path.display()
        )));
    }
    let _claim = Claim::on(&url).map_err(StartError::from)?;
    let now = clock().now();
    // 2. The copy is complete, of this version, sealed under our KEKs, and marked.
    let draft = Draft::beside(path)?;
    std::fs::copy(file, &draft.0).map_err(|error| failed(file, error))?;
    close_to_others(&draft.0).map_err(|error| failed(&draft.0, error))?;
    let copied = prepare(&draft.0, config, now).map_err(|error| named(file, error))?;
    // 3. What is there goes aside, and the copy takes its place.
    let aside = match there {
        true => Some(set_aside(path, now)?),
        false => None,
    };
    std::fs::rename(&draft.0, path).map_err(|error| failed(path, error))?;
    sync_folder(path).map_err(|error| failed(path, error))?;
    say(arguments.format, path, aside.as_deref(), &copied);
    Ok(())
}

/// Why a copy is not taken.
enum Unfit {
    Copy(CopyError),
    Other(anyhow::Error),
}

impl From<CopyError> for Unfit {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

impl<E: Into<StartError>> From<E> for Unfit {
    fn from(error: E) -> Self {
        Self::Other(error.into().into())
    }
}

fn named(file: &Path, unfit: Unfit) -> anyhow::Error {
    match unfit {
        Unfit::Copy(error) => failed(file, error),
        Unfit::Other(error) => error,
    }
}

/// Checks a copy, brings its schema up to date and marks it as restored.
fn prepare(draft: &Path, config: &Config, now: Timestamp) -> Result<Copied, Unfit> {
    let copied = verify(draft)?;
    let url = format!("sqlite:{}", draft.display());
    let store = Store::open(&url, CONNECTIONS)?;
    match store.schema()? {
        Schema::Current => {}
        Schema::Older(_) => drop(store.migrate()?),
        Schema::Newer(strange) => {
            return Err(Unfit::from(StartError::Configuration(format!(
                "the copy was migrated by a newer version of portcullis ({}); restore it with that version",
                strange.join(", ")
            ))));
        }
    }
    check_keks(config, &store).map_err(Unfit::Other)?;
    drop(store);
    fold_log(draft)?;
    mark_restored(draft, now)?;
    let file = File::open(draft).and_then(|file| file.sync_all());
    file.map_err(|error| CopyError::Failed(error.to_string()))?;
    Ok(copied)
}

/// Refuses a copy whose values no configured KEK opens: a server would not start on it.
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

/// Whether there is anything at the place of the database: a claim leaves an empty file.
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

/// Renames the database that is there, with what belongs to it.
fn set_aside(path: &Path, now: Timestamp) -> anyhow::Result<PathBuf> {
    match fold_log(path) {
        Ok(()) => {}
        Err(CopyError::InUse) => {
            return Err(Exit {
                code: 69,
                message: format!("another process has {} open; end it first", path.display()),
            }
            .into());
        }
        // A damaged one is what restores are for: its log goes with it.
        Err(error) => {
            tracing::warn!(event = "storage.error", reason = "replaced", %error, "the database that is replaced is damaged");
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

/// A copy of a file keeps the mode of the file.
fn close_to_others(file: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn say(output: Output, path: &Path, aside: Option<&Path>, copied: &Copied) {
    let aside = aside.map(|aside| aside.display().to_string());
    let view = json!({ "file": path.display().to_string(), "replaced": aside, "as_of": copied.beat.to_string(), "feed_epoch": copied.epoch });
    let kept = aside.map_or_else(String::new, |aside| {
        format!("The database that was there is {aside}; delete it once you do not need it.\n")
    });
    output.say(
        &view,
        format!(
            "{} is the copy now; it knows nothing of what happened after {}.\n{kept}\
             No server issues anything from it until you run `portcullis recover`, which signs out all users.",
            path.display(),
            copied.beat
        ),
    );
}
