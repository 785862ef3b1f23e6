//! High-water marks: the last position of the feed of each database, stored in files beside the KEK and
//! never beside the database. A database that is behind its mark was restored from an older copy.
//!
//! Each database has its own file, `feed-ID.mark`, so that a server that starts on another database, for
//! example by mistake on an empty one, does not change the marks of other databases.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::feed_position::FeedPosition;
use crate::time::Timestamp;

/// The mark file of earlier versions, shared by all databases. It is read and never changed.
const SHARED: &str = "feed.mark";

/// The high-water mark of one database, named by the id of its first server secret, which copies of the
/// database share.
#[derive(Clone, Debug)]
pub struct HighWaterMark {
    /// The folders of all KEK files. Marks are written to the first.
    folders: Vec<PathBuf>,
    database: String,
}

impl HighWaterMark {
    /// Returns the mark beside the KEK files; `None` where no KEK is a file.
    pub fn beside(keks: &[String], database: &str) -> Option<Self> {
        let (folders, database) = places(keks, database)?;
        Some(Self { folders, database })
    }

    /// Returns the mark of this database, the furthest if there are several.
    pub fn read(&self) -> Option<FeedPosition> {
        let own = self.name();
        let files = self
            .folders
            .iter()
            .flat_map(|folder| [folder.join(&own), folder.join(SHARED)]);
        let found = files.filter_map(|file| read(&file));
        let found = found.filter(|(database, _)| *database == self.database);
        found.map(|(_, position)| position).max()
    }

    /// Moves the mark forward atomically. A mark that is further ahead is kept, because a node that lags
    /// behind must not hide the position of another. With `durable` the mark is flushed to disk.
    ///
    /// # Errors
    /// Of the file system, for example if the folder of the KEK is read-only.
    pub fn write(&self, position: &FeedPosition, durable: bool) -> std::io::Result<()> {
        let Some(folder) = self.folders.first() else {
            return Ok(());
        };
        let path = folder.join(self.name());
        let before = read(&path).filter(|(database, _)| *database == self.database);
        if before.is_some_and(|(_, before)| before >= *position) {
            return Ok(());
        }
        let (database, beat) = (&self.database, position.beat.micros());
        let line = format!("{database} {} {} {beat}\n", position.epoch, position.seq);
        replace(&path, &line, durable)
    }

    /// Returns the newest heartbeat in the marks of other databases beside the KEK files, if there are any.
    pub fn newest_of_others(&self) -> Option<Timestamp> {
        let files = self.folders.iter().flat_map(|folder| {
            let folder = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            std::fs::read_dir(folder).into_iter().flatten().flatten()
        });
        let marks = files.filter(|file| is_mark(&file.file_name().to_string_lossy()));
        let marks = marks.filter_map(|file| read(&file.path()));
        let others = marks.filter(|(database, _)| *database != self.database);
        others.map(|(_, position)| position.beat).max()
    }

    fn name(&self) -> String {
        format!("feed-{}.mark", self.database)
    }
}

/// Returns the oldest modification time of a KEK file, if any KEK is a file.
pub fn kek_since(keks: &[String]) -> Option<Timestamp> {
    let times = kek_files(keks).filter_map(|kek| {
        let changed = std::fs::metadata(kek).ok()?.modified().ok()?;
        let since = changed.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Timestamp::from_secs(0) + since)
    });
    times.min()
}

/// Returns the folders of all KEK files, and the id of a database in a form that is safe in a file name, because
/// anyone who can write to the database can choose it. `None` where no KEK is a file.
pub(super) fn places(keks: &[String], database: &str) -> Option<(Vec<PathBuf>, String)> {
    let database = uuid::Uuid::parse_str(database).ok()?.to_string();
    let folders: Vec<PathBuf> = kek_files(keks).map(|kek| kek.with_file_name("")).collect();
    (!folders.is_empty()).then_some((folders, database))
}

/// Replaces a mark file atomically. With `durable` it is flushed to disk.
///
/// # Errors
/// Of the file system.
pub(super) fn replace(path: &Path, line: &str, durable: bool) -> std::io::Result<()> {
    let draft = path.with_extension(format!("mark.{}", std::process::id()));
    let mut file = create(&draft)?;
    file.write_all(line.as_bytes())?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(draft, path)?;
    if durable {
        // Flush the name, too. The folder of a relative path may be empty.
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

fn kek_files(keks: &[String]) -> impl Iterator<Item = &Path> {
    let files = keks.iter().filter_map(|kek| kek.strip_prefix("file:"));
    files.map(Path::new)
}

fn is_mark(name: &str) -> bool {
    name == SHARED || (name.starts_with("feed-") && name.ends_with(".mark"))
}

/// Reads the id of a database and its position from a mark file.
fn read(file: &Path) -> Option<(String, FeedPosition)> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut words = text.split_whitespace();
    let database = words.next()?.to_owned();
    let position = FeedPosition {
        epoch: words.next()?.parse().ok()?,
        seq: words.next()?.parse().ok()?,
        beat: Timestamp::from_micros(words.next()?.parse().ok()?),
    };
    Some((database, position))
}

/// Creates or truncates a file that only its owner can read, like the KEK beside it.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0198c0de-0000-7000-8000-000000000001";
    const TWO: &str = "0198c0de-0000-7000-8000-000000000002";

    fn position(epoch: u64, seq: u64, beat: i64) -> FeedPosition {
        FeedPosition {
            epoch,
            seq,
            beat: Timestamp::from_micros(beat),
        }
    }

    /// Creates an empty folder for a test. Returns it with the KEKs of a configuration, one of which is in
    /// it.
    fn folder(test: &str) -> (PathBuf, [String; 2]) {
        let name = format!("portcullis-mark-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let kek = format!("file:{}", folder.join("kek").display());
        (folder, ["env:OTHER".to_owned(), kek])
    }

    #[test]
    fn marks_of_two_databases_stay_apart() {
        let (folder, keks) = folder("apart");
        let (one, two) = (
            HighWaterMark::beside(&keks, ONE).unwrap(),
            HighWaterMark::beside(&keks, TWO).unwrap(),
        );
        assert_eq!((one.read(), one.newest_of_others()), (None, None));
        let (far, near) = (position(3, 7, 1_800_000_000_000_001), position(1, 0, 5));
        one.write(&far, true).unwrap();
        two.write(&near, false).unwrap();
        assert_eq!((one.read(), two.read()), (Some(far), Some(near)));
        assert_eq!(two.newest_of_others(), Some(far.beat));
        assert!(HighWaterMark::beside(&keks[..1], ONE).is_none());
        assert!(HighWaterMark::beside(&keks, "../../elsewhere").is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn mark_never_goes_back() {
        let (folder, keks) = folder("back");
        let mark = HighWaterMark::beside(&keks, ONE).unwrap();
        mark.write(&position(2, 7, 900), false).unwrap();
        for behind in [
            position(2, 6, 950),
            position(1, 99, 999),
            position(2, 7, 899),
        ] {
            mark.write(&behind, false).unwrap();
            assert_eq!(mark.read(), Some(position(2, 7, 900)), "{behind:?}");
        }
        mark.write(&position(3, 0, 0), false).unwrap();
        assert_eq!(mark.read(), Some(position(3, 0, 0)));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn mark_of_earlier_version_is_read_and_kept() {
        let (folder, keks) = folder("earlier");
        let text = format!("{ONE} 1 9 700\n");
        std::fs::write(folder.join(SHARED), &text).unwrap();
        let (one, two) = (
            HighWaterMark::beside(&keks, ONE).unwrap(),
            HighWaterMark::beside(&keks, TWO).unwrap(),
        );
        assert_eq!((one.read(), two.read()), (Some(position(1, 9, 700)), None));
        two.write(&position(1, 1, 1), false).unwrap();
        one.write(&position(1, 8, 800), false).unwrap();
        assert_eq!(one.read(), Some(position(1, 9, 700)), "the furthest");
        assert_eq!(std::fs::read_to_string(folder.join(SHARED)).unwrap(), text);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
